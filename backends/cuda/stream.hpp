// A queue's CUDA stream: the batch of a program on the GPU, records of programs (CUDA graphs), and marks.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <mutex>

#include "cuda/attention/plan.hpp"
#include "cuda/memory.hpp"
#include "cuda/records.hpp"

typedef struct CUevent_st* cudaEvent_t;  // as memory.hpp has cudaStream_t
typedef struct CUgraphExec_st* cudaGraphExec_t;

namespace motley::cuda {

// What a kernel found wrong in its data; a literal text each (stream.cpp).
enum class Fault : int32_t { kNone = 0, kToken, kExpert, kPending };

// Where that is told: a Fault in pinned memory, of which the first one stays.
struct FaultPlace {
  int32_t* at = nullptr;
};

// What a program's steps want of every batch (kit::Plan::data).
struct ProgramNeeds {
  std::vector<AttentionShape> shapes;
  bool samples = false;
};

// A batch on the GPU, for the steps of one program. Null where the batch has none.
struct DeviceBatch {
  int32_t rows = 0;
  const int32_t *token_ids = nullptr, *token_slots = nullptr, *positions = nullptr, *kv_slots = nullptr;
  const int32_t *row_sequence = nullptr, *blocks = nullptr, *head_rows = nullptr;
  const uint32_t* seq_block_begin = nullptr;
  const motley_sample_row* samples = nullptr;
  const motley_token_count* counts = nullptr;
  const int32_t* pending = nullptr;
  const motley_token_bias* biases = nullptr;
  float* replaced = nullptr;  // a place for each of biases, counts and pending tokens, in this order
  uint32_t biases_room = 0, counts_room = 0;
  const FaultPlace* fault = nullptr;
};

// How a batch's rows are attended by ops of a shape: on the GPU, where there are such rows.
struct AttentionItems {
  const ChunkItem* chunks = nullptr;
  const int32_t* chunk_items = nullptr;
  uint32_t chunks_most = 0;  // a power of two
  const PassItem* passes = nullptr;
  int32_t passes_count = 0;
  bool one_row_each = false;
};

// Pinned memory in pieces that come back, and events. Thread-safe.
class PinnedPool {
 public:
  struct Piece {
    std::byte* data = nullptr;
    uint64_t bytes = 0;
  };
  ~PinnedPool();
  Piece take(uint64_t bytes);
  void give(Piece piece);
  cudaEvent_t take_event();
  void give_event(cudaEvent_t event);

 private:
  std::mutex mutex_;
  std::vector<Piece> pieces_;
  std::vector<cudaEvent_t> events_;
};

class CudaStream : public kit::Stream {
 public:
  explicit CudaStream(CudaMemory& memory);
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  ~CudaStream() override;
  void copy(std::byte* to, const std::byte* from, uint64_t bytes) override;
  void to_host(void* to, const std::byte* from, uint64_t bytes) override;
  void from_host(std::byte* to, const void* from, uint64_t bytes) override;
  bool begin(const motley_batch& batch, std::span<const int32_t> row_sequence, const kit::Plan& plan,
             std::span<const uint64_t> key) override;
  bool end() override;
  void follow(kit::Stream& other) override;
  void finish() override;
  std::unique_ptr<kit::Mark> mark() override;

  cudaStream_t raw() const { return stream_; }
  const DeviceBatch& batch() const { return batch_; }
  // Of ProgramNeeds::shapes.
  const AttentionItems& attention(size_t shape) const { return attention_[shape]; }
  int32_t* counters() const { return reinterpret_cast<int32_t*>(counters_); }  // kPartialsMax, zero between steps
  int processors() const { return processors_; }
  // A second stream, for what need not wait for what this one is given until join(). It follows all before.
  cudaStream_t fork();
  void join();
  bool starts_early() const { return starts_early_; }  // kernels may be set up while the one before ends

  // A copy to the host that waits in pinned memory.
  struct Arrival {
    void* to;
    const std::byte* from;
    uint64_t bytes;
  };
  // What a mark takes over from the stream.
  struct Held {
    std::vector<Arrival> arrivals;
    std::vector<PinnedPool::Piece> pieces;
    const int32_t* fault = nullptr;
  };

 private:
  class Layout;
  struct GraphEnd {
    void operator()(cudaGraphExec_t graph) const;
  };
  static constexpr size_t kRecordsMax = 512;
  using Graphs = Records<std::unique_ptr<CUgraphExec_st, GraphEnd>>;
  void lay_out(const motley_batch& batch, std::span<const int32_t> row_sequence, const ProgramNeeds& needs,
               Layout& layout);
  bool replay(std::vector<uint64_t> key);
  void stop_recording();
  std::byte* staged(uint64_t bytes);

  CudaMemory& memory_;
  PinnedPool pool_;
  cudaStream_t stream_ = nullptr, beside_ = nullptr;
  cudaEvent_t forked_ = nullptr, joined_ = nullptr;
  std::byte *device_ = nullptr, *counters_ = nullptr;  // the batch on the GPU: first its FaultPlace
  uint64_t room_ = 0;
  int processors_ = 0;
  bool starts_early_ = false;
  Held held_;
  PinnedPool::Piece staging_;
  uint64_t staged_ = 0;  // of staging_
  Graphs records_{kRecordsMax};
  Graphs::Record* recording_ = nullptr;
  DeviceBatch batch_;
  std::vector<AttentionItems> attention_;
};

// Enqueues a copy between the GPU and pinned memory by a kernel, between kernels the sooner: a copy engine takes some
// microseconds to begin, and what is behind it some to see its end. False: it is too large, or of odd bytes. from_host:
// what is read is there already.
constexpr uint64_t kKernelCopyMax = uint64_t{1} << 14;  // bytes
bool copy_by_kernel(const CudaStream& stream, std::byte* to, const std::byte* from, uint64_t bytes, bool from_host);

}  // namespace motley::cuda
