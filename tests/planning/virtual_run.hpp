// VirtualRun: a placement in service on a virtual machine, driven step by step on one thread in the order of its
// results, so that equal inputs take equal times to the nanosecond.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "device/virtual_time.hpp"
#include "planner/workload.hpp"
#include "planning/step_shape.hpp"
#include "planning/virtual_machine.hpp"
#include "runtime/runtime_executor.hpp"

namespace motley::testing {

struct Load {
  uint32_t requests = 8;     // all there from the start
  uint32_t concurrency = 8;  // at once
  uint32_t prompt_len = 16, output_len = 16;
  uint32_t step_rows = 40;  // of one step at most
  bool moves_kv = true;     // from pool to pool, instead of computing it again
  uint32_t spread = 0;      // outputs are output_len - spread to output_len + spread tokens long, evenly drawn
};

struct DeviceUse {
  std::string name;
  int64_t busy_ns = 0;  // of its programs
  uint64_t programs = 0, weight_bytes = 0, bytes_moved = 0;
};

struct Served {
  int64_t ns = 0;
  uint64_t tokens = 0, steps = 0, rows = 0;
  uint64_t recomputed = 0, moved_blocks = 0;  // tokens; blocks that went from pool to pool
  std::vector<DeviceUse> devices;             // those of the placement, in its order
  double tokens_per_s() const { return static_cast<double>(tokens) * 1e9 / static_cast<double>(ns); }
};

// Not thread-safe; aborts on failures.
class VirtualRun {
 public:
  // All are borrowed. `trace`: null = none.
  VirtualRun(const Model& model, const VirtualMachine& machine, const Placement& placement, uint32_t rows_max,
             Trace* trace = nullptr);
  ~VirtualRun();

  // One step, with nothing else under way: from its submission to its last device's end.
  int64_t step_ns(const StepShape& shape);
  // Two like it behind one another, the second submitted before the first ends: each from the end of the one before.
  std::pair<int64_t, int64_t> two_steps_ns(const StepShape& shape);
  Served serve(const Load& load);
  std::vector<DriverReport> reports() const { return executor_->reports(); }
  ExecutorDescription describe() const { return executor_->describe(); }

 private:
  class Now : public Clock {
   public:
    int64_t now_ns() const override { return ns; }
    int64_t ns = virtual_start_ns();
  };
  std::vector<DeviceUse> uses() const;
  int64_t move_ns(const std::vector<KvMove>& moves);

  const Model& model_;
  const VirtualMachine& machine_;
  const Placement placement_;
  Now now_;
  std::unique_ptr<RuntimeExecutor> executor_;
  StepId last_step_ = 0;
};

// What the planner is asked for this load.
PlanRequest request_of(const Load& load);

}  // namespace motley::testing
