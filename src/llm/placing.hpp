// What stands between a model and its plan: opened devices, their figures, the search. For `motley plan` and Instance.
#pragma once

#include <string>

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
};

// Refuses what is forced, and the settings' plan file, where they cannot be, before anything is measured. Then measures
// the devices that are not lost (or finds them measured, in `have` too) and searches, or takes the settings' plan file
// and reports on it. With a gate, which stands between measuring and requests, it measures briefly. `drift`: of what
// was measured, which the result keeps.
Result<PlannedModel> plan_model(const Model& model, const DeviceSet& devices, const PlanSettings& settings,
                                const KvSettings& kv, const RuntimeOptions& runtime, const Progress& progress,
                                MeasureGate* gate = nullptr, const PlanInput* have = nullptr,
                                const DriftFactors& drift = {});

}  // namespace motley
