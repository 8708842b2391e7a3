// What the engine writes into a trace (docs/tracing.md): the steps under way, and the pauses between two executors.
#pragma once

#include <cstdint>
#include <vector>

#include "base/trace.hpp"
#include "engine/executor.hpp"

namespace motley {

// One thread, the engine's. Without a Trace every call returns at once.
class StepTrace {
 public:
  explicit StepTrace(Trace* trace) : trace_(trace) {}  // borrowed, or null

  void planned(const StepPlan& plan, int64_t now_ns);
  // Unknown steps are ignored.
  void ended(const StepResult& result, int64_t now_ns);
  // No step was planned between; `lost`: because the executor was.
  void paused(int64_t begin_ns, int64_t end_ns, bool lost, Epoch next);

 private:
  struct Step {
    StepId id = 0;
    int64_t lane = 0;  // of the executor
    int64_t begin_ns = 0;
    int64_t prompt_rows = 0, generated_rows = 0, sequences = 0;
    bool under_way = false;
  };
  Trace* const trace_;
  std::vector<Step> steps_;         // steps that are under way together stand on tracks of their own
  std::vector<TraceTrack> tracks_;  // of those
};

}  // namespace motley
