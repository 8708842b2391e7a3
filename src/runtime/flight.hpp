// Flight: a step under way, shared by the drivers of all devices that run it.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <span>
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

  // Makes the batches. The plan has passed check_step(). `sections`: the blocks of each of the pool's; empty: it has
  // one.
  void prepare(uint32_t block_size, uint32_t slots, std::span<const uint32_t> sections = {});
  // What those who keep a section of the pool get: the others' blocks lie elsewhere.
  const motley_batch& batch_of(uint32_t section) const { return section == 0 ? batch : further_[section - 1].batch; }
  // Whether some of what the step stores or sees lies in that section; always of the first, which counts the sinks.
  bool touches(uint32_t section) const { return section == 0 || further_[section - 1].touched; }
  // The first failure is the step's status. Thread-safe.
  void fail(const Status& status);
  Status status() const;
  // A driver has ended its part at `ended_ns`. True for the last of them.
  bool leave(int64_t ended_ns);

  const StepPlan plan;
  Promise<StepResult> promise;
  motley_batch batch{};              // of the first section
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
  // Of a section.
  struct Places {
    std::vector<int32_t> kv_slots, blocks;
    motley_batch batch{};
    bool touched = false;
  };
  void place(uint32_t block_size, BlockId first, BlockId end, Places* places) const;

  Places first_;
  std::vector<Places> further_;
  std::vector<uint32_t> seq_row_begin_, seq_block_begin_;
  std::vector<int32_t> seq_context_;
  mutable std::mutex mutex_;
  Status status_;
};

}  // namespace motley
