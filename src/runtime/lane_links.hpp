// Who meets whom in a lane: the groups and ways of its drivers.
#pragma once

#include <string>
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

// A part of a lane: a shard, or what it does itself, or what somebody does who attends for it.
struct LanePart {
  size_t stage = 0, shard = 0;
  ShardRole role = ShardRole::kWhole;
  std::string device;
  uint32_t section = 0;  // of the pool: the blocks that it keeps
};

// Stage by stage: the shards in order, then those who attend for some of them, in the same order.
std::vector<LanePart> lane_parts(const Lane& lane);

// One per part, in the order of lane_parts(). A shard of a later stage gets the residual stream from one of the stage
// before, which all have the same. Two meet over their route of lane.routes; more over the one that all their pairs
// take, else over shared memory. own_cores: as of GroupOptions, of all of them. UNAVAILABLE where a route cannot be
// had.
Result<std::vector<DriverLinks>> make_lane_links(const Lane& lane, const ModelConfig& config, const VirtualLink& link,
                                                 bool own_cores = false);

}  // namespace motley
