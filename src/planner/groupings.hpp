// Groupings: which sets of devices are tried as stages. Pure and deterministic.
//
// Up to kGroupingsAllDevicesMax devices: every way to leave some out and to part the others into islands. Beyond: by
// types and by speed - every type alone and every set of types, the fastest n devices, islands of 2, 4 and 8 of a kind,
// islands that share memory - a few hundred at most.
#pragma once

#include <vector>

#include "planner/lane_builder.hpp"

namespace motley {

inline constexpr size_t kGroupingsAllDevicesMax = 5;

using Grouping = std::vector<Island>;

std::vector<Grouping> free_groupings(const PlanInput& input, const DeviceTypes& types);

// What PlanRequest forces: islands of so many devices, so many of them, all devices. Empty where the numbers cannot be.
std::vector<Grouping> forced_groupings(const PlanInput& input, const DeviceTypes& types, const PlanRequest& request);

}  // namespace motley
