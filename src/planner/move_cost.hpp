// What it takes to go from one placement to another while serving. Pure.
#pragma once

#include <cstdint>

#include "planner/search.hpp"

namespace motley {

// Weights: units (heads, columns, experts, vocabulary rows) of a layer that a device has in the next placement and not
// in the one in force are read by the host and go over the device's link, one device after another, beside the steps.
// What converting them and compiling takes is not known before it is done. KV: of a pool whose owners, layers, heads or
// blocks change, what its sequences have written on average goes to the host and to the next owners while nothing runs;
// devices copy beside one another, first all one way, then all the other.
struct MoveCost {
  uint64_t packed_bytes = 0, kv_bytes = 0;
  double prepare_ns = 0, pause_ns = 0;

  // Tokens over this time with the move, divided by those without it, if the next plan gives `gain` times as many.
  double gain_over(double gain, double horizon_ns) const;
};

// `stays`: what is reported of the placement in force. INVALID_ARGUMENT for devices that `input` does not have.
Result<MoveCost> move_cost(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                           const PlanReport& stays, const Placement& next);

// Whether a pool of this number lies in the same memory in both.
bool pool_stays(const Placement& now, const Placement& next, uint32_t pool);

}  // namespace motley
