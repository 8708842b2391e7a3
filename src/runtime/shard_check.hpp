// Whether the shards of a stage hold all of it, each unit once.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.hpp"
#include "model/model.hpp"
#include "planner/placement.hpp"

namespace motley {

// The query heads of a shard; those of its KV heads unless it says which.
std::vector<UnitRange> query_heads_of(const Shard& shard, int64_t per_kv_head);

// That the lane's stages hold each layer once, and this one's shards each axis. INVALID_ARGUMENT with what does not
// fit.
Status check_shards(const Model& model, const Lane& lane, size_t stage);

}  // namespace motley
