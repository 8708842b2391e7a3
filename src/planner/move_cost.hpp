// What it takes to go from one placement to another while serving. Pure.
#pragma once

#include <algorithm>
#include <cstdint>

#include "planner/search.hpp"

namespace motley {

inline constexpr int64_t kKvPauseNs = 100'000'000;  // that loading KV takes at most of a move's pause

// Weights: a matrix of which a device has other units (heads, columns, experts, vocabulary rows) in the next placement
// than in the one in force is packed anew, whole: it is read by the host and goes over the device's link, one device
// after another, beside the steps; what the device has no room for beside what it holds, or the host where it has none
// for both plans, while nothing runs. What converting and compiling take is not known before it is done. KV: of a pool
// whose owners, layers, heads or blocks change, what its sequences have written on average goes to the host beside the
// steps, and to the next owners while nothing runs, for as long as a pause may take; the rest of it comes beside the
// steps. Devices copy beside one another, first all one way, then all the other. Before, the steps under way of all
// lanes are waited for, as long as devices take now.
struct MoveCost {
  uint64_t packed_bytes = 0, kv_bytes = 0;
  double prepare_ns = 0, saving_ns = 0;  // beside the steps: of weights, and then of KV
  double pause_ns = 0;
  double late_ns = 0;  // from the pause until the last KV has come; half of the sequences are there on average
  uint64_t without_room_bytes = 0;  // of those packed
  double under_way_ns = 0;          // of the pause, for steps to end

  // Tokens over this time with the move, divided by those without it, if the next plan gives `gain` times as many.
  double gain_over(double gain, double horizon_ns) const;
};

// `stays`, `next`: what is reported of the placement in force, and of the other. `host_bytes`: what the host's memory
// can give; 0: unknown. INVALID_ARGUMENT for devices that `input` does not have.
Result<MoveCost> move_cost(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                           const PlanReport& stays, const PlanReport& next, uint64_t host_bytes = 0);

// What a move asks of the host's memory, where devices that have none of their own hold weights and KV. Pools are
// touched as they are written to, and what is written goes from the one plan's to the other's: what they grow by
// counts.
struct HostNeed {
  uint64_t packed_bytes = 0;  // weights packed anew, and the buffers of the next plan's steps
  uint64_t grown_bytes = 0;   // of the pools that do not stay as they are
  uint64_t freed_bytes = 0;   // weights that only the placement in force needs, and the buffers of its steps
  uint64_t beside() const { return packed_bytes + grown_bytes; }
  uint64_t instead() const { return beside() - std::min(beside(), freed_bytes); }
};

HostNeed host_need(const ModelShape& shape, const PlanInput& input, const PlanRequest& request, const PlanReport& now,
                   const PlanReport& next);

// What so much of the host's memory (0: unknown) lets the next plan do: be made while the one in force serves; be made
// once that has ended, but for weights that so much memory holds; or neither.
enum class HostRoom { kBeside, kInstead, kNone };
HostRoom host_room(const HostNeed& need, uint64_t available);

// Whether a pool of this number lies in the same memory in both.
bool pool_stays(const Placement& now, const Placement& next, uint32_t pool);

}  // namespace motley
