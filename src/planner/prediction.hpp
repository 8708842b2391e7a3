// Prediction: what a lane is expected to do under a load; and of one step. Pure.
//
// With M micro-batches in flight over stages of t and hops of c: T = max(sum (t + c), M max(t, c)), D tokens a T. Where
// some steps carry a chunk and others none, the mean of both kinds' T, and at each change from long to short what the
// short one waits: the sum over the stages but the last of (t_long - t_short), hops included.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "planner/memory_model.hpp"
#include "planner/step_costs.hpp"

namespace motley {

struct Prediction {
  double tokens_per_s = 0, ttft_ms = 0, tpot_ms = 0;  // output tokens; of the load
  double request_ms = 0;                              // of one request that is alone, whole
  uint32_t concurrency = 1, micro_batches = 1;        // held at once, in flight
  Chunks chunks = Chunks::kWhole;
  uint32_t chunk_rows = 0;  // of a prompt in one step, that this holds for
};

struct Candidate {
  LanePlan plan;
  LaneMemory memory;
  Prediction predicted;
  bool fits() const { return memory.missing_bytes == 0; }
};

// Costs of the loads that come up again and again. Not thread-safe.
class Predictor {
 public:
  // All outlive this.
  Predictor(const ModelShape& shape, const PlanInput& input, const PlanRequest& request);

  // Both loads of so many sequences in so many micro-batches.
  struct Costs {
    SteadyLoad load;
    StepCosts decode, mixed;
  };
  const Costs& steady(uint32_t concurrency, uint32_t micro_batches, Chunks chunks = Chunks::kWhole);
  const Costs& steady(const Prediction& of) { return steady(of.concurrency, of.micro_batches, of.chunks); }
  const Costs& lone();

  // What somebody has fixed of a plan; 0 = free. So many micro-batches as there are sequences, at most; so much KV as
  // fits, and no less than one sequence needs.
  struct Given {
    uint32_t micro_batches = 0;
    uint64_t kv_tokens = 0;
  };
  // Memory first; then, if it fits, the best number of micro-batches. `plan` is sound (check_lane).
  Candidate evaluate(LanePlan plan, const Given& given = {0, 0});
  // Of a sound plan with so many sequences: the best number of micro-batches, or the one given.
  Prediction predict(const LanePlan& plan, uint32_t concurrency, uint32_t micro_batches);
  // At this concurrency and number of micro-batches.
  Prediction predict(const LanePlan& plan, uint32_t concurrency, uint32_t micro_batches, Chunks chunks);
  // Greater is better: tokens/s, or 1 / time of a lone request. Plans that keep the limits come before those that do
  // not.
  double score(const Prediction& prediction) const;
  bool keeps_limits(const Prediction& prediction) const;

  const ModelShape& shape() const { return shape_; }
  const PlanInput& input() const { return input_; }
  const PlanRequest& request() const { return request_; }
  const LinkTable& links() const { return links_; }
  const std::vector<size_t>& twins() const { return twins_; }
  uint64_t evaluations() const { return evaluations_; }

  // [device] nanoseconds that it computes in a cycle of all micro-batches.
  std::vector<double> busy_ns(const LanePlan& plan, const Prediction& predicted);

 private:
  const ModelShape& shape_;
  const PlanInput& input_;
  const PlanRequest& request_;
  const LinkTable links_;
  const std::vector<size_t> twins_;
  std::map<std::tuple<uint32_t, uint32_t, Chunks>, std::unique_ptr<Costs>> steady_;
  std::unique_ptr<Costs> lone_;
  uint64_t evaluations_ = 0;
};

// One step of `load` alone on one of the placement's lanes, stage after stage. INVALID_ARGUMENT for a placement that is
// not this model's or names unknown devices.
Result<double> predict_step_ns(const ModelShape& shape, const PlanInput& input, const Placement& placement,
                               const StepLoad& load, size_t lane = 0);
// Of `rows` sequences that decode at `context`, all of whose logits are asked for.
Result<double> predict_step_ns(const ModelShape& shape, const PlanInput& input, const Placement& placement, double rows,
                               double context);

}  // namespace motley
