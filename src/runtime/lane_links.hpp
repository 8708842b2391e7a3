// Who meets whom in a lane: the groups and ways of its drivers.
#pragma once

#include <vector>

#include "base/status.hpp"
#include "model/model.hpp"
#include "planner/placement.hpp"
#include "runtime/driver.hpp"

namespace motley {

// What a message between two drivers takes in virtual time (GroupOptions).
struct VirtualLink {
  double latency_ns = 0, ns_per_byte = 0;
};

// One per shard, stage by stage. A shard of a later stage gets the residual stream from one of the stage before, which
// all have the same. Two meet over their route of lane.routes; more over the one that all their pairs take, else over
// shared memory. own_cores: as of GroupOptions, of all of them. UNAVAILABLE where a route cannot be had.
Result<std::vector<DriverLinks>> make_lane_links(const Lane& lane, const ModelConfig& config, const VirtualLink& link,
                                                 bool own_cores = false);

}  // namespace motley
