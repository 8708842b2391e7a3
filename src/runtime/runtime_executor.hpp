// RuntimeExecutor: the Executor over devices of this machine.
//
// Built so far for a placement of one lane, one stage, one shard; anything else is refused with UNIMPLEMENTED.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/clock.hpp"
#include "device/handles.hpp"
#include "device/wait.hpp"
#include "engine/executor.hpp"
#include "model/model.hpp"
#include "planner/placement.hpp"
#include "runtime/segment.hpp"
#include "runtime/step_check.hpp"
#include "runtime/tape.hpp"

namespace motley {

struct RuntimeOptions {
  uint32_t rows_max = 2048;        // of one step
  uint32_t logit_rows_max = 1024;  // of one step
  uint32_t positions_max = 0;      // longest sequence; 0 = the model's context
};

// The KV pool that a placement asks of a device, in the ABI's terms. The vectors back the pointers of `desc`.
struct KvRequest {
  std::vector<int32_t> kv_heads, head_dim, windows;
  motley_kv_desc desc{};
  KvRequest(const Model& model, int32_t dtype, uint32_t block_size, uint32_t blocks);
  KvRequest(const KvRequest&) = delete;
  KvRequest& operator=(const KvRequest&) = delete;
};

// What a step needs on the device beside weights and KV, in bytes. UNIMPLEMENTED with the device's reason when it
// cannot run the model.
Result<uint64_t> step_bytes(const Model& model, const Device& device, const RuntimeOptions& options);

// Packs weight `index` of the graph for the device, and lets go of the file's pages unless the packed form needs them.
Result<PackedWeight> pack_weight(const Model& model, size_t index, const Device& device);

// submit() by one thread; results are set on the runtime's own thread. Borrowed: model (while alive), device, clock.
class RuntimeExecutor : public Executor {
 public:
  // Packs the weights (and lets go of the file's pages), makes the KV pool, compiles the tape.
  static Result<std::unique_ptr<RuntimeExecutor>> create(const Model& model, const Placement& placement,
                                                         const Device& device, const RuntimeOptions& options,
                                                         const Clock& clock = system_clock());
  ~RuntimeExecutor() override;

  ExecutorDescription describe() const override { return description_; }
  Future<StepResult> submit(StepPlan plan) override;

 private:
  static constexpr uint32_t kStepsInFlightMax = 2;  // one running, one ahead
  static constexpr uint32_t kSlots = 8192;

  // Where SAMPLE writes; host-visible.
  struct ResultSet {
    BufferHandle ids, logprobs, top_ids, top_logprobs;
    const int32_t* ids_host = nullptr;
    const float* logprobs_host = nullptr;
    const int32_t* top_ids_host = nullptr;
    const float* top_logprobs_host = nullptr;
  };
  struct CompiledSegment {
    Segment segment;
    ProgramsHandle programs;
  };
  // A step under way: keeps alive all that the device reads.
  struct Flight {
    StepPlan plan;
    Promise<StepResult> promise;
    std::vector<int32_t> kv_slots;
    std::vector<uint32_t> seq_row_begin, seq_block_begin;
    std::vector<int32_t> seq_context, seq_blocks;
    motley_batch batch{};
    EventHandle event;
    bool watched = false;  // the event rings the waiter
    Status failed;         // did not start, or not wholly
    size_t set = 0;
    int64_t submitted_ns = 0;
  };

  RuntimeExecutor(const Model& model, const Device& device, const RuntimeOptions& options, const Clock& clock,
                  Waiter waiter);
  Status pack_weights();
  Status make_buffers();
  Status compile(const Placement& placement);
  Result<motley_buffer*> buffer_of(int32_t graph_value, size_t set) const;
  Status add_to_tape(const CompiledSegment& compiled);
  Status admit(const StepPlan& plan);
  void launch(Flight& flight);
  void fill_batch(Flight& flight) const;
  Status await(const Flight& flight) const;
  void collect();
  StepResult result_of(Flight& flight, Status status);

  const Model& model_;
  const Device& device_;
  const RuntimeOptions options_;
  const Clock& clock_;
  Waiter waiter_;
  ExecutorDescription description_;
  std::vector<PackedWeight> weights_;  // by graph weight
  KvHandle kv_;
  BufferHandle slots_, residual_, logits_;
  std::vector<ResultSet> results_;
  std::vector<std::unique_ptr<CompiledSegment>> segments_;
  QueueHandle queue_;
  Tape tape_;

  std::mutex mutex_;  // guards flights_, lost_ and stopping_
  std::deque<std::unique_ptr<Flight>> flights_;
  Status lost_;  // the device answered UNAVAILABLE: so does every later step
  bool stopping_ = false;
  size_t next_set_ = 0;           // submitting thread only
  int64_t last_finished_ns_ = 0;  // collecting thread only
  std::thread collector_;
};

}  // namespace motley
