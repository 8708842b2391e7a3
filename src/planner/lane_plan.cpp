#include "planner/lane_plan.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "base/quote.hpp"
#include "planner/memory_model.hpp"

namespace motley {
namespace {

Status check_sum(size_t stage, const char* what, int64_t sum, int64_t axis) {
  if (sum == axis) return ok_status();
  return invalid_argument("stages[{}]: the {} of its shards sum to {}, the model has {}", stage, what, sum, axis);
}

Status check_stage(const ModelShape& shape, const PlanInput& input, const LanePlan& plan, size_t s) {
  const StagePlan& stage = plan.stages[s];
  ShardPlan sum;
  std::set<size_t> devices;
  for (const ShardPlan& shard : stage.shards) {
    if (!devices.insert(shard.device).second) {
      return invalid_argument("stages[{}]: the device {} is there twice", s,
                              in_quotes(input.devices[shard.device].name));
    }
    for (const int64_t count :
         {shard.query_heads, shard.kv_heads, shard.ffn_columns, shard.experts, shard.vocab_rows}) {
      if (count < 0) return invalid_argument("stages[{}]: a negative count", s);
    }
    if (shard.empty()) {
      return invalid_argument("stages[{}]: {} takes nothing; leave it out", s,
                              in_quotes(input.devices[shard.device].name));
    }
    if (shard.ffn_columns % shape.ffn_unit != 0) {
      return invalid_argument("stages[{}]: {} FFN columns on {}: cuts lie at multiples of {}", s, shard.ffn_columns,
                              in_quotes(input.devices[shard.device].name), shape.ffn_unit);
    }
    sum.query_heads += shard.query_heads;
    sum.ffn_columns += shard.ffn_columns;
    sum.experts += shard.experts;
    sum.vocab_rows += shard.vocab_rows;
  }
  RETURN_IF_ERROR(check_sum(s, "query heads", sum.query_heads, shape.heads));
  RETURN_IF_ERROR(check_sum(s, "FFN columns", sum.ffn_columns, shape.ffn_columns));
  RETURN_IF_ERROR(check_sum(s, "experts", sum.experts, shape.experts));
  const bool outer = s == 0 || s + 1 == plan.stages.size();
  return check_sum(s, "vocabulary rows", sum.vocab_rows, outer ? shape.vocab : 0);
}

}  // namespace

void settle_heads(const ModelShape& shape, StagePlan* stage) {
  const int64_t group = shape.query_heads_per_kv();
  int64_t begin = 0;
  for (ShardPlan& shard : stage->shards) {
    const int64_t end = begin + shard.query_heads;
    shard.kv_heads = shard.query_heads == 0 ? 0 : (end + group - 1) / group - begin / group;
    begin = end;
  }
}

std::vector<size_t> devices_of(const LanePlan& plan) {
  std::set<size_t> devices;
  for (const StagePlan& stage : plan.stages) {
    for (const ShardPlan& shard : stage.shards) {
      devices.insert(shard.device);
      devices.insert(shard.kv_owner());
    }
  }
  for (const SectionPlan& section : plan.sections) devices.insert(section.owner);
  return {devices.begin(), devices.end()};
}

std::vector<size_t> devices_of(std::span<const LaneOfSet> lanes) {
  std::set<size_t> devices;
  for (const LaneOfSet& lane : lanes) {
    for (const size_t device : devices_of(lane.plan)) devices.insert(device);
  }
  return {devices.begin(), devices.end()};
}

std::vector<size_t> kv_owners(const LanePlan& plan) {
  std::set<size_t> owners;
  for (const StagePlan& stage : plan.stages) {
    for (const ShardPlan& shard : stage.shards)
      if (shard.query_heads > 0) owners.insert(shard.kv_owner());
  }
  return {owners.begin(), owners.end()};
}

bool has_partners(const LanePlan& plan) {
  return !plan.sections.empty() || std::any_of(plan.stages.begin(), plan.stages.end(), [](const StagePlan& stage) {
    return std::any_of(stage.shards.begin(), stage.shards.end(),
                       [](const ShardPlan& shard) { return shard.partner != kNoPartner; });
  });
}

size_t steps_at_once(const LanePlan& plan) { return plan.stages.size() * (has_partners(plan) ? 2 : 1); }

bool splits_layers(const StagePlan& stage) {
  return std::count_if(stage.shards.begin(), stage.shards.end(),
                       [](const ShardPlan& shard) { return shard.in_layers(); }) > 1;
}

Status check_abilities(const PlanInput& input, const LanePlan& plan) {
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    for (const ShardPlan& shard : plan.stages[s].shards) {
      const DeviceProfile &device = input.devices[shard.device], &owner = input.devices[shard.kv_owner()];
      if (shard.vocab_rows > 0 && !device.holds_vocabulary)
        return invalid_argument("stages[{}]: {} cannot hold vocabulary; give it to another shard of the stage", s,
                                in_quotes(device.name));
      if (shard.query_heads > 0 && !owner.attends)
        return invalid_argument("stages[{}]: {} cannot attend; name a \"partner\" that can", s, in_quotes(owner.name));
      if (shard.partner == shard.device || (shard.partner != kNoPartner && shard.query_heads == 0))
        return invalid_argument("stages[{}]: a partner is another device, of a shard with heads", s);
      if (shard.query_heads > 0 && !plan.sections.empty() && !owner.attends_partially)
        return invalid_argument(
            "stages[{}]: {} cannot attend to a part of a sequence (with --deterministic none does), and the pool has "
            "sections",
            s, in_quotes(owner.name));
    }
  }
  for (size_t i = 0; i < plan.sections.size(); ++i) {
    const DeviceProfile& owner = input.devices[plan.sections[i].owner];
    if (!owner.attends || !owner.attends_partially)
      return invalid_argument(
          "sections[{}]: {} cannot attend to a part of a sequence (with --deterministic none does); name another "
          "device",
          i, in_quotes(owner.name));
  }
  return ok_status();
}

StagePlan whole_stage(const ModelShape& shape, size_t device, size_t begin, size_t end) {
  ShardPlan shard{device, shape.heads, shape.kv_heads, shape.ffn_columns, shape.experts};
  if (begin == 0 || end == shape.layers.size()) shard.vocab_rows = shape.vocab;
  return {begin, end, {shard}};
}

namespace {

Status check_sections(const PlanInput& input, const LanePlan& plan) {
  if (plan.sections.size() > kSectionsMax)
    return invalid_argument("{} sections; a pool has {} at most", plan.sections.size(), kSectionsMax);
  const std::vector<size_t> first = kv_owners(plan);
  std::set<size_t> owners(first.begin(), first.end());
  for (size_t i = 0; i < plan.sections.size(); ++i) {
    const size_t owner = plan.sections[i].owner;
    if (!owners.insert(owner).second)
      return invalid_argument("sections[{}]: {} keeps other blocks of the pool already; name another device", i,
                              in_quotes(input.devices[owner].name));
  }
  return ok_status();
}

}  // namespace

Status check_lane(const ModelShape& shape, const PlanInput& input, const LanePlan& plan) {
  size_t next = 0;
  if (plan.stages.empty()) return invalid_argument("no stages");
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    const StagePlan& stage = plan.stages[s];
    if (stage.begin != next || stage.end <= stage.begin || stage.end > shape.layers.size()) {
      return invalid_argument(
          "stages[{}] has layers [{}, {}): stages must follow one another from 0 to {}, each layer "
          "once",
          s, stage.begin, stage.end, shape.layers.size());
    }
    next = stage.end;
    RETURN_IF_ERROR(check_stage(shape, input, plan, s));
  }
  if (next != shape.layers.size()) {
    return invalid_argument("the stages end at layer {}, the model has {}", next, shape.layers.size());
  }
  RETURN_IF_ERROR(check_sections(input, plan));
  return check_abilities(input, plan);
}

namespace {

Lane to_lane(const ModelShape& shape, const PlanInput& input, const PlanRequest& request, const LanePlan& plan,
             const PoolTokens& kv_tokens, uint32_t micro_batches) {
  const int64_t group = shape.query_heads_per_kv();
  Lane lane;
  const auto blocks = [&](uint64_t tokens) {
    return static_cast<uint32_t>(std::min<uint64_t>(tokens / request.kv.block_size, INT32_MAX));
  };
  lane.kv_blocks = blocks(kv_tokens.first);
  for (size_t s = 0; s < plan.sections.size(); ++s)
    lane.sections.push_back({input.devices[plan.sections[s].owner].name, blocks(kv_tokens.further.at(s))});
  if (plan.stages.size() > 1 || has_partners(plan)) lane.micro_batches = micro_batches;
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    const StagePlan& from = plan.stages[s];
    Stage stage;
    stage.layer_begin = static_cast<uint32_t>(from.begin);
    stage.layer_end = static_cast<uint32_t>(from.end);
    int64_t query = 0, ffn = 0, vocab = 0, expert = 0;
    const bool replicated = std::any_of(from.shards.begin(), from.shards.end(), [&](const ShardPlan& shard) {
      return shard.query_heads != shard.kv_heads * group;
    });
    for (const ShardPlan& part : from.shards) {
      Shard shard;
      shard.device = input.devices[part.device].name;
      if (part.query_heads > 0) {
        shard.kv_heads = {{query / group, query / group + part.kv_heads}};
        if (replicated) shard.query_heads = {{query, query + part.query_heads}};
        if (part.partner != kNoPartner) shard.partner = input.devices[part.partner].name;
        stage.kv_owners.push_back(shard.kv_owner());
      }
      if (part.ffn_columns > 0) shard.ffn_columns = {{ffn, ffn + part.ffn_columns}};
      if (part.vocab_rows > 0) shard.vocab_rows = {{vocab, vocab + part.vocab_rows}};
      for (int64_t e = expert; e < expert + part.experts; ++e) shard.experts.push_back(static_cast<int32_t>(e));
      query += part.query_heads, ffn += part.ffn_columns, vocab += part.vocab_rows, expert += part.experts;
      shard.weight_bytes = shard_memory(shape, input, request, plan, s, part).weight_bytes;
      stage.shards.push_back(std::move(shard));
    }
    lane.stages.push_back(std::move(stage));
  }
  return lane;
}

// Who keeps which query heads of which layers, as the pool of a lane is laid out.
std::set<std::array<size_t, 5>> holders_of(const LanePlan& plan) {
  std::set<std::array<size_t, 5>> holders;
  for (const StagePlan& stage : plan.stages) {
    size_t first = 0;
    for (const ShardPlan& shard : stage.shards) {
      const auto heads = static_cast<size_t>(shard.query_heads);
      if (heads > 0) holders.insert({shard.kv_owner(), stage.begin, stage.end, first, first + heads});
      first += heads;
    }
  }
  for (size_t s = 0; s < plan.sections.size(); ++s) holders.insert({plan.sections[s].owner, SIZE_MAX, s, 0, 0});
  return holders;
}

}  // namespace

Placement to_placement(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                       std::span<const LaneOfSet> lanes, std::span<const PoolTokens> kv_tokens,
                       std::span<const uint32_t> micro_batches) {
  Placement placement;
  placement.epoch = 1;
  placement.block_size = request.kv.block_size;
  placement.kv_dtype = request.kv.dtype;
  for (size_t i = 0; i < lanes.size(); ++i) {
    Lane& lane = placement.lanes.emplace_back(
        to_lane(shape, input, request, lanes[i].plan, kv_tokens[lanes[i].pool], micro_batches[i]));
    lane.pool = lanes[i].pool;
    lane.prefills = lanes[i].prefills, lane.decodes = lanes[i].decodes;
    lane.share = lanes[i].share;
  }
  return placement;
}

Placement to_placement(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                       const LanePlan& plan, const PoolTokens& kv_tokens, uint32_t micro_batches) {
  const LaneOfSet lane{plan};
  return to_placement(shape, input, request, {&lane, 1}, {&kv_tokens, 1}, {&micro_batches, 1});
}

Status check_pools(std::span<const LaneOfSet> lanes) {
  std::vector<size_t> first, decoders, sizes;  // [pool] its first lane; how many decode; how many there are
  for (size_t i = 0; i < lanes.size(); ++i) {
    const LaneOfSet& lane = lanes[i];
    if (lane.pool > first.size()) return invalid_argument("lanes[{}]: pools are numbered from 0 in order", i);
    if (!lane.prefills && !lane.decodes) return invalid_argument("lanes[{}] neither prefills nor decodes", i);
    if (lane.pool == first.size()) first.push_back(i), decoders.push_back(0), sizes.push_back(0);
    if (holders_of(lane.plan) != holders_of(lanes[first[lane.pool]].plan))
      return invalid_argument("lanes[{}] shares a pool with lanes[{}], but not its owners and heads", i,
                              first[lane.pool]);
    if (lane.share != lanes[first[lane.pool]].share || (lane.share > 0) != (lanes[0].share > 0))
      return invalid_argument(
          "lanes[{}] has a share of {}; every pool has one, each of its lanes the same, or none has", i, lane.share);
    decoders[lane.pool] += lane.decodes ? 1 : 0;
    ++sizes[lane.pool];
  }
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (sizes[lanes[i].pool] > 1 && lanes[i].prefills && lanes[i].decodes)
      return invalid_argument("lanes[{}] shares a pool and has no role; \"prefill\" or \"decode\"", i);
  }
  for (size_t pool = 0; pool < first.size(); ++pool) {
    const bool prefills = std::any_of(lanes.begin(), lanes.end(),
                                      [&](const LaneOfSet& lane) { return lane.pool == pool && lane.prefills; });
    if (decoders[pool] != 1 || !prefills)
      return invalid_argument("pool {} needs one lane that decodes, and one that prefills (it may be the same)", pool);
  }
  return ok_status();
}

Result<std::vector<LaneOfSet>> lanes_of(const ModelShape& shape, const PlanInput& input, const Placement& placement) {
  std::vector<LaneOfSet> lanes;
  std::map<uint32_t, uint32_t> pools;  // as the placement counts them, as here
  for (size_t i = 0; i < placement.lanes.size(); ++i) {
    const Lane& from = placement.lanes[i];
    LaneOfSet& lane = lanes.emplace_back();
    ASSIGN_OR_RETURN(lane.plan, lane_plan_of(shape, input, placement, i));
    lane.pool = pools.emplace(from.pool, static_cast<uint32_t>(pools.size())).first->second;
    lane.prefills = from.prefills, lane.decodes = from.decodes;
    lane.share = from.share;
  }
  RETURN_IF_ERROR(check_pools(lanes));
  return lanes;
}

Result<LanePlan> lane_plan_of(const ModelShape& shape, const PlanInput& input, const Placement& placement,
                              size_t lane) {
  std::map<std::string_view, size_t> index;
  for (size_t d = 0; d < input.devices.size(); ++d) index[input.devices[d].name] = d;
  if (lane >= placement.lanes.size()) return invalid_argument("a placement without lane {}", lane);
  LanePlan plan;
  for (const Stage& stage : placement.lanes[lane].stages) {
    StagePlan part{stage.layer_begin, stage.layer_end, {}};
    for (const Shard& shard : stage.shards) {
      const auto device = index.find(shard.device);
      if (device == index.end()) {
        return invalid_argument("stages[{}]: no device is called {}", plan.stages.size(), in_quotes(shard.device));
      }
      size_t partner = kNoPartner;
      if (!shard.partner.empty()) {
        const auto found = index.find(shard.partner);
        if (found == index.end())
          return invalid_argument("stages[{}]: no device is called {}", plan.stages.size(), in_quotes(shard.partner));
        partner = found->second;
      }
      const int64_t kv_heads = units_in(shard.kv_heads);
      const int64_t query =
          shard.query_heads.empty() ? kv_heads * shape.query_heads_per_kv() : units_in(shard.query_heads);
      // A dense model's FFN axis may be there for a model of experts alone: it is no work.
      const int64_t columns = shape.ffn_columns == 0 ? 0 : units_in(shard.ffn_columns);
      int64_t experts = static_cast<int64_t>(shard.experts.size());
      if (stage.shards.size() == 1 && experts == 0) experts = shape.experts;  // a whole model may leave them out
      part.shards.push_back({device->second, query, kv_heads, columns, experts, units_in(shard.vocab_rows), partner});
    }
    plan.stages.push_back(std::move(part));
  }
  const Lane& from = placement.lanes[lane];
  for (const KvSection& section : from.sections) {
    const auto owner = index.find(section.owner);
    if (owner == index.end())
      return invalid_argument("sections[{}]: no device is called {}", plan.sections.size(), in_quotes(section.owner));
    const double all = std::max(pool_blocks(from), 1u);
    plan.sections.push_back({owner->second, section.blocks / all});
  }
  RETURN_IF_ERROR(check_lane(shape, input, plan));
  return plan;
}

}  // namespace motley
