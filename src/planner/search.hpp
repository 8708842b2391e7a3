// The search for the best placement of one model over unlike devices, and the report of why it is the best known.
//
// Pure: equal inputs give equal reports. The candidates hold every single device that the model fits, so no plan is
// predicted worse than the best of them.
#pragma once

#include <stop_token>
#include <string>
#include <vector>

#include "planner/lane_set.hpp"

namespace motley {

struct DeviceShare {
  std::string device, format;
  uint64_t weight_bytes = 0, kv_bytes = 0, step_bytes = 0, usable_bytes = 0;
  double busy = 0;  // share of the time of a cycle
};

struct LeftOut {
  std::string device, reason;  // with the numbers that refused it
};

struct Alternative {
  std::vector<std::string> devices;
  double tokens_per_s = 0;
};

// Of a lane of the placement. Lanes of one pool have one prediction, of them all.
struct LaneReport {
  Prediction predicted;
  uint64_t kv_tokens = 0;  // of its pool
  std::vector<StageTime> stages;
};

struct ForcedLoss {
  double best_tokens_per_s = 0, loss = 0;  // 1 - forced / best
  std::vector<std::string> best_devices;
};

struct PlanReport {
  Placement placement;
  Prediction predicted;                     // of all lanes
  bool keeps_slo = true;                    // by the prediction; true where none is asked for
  double ttft_ms_max = 0, tpot_ms_max = 0;  // what is asked for; 0 = nothing
  double bound_tokens_per_s = 0, gap = 0;   // 1 - predicted / bound
  uint64_t kv_capacity_tokens = 0;          // of all pools
  uint32_t layers = 0;
  std::vector<DeviceShare> devices;    // used, in the input's order
  std::vector<std::string> simulated;  // names of devices that are, and are shown as such; whoever plans knows them
  std::vector<LaneReport> lanes;       // as the placement's
  std::vector<LeftOut> left_out;
  std::vector<Alternative> alternatives;  // at most three, each of other devices, best first
  bool forced = false;
  ForcedLoss forced_loss;  // where forced
  std::string moved;       // where it took over from another by itself: what that is worth and takes, for people
};

enum class Effort { kFull, kFirst };  // kFirst: one device, one pipeline and one tensor-parallel set; no bound

// INVALID_ARGUMENT for input that contradicts itself or cannot be planned for, FAILED_PRECONDITION for a device that
// was not measured for the model.
Status check_plannable(const ModelShape& shape, const PlanInput& input, const PlanRequest& request);

// INVALID_ARGUMENT for forced sizes that so many devices and layers cannot give, with what is asked and what is there.
Status check_forced(const PlanRequest& request, const std::vector<std::string>& devices, size_t layers);

// RESOURCE_EXHAUSTED where the model fits nowhere: how much is missing, and what would fit. INVALID_ARGUMENT for input
// that contradicts itself, or sizes that the devices cannot give. CANCELLED soon after `stop` is requested; forced
// plans are made all the same.
Result<PlanReport> plan(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                        Effort effort = Effort::kFull, const std::stop_token& stop = std::stop_token());

// What holds of any lanes that fit: placement, shares, stages' times; without bound, alternatives and who is left
// out. The predictor's request and input are those of the report.
PlanReport report_of(Predictor* predictor, const LaneSet& set);
PlanReport report_of(Predictor* predictor, const Candidate& candidate);

// What is reported of a given placement: a plan that somebody wrote. Its routes are kept, its micro_batches and
// kv_blocks where they are given: as much KV as fits, and no less than one sequence needs. The prediction counts each
// pair's measured link, whatever its route.
Result<PlanReport> report_on(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                             const Placement& placement);

}  // namespace motley
