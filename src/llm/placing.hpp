// What stands between a model and its plan: opened devices, their figures, the search. For `motley plan` and Instance.
#pragma once

#include <stop_token>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "llm/device_set.hpp"
#include "llm/planning.hpp"
#include "model/model.hpp"
#include "planner/drift.hpp"
#include "planner/plan_json.hpp"

namespace motley {

// A plan with everything that it was made from.
struct PlannedModel {
  ModelShape shape;
  PlanInput input;
  PlanRequest request;
  PlanIdentity identity;
  PlanReport report;
  std::vector<Unmeasured> unmeasured;
};

// Refuses what is forced, and the settings' plan file, where they cannot be, before anything is measured. Then measures
// the devices that are not lost (or finds them measured, in `have` too, or that they cannot be) and searches, or takes
// the settings' plan file and reports on it. With a gate, which stands between measuring and requests, it measures
// briefly. A device whose programs for the best plan would break its limits (compile_seconds() says so) is left out of
// it and of the input, unless it is forced. `drift`: of what was measured, which the result keeps.
Result<PlannedModel> plan_model(const Model& model, const DeviceSet& devices, const PlanSettings& settings,
                                const KvSettings& kv, const RuntimeOptions& runtime, const Progress& progress,
                                MeasureGate* gate = nullptr, const PlannedModel* have = nullptr,
                                const DriftFactors& drift = {});

// The best plan with these factors whose devices keep to their limits for what they compile. One that does not is added
// to `without`, and the plan is made without it; an error where that is null. CANCELLED once `stop` is requested.
Result<PlanReport> plan_that_compiles(const Model& model, const DeviceSet& devices, const RuntimeOptions& runtime,
                                      const ModelShape& shape, const PlanInput& measured, const PlanRequest& request,
                                      const DriftFactors& drift, std::vector<Unmeasured>* without,
                                      const std::stop_token& stop = {});

// Whether the devices of the placement keep to their limits of time and memory for what they compile, having been
// measured as `input` says; `beyond` is the first that does not.
Status check_compiling(const Model& model, const DeviceSet& devices, const RuntimeOptions& runtime,
                       const PlanInput& input, const Placement& placement, std::string* beyond);

}  // namespace motley
