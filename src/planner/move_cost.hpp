// What it takes to go from one placement to another while serving. Pure.
#pragma once

#include <cstdint>

#include "planner/search.hpp"

namespace motley {

// Weights: a matrix of which a device has other units (heads, columns, experts, vocabulary rows) in the next placement
// than in the one in force is packed anew, whole: it is read by the host and goes over the device's link, one device
// after another, beside the steps; what the device has no room for beside what it holds, while nothing runs. What
// converting and compiling take is not known before it is done. KV: of a pool whose owners, layers, heads or
// blocks change, what its sequences have written on average goes to the host and to the next owners while nothing runs;
// devices copy beside one another, first all one way, then all the other.
struct MoveCost {
  uint64_t packed_bytes = 0, kv_bytes = 0;
  double prepare_ns = 0, pause_ns = 0;
  uint64_t without_room_bytes = 0;  // of those packed

  // Tokens over this time with the move, divided by those without it, if the next plan gives `gain` times as many.
  double gain_over(double gain, double horizon_ns) const;
};

// `stays`: what is reported of the placement in force. INVALID_ARGUMENT for devices that `input` does not have.
Result<MoveCost> move_cost(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                           const PlanReport& stays, const Placement& next);

// Whether a pool of this number lies in the same memory in both.
bool pool_stays(const Placement& now, const Placement& next, uint32_t pool);

}  // namespace motley
