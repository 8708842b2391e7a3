// Baselines: the placements that simpler systems take, for the plan to be compared with. Pure and deterministic.
//
// They know no partners: a device that cannot attend computes no layer of theirs. One that cannot hold vocabulary takes
// part where others hold it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "planner/search.hpp"

namespace motley {

enum class BaselineKind {
  kAlone,               // one device has the whole model
  kEvenTensorParallel,  // each has as many units of every layer as the others, whatever its speed
  kEvenPipeline,        // each has as many layers
  kMemoryRatio,         // each has layers in proportion to its free memory
  kHomogeneous,         // the best plan over devices of one kind that are about as fast
  kReplicas             // each has the whole model, a request goes to the one that will have done it first
};

std::string_view baseline_name(BaselineKind kind);  // "alone", "even_tensor_parallel", ...

struct Baseline {
  BaselineKind kind = BaselineKind::kAlone;
  std::string name;                 // for people: "CPU:0 alone"
  std::vector<PlanReport> engines;  // one; of replicas one each, for its part of the requests; none where it cannot be
  std::string note;                 // why it cannot be; else who is left out, and why; "" = nothing to say

  double tokens_per_s() const;  // predicted, of all engines
};

// Of every kind in the order above; kAlone once a device. What the request forces is left aside. INVALID_ARGUMENT for
// input that contradicts itself, as plan().
Result<std::vector<Baseline>> baselines(const ModelShape& shape, const PlanInput& input, const PlanRequest& request);

}  // namespace motley
