// Over what the devices of a lane meet: the measured route of each pair; one for a group.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "planner/lane_plan.hpp"
#include "planner/placement.hpp"
#include "planner/profile.hpp"

namespace motley {

// The route of all who sum together: that of the pair whose sum of `bytes` takes longest, because all wait for it; of
// equally slow pairs, the first of kRoutes.
Route group_route(const LinkTable& links, std::span<const size_t> devices, double bytes);

// Of the pairs that meet, within a stage (which all take group_route) or from one stage to the next, those which do not
// take shared memory: what Lane.routes is to hold. Each pair once; `row_bytes`: of a row of the residual stream.
std::vector<PairRoute> lane_routes(const PlanInput& input, const LinkTable& links, const LanePlan& plan,
                                   double row_bytes);

}  // namespace motley
