// A GPU's memory and its streams, behind kit's interfaces.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kit/kit.hpp"

typedef struct CUstream_st* cudaStream_t;  // as the CUDA runtime has it, whose header is not everywhere

namespace motley::cuda {

// Throws Error for a CUDA call that failed; `code` is a cudaError_t, `what` was tried.
void check(int code, const char* what);

class CudaMemory : public kit::Memory {
 public:
  explicit CudaMemory(int ordinal) : ordinal_(ordinal) {}
  bool in_host() const override { return false; }
  std::byte* allocate(uint64_t bytes) override;
  void release(std::byte* at, uint64_t bytes) noexcept override;
  std::unique_ptr<kit::Stream> stream() override;
  // Makes this GPU the calling thread's.
  void use() const;

 private:
  const int ordinal_;
};

// Bytes of the host, copied to the GPU at once.
class DeviceBytes {
 public:
  DeviceBytes() = default;
  DeviceBytes(CudaMemory& memory, const void* from, uint64_t bytes);
  DeviceBytes(DeviceBytes&& other) noexcept;
  DeviceBytes& operator=(DeviceBytes&& other) noexcept;
  ~DeviceBytes();
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  CudaMemory* memory_ = nullptr;
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
};

// What a kernel found wrong in its data; a literal text each (memory.cpp).
enum class Fault : int32_t { kNone = 0, kToken, kExpert };

// A batch on the GPU, for the steps of one program. Null where the batch has none.
struct DeviceBatch {
  int32_t rows = 0;
  const int32_t *token_ids = nullptr, *token_slots = nullptr, *positions = nullptr, *kv_slots = nullptr;
  const int32_t *row_sequence = nullptr, *blocks = nullptr, *head_rows = nullptr;
  const uint32_t* seq_block_begin = nullptr;
  int32_t* fault = nullptr;  // a Fault; the first one stays
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
  void begin(const motley_batch& batch, std::span<const int32_t> row_sequence) override;
  void finish() override;

  cudaStream_t raw() const { return stream_; }
  const DeviceBatch& batch() const { return batch_; }

 private:
  void stage(uint64_t bytes);
  CudaMemory& memory_;
  cudaStream_t stream_ = nullptr;
  std::byte *staged_ = nullptr, *arrived_ = nullptr;  // pinned, and its copy on the GPU; the first word is the fault
  uint64_t room_ = 0;
  bool in_program_ = false;
  DeviceBatch batch_;
};

}  // namespace motley::cuda
