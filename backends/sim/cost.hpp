// The simulation's time model. Nothing outside this folder knows it: others measure.
//
// A program lasts dispatch + the sum over its ops of max(flops / rate(rows), bytes / bandwidth). Bytes are the op's
// weight, its activations, and for attention the KV positions that its rows see.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "kit/check.hpp"
#include "sim/spec.hpp"

namespace motley::sim {

// What the model needs to know of a packed weight; zeros for an absent one.
struct WeightFacts {
  uint64_t bytes = 0;   // resident
  int32_t format = 0;   // motley_dtype
  int64_t experts = 1;  // kept
  double kept = 1;      // kept experts / all of them
};

struct KvSize {
  int32_t element_bytes = 0;
  uint32_t block_size = 0;
};

// Immutable; any thread.
class ProgramCost {
 public:
  ProgramCost() = default;
  ProgramCost(const kit::Plan& plan, const std::vector<WeightFacts>& weights);
  // `batch` is checked. `bandwidth_share`: 1, less on a contended bus.
  double seconds(const Rates& rates, const motley_batch& batch, const KvSize& kv, double bandwidth_share) const;

 private:
  struct Op {
    int64_t rows = 0;        // as PlanValue::rows
    double flops = 0;        // a row
    double bytes = 0;        // a row
    double fixed_bytes = 0;  // a run: the weight
    WorkClass work = kWorkF32;
    int64_t top_k = 0, experts = 0;  // GROUPED_MATMUL: flops and bytes are of one chosen expert, fixed_bytes of each
    double kept = 1;
    bool attends = false;  // flops and bytes are of one visible position
    int64_t window = 0;
  };
  std::vector<Op> ops_;
};

double copy_seconds(const Rates& rates, uint64_t bytes);  // over the link

}  // namespace motley::sim
