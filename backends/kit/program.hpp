// A compiled plan: steps with barriers where one needs another's result, and an arena shared by values that do not live
// at the same time.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>

#include "kit/check.hpp"
#include "kit/memory.hpp"
#include "kit/team.hpp"

namespace motley::kit {

// What one enqueue runs on; alive until the run has ended.
struct RunArgs {
  const motley_batch* batch = nullptr;
  const KvPool* kv = nullptr;
  Stream* stream = nullptr;
  CheckedBatch checked;
  std::vector<std::byte*> bound;  // by value id; null = not bound
};

// The team, what the steps have handed out and what the first failing kernel said. One per run.
class RunState {
 public:
  RunState(Team& team, size_t steps) : team_(team), taken_(steps) {}
  Team& team() { return team_; }
  std::atomic<int64_t>* taken(size_t step) { return &taken_[step].next; }
  void fail(motley_code code, const char* text) {
    int32_t none = MOTLEY_OK;
    if (code_.compare_exchange_strong(none, code)) text_.store(text);
  }
  motley_code code() const { return static_cast<motley_code>(code_.load()); }
  const char* text() const { return text_.load() ? text_.load() : ""; }

 private:
  struct alignas(64) Taken {  // a cache line each
    std::atomic<int64_t> next{0};
  };
  Team& team_;
  std::vector<Taken> taken_;
  std::atomic<int32_t> code_{MOTLEY_OK};
  std::atomic<const char*> text_{nullptr};
};

class Program {
 public:
  // `segment.plan` has weights, threads and rows_max; kernels are set and fuse has run.
  explicit Program(CheckedSegment segment);

  const CheckedSegment& segment() const { return segment_; }
  const Plan& plan() const { return segment_.plan; }
  // Rows of a value for this batch.
  static int64_t rows_of(const PlanValue& value, const motley_batch& batch);
  // Arena and scratch needed.
  uint64_t workspace_bytes(int64_t rows, int64_t head_rows, int64_t slots) const;
  size_t barriers() const;
  // What its steps depend on besides the batch's contents.
  std::vector<uint64_t> key(const RunArgs& args, const std::byte* workspace) const;
  // Runs on the team; `workspace` holds at least workspace_bytes. Throws Error with what a kernel reported.
  void run(Team& team, const RunArgs& args, std::byte* workspace) const;

 private:
  struct Cell {    // a place in the arena
    int64_t rows;  // as PlanValue::rows
    int64_t row_bytes;
    int32_t free_after;  // level
  };
  struct Step {
    bool barrier_before;
    uint32_t first_in, first_out, first_weight;  // into refs_ / weights_
  };
  void find_levels(std::vector<int32_t>* level_of_op);
  void place_values(const std::vector<int32_t>& level_of_op);
  void flatten();
  uint64_t cell_bytes(const Cell& cell, int64_t rows, int64_t head_rows, int64_t slots) const;

  const uint64_t serial_;  // no other program of the process has it
  CheckedSegment segment_;
  std::vector<Step> steps_;
  std::vector<int32_t> cell_of_value_;  // -1: bound or unused
  std::vector<Cell> cells_;
  std::vector<int32_t> refs_;  // value ids of all steps' ins and outs
  std::vector<const Weight*> weights_;
  uint64_t scratch_bytes_ = 0;  // of one thread
};

}  // namespace motley::kit
