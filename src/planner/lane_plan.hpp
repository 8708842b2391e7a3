// LanePlan: a placement in counts, as the search turns it over. Values.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.hpp"
#include "planner/model_shape.hpp"
#include "planner/placement.hpp"
#include "planner/profile.hpp"
#include "planner/workload.hpp"

namespace motley {

inline constexpr size_t kNoPartner = SIZE_MAX;
inline constexpr size_t kSectionsMax = 8;  // of a pool

// Counts of what a device takes of a stage; ranges follow the order of the shards.
struct ShardPlan {
  size_t device = 0;                      // index into PlanInput.devices
  int64_t query_heads = 0, kv_heads = 0;  // KV heads held: more than its share where they are replicated
  int64_t ffn_columns = 0, experts = 0;
  int64_t vocab_rows = 0;       // of the embedding in the first stage, of the head in the last
  size_t partner = kNoPartner;  // who keeps the KV of its heads and attends for it, as `device`

  size_t kv_owner() const { return partner == kNoPartner ? device : partner; }
  bool in_layers() const { return query_heads > 0 || ffn_columns > 0 || experts > 0; }
  bool empty() const { return !in_layers() && vocab_rows == 0; }
};

struct StagePlan {
  size_t begin = 0, end = 0;  // layers
  std::vector<ShardPlan> shards;
};

// A further section of a lane's pool (KvSection).
struct SectionPlan {
  size_t owner = 0;  // as `device`
  double share = 0;  // of the positions that are seen
};

struct LanePlan {
  std::vector<StagePlan> stages;
  std::vector<SectionPlan> sections;

  double first_share() const {
    double share = 1;
    for (const SectionPlan& section : sections) share -= section.share;
    return std::max(share, 0.0);
  }
};

// A lane among others. Lanes of one pool share its sequences and their KV: any number that only prefill, and one that
// only decodes. (A lane that did both would hold up those for which its devices attend by whole prompts.)
struct LaneOfSet {
  LanePlan plan;
  uint32_t pool = 0;  // the first lane's is 0, and each new one's the next number
  bool prefills = true, decodes = true;
  double share = 0;  // of all sequences, of its pool; every lane has one above 0, or none has any
};

// Sets kv_heads of every shard from the query heads before it.
void settle_heads(const ModelShape& shape, StagePlan* stage);

// The devices used, partners included, ascending.
std::vector<size_t> devices_of(const LanePlan& plan);
// Who keeps KV in its first section, ascending.
std::vector<size_t> kv_owners(const LanePlan& plan);

// Whether somebody attends for another: a partner, or the owner of a further section.
bool has_partners(const LanePlan& plan);
// Steps that it takes to give all devices work: one for each stage, two where partners attend.
size_t steps_at_once(const LanePlan& plan);
std::vector<size_t> devices_of(std::span<const LaneOfSet> lanes);
// Whether several of its shards have units of its layers, so that these are summed over them.
bool splits_layers(const StagePlan& stage);

// What a device cannot do is not asked of it: INVALID_ARGUMENT with its name.
Status check_abilities(const PlanInput& input, const LanePlan& plan);

// One shard with everything of layers [begin, end); vocabulary rows where it is the first or last stage.
StagePlan whole_stage(const ModelShape& shape, size_t device, size_t begin, size_t end);

// Positions of a pool's sections: with the shards' owners, and of each further one.
struct PoolTokens {
  uint64_t first = 0;
  std::vector<uint64_t> further = {};
  uint64_t all() const {
    uint64_t sum = first;
    for (const uint64_t tokens : further) sum += tokens;
    return sum;
  }
};

Placement to_placement(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                       const LanePlan& plan, const PoolTokens& kv_tokens, uint32_t micro_batches);
// [pool] positions, [lane] steps in flight.
Placement to_placement(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                       std::span<const LaneOfSet> lanes, std::span<const PoolTokens> kv_tokens,
                       std::span<const uint32_t> micro_batches);

// One of its lanes. INVALID_ARGUMENT where it does not fit the shape or names unknown devices.
Result<LanePlan> lane_plan_of(const ModelShape& shape, const PlanInput& input, const Placement& placement,
                              size_t lane = 0);
// All of them, pools numbered as here. INVALID_ARGUMENT also where the lanes of a pool do not share it (LaneOfSet).
Result<std::vector<LaneOfSet>> lanes_of(const ModelShape& shape, const PlanInput& input, const Placement& placement);

// Every layer once in order, counts of each stage sum to their axes, no device twice in a stage, none with nothing; and
// check_abilities().
Status check_lane(const ModelShape& shape, const PlanInput& input, const LanePlan& plan);
// Of lanes that are sound each: those of a pool share it.
Status check_pools(std::span<const LaneOfSet> lanes);

}  // namespace motley
