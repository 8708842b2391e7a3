// Flight: a step under way, shared by the drivers of all devices that run it.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "base/future.hpp"
#include "engine/executor.hpp"
#include "motley/backend.h"

namespace motley {

// Keeps alive all that devices read of a step. The plan and the batch are immutable from prepare() on; the rest is
// thread-safe as said.
class Flight {
 public:
  explicit Flight(StepPlan step) : plan(std::move(step)) {}

  // Makes the batch. The plan has passed check_step().
  void prepare(uint32_t block_size, uint32_t slots);
  // The first failure is the step's status. Thread-safe.
  void fail(const Status& status);
  Status status() const;
  // A driver has ended its part at `ended_ns`. True for the last of them.
  bool leave(int64_t ended_ns);

  const StepPlan plan;
  Promise<StepResult> promise;
  motley_batch batch{};
  bool refused = false;              // broke the contract: no device runs it
  int64_t submitted_ns = 0;          // as the executor's clock counts
  int64_t submitted_at_ns = 0;       // of system_clock()
  int64_t limit_ns = INT64_MAX;      // of a device's own time; INT64_MAX = none, and then no patience_ns either
  int64_t patience_ns = INT64_MAX;   // longer than anyone waits in a meeting while every device keeps its limits
  std::atomic<uint32_t> drivers{0};  // that have not ended their part
  std::atomic<int64_t> ended_ns{0};  // the latest of them
  bool ended = false;                // every driver has; guarded by its lane's runner
  std::vector<SampledToken> tokens;  // written by the driver that samples, before it leaves

 private:
  std::vector<int32_t> kv_slots_;
  std::vector<uint32_t> seq_row_begin_, seq_block_begin_;
  std::vector<int32_t> seq_context_, seq_blocks_;
  mutable std::mutex mutex_;
  Status status_;
};

}  // namespace motley
