#include "planner/move_cost.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/quote.hpp"

namespace motley {
namespace {

// Units of each axis of a layer (by its number), or of the vocabulary.
enum Axis { kWhole, kQueryHeads, kKvHeads, kColumns, kExperts, kEmbedding, kHead };
using Units = std::map<std::pair<Axis, size_t>, std::set<std::pair<int64_t, int64_t>>>;

// Ranges that meet are one.
void add(Units* units, Axis axis, size_t layer, const std::vector<UnitRange>& ranges) {
  for (UnitRange range : ranges) {
    if (range.begin >= range.end) continue;
    auto& all = (*units)[{axis, layer}];
    for (auto at = all.begin(); at != all.end();) {
      const auto [begin, end] = *at;
      if (begin != range.end && end != range.begin) {
        ++at;
        continue;
      }
      range = {std::min(begin, range.begin), std::max(end, range.end)};
      at = all.erase(at);
    }
    all.emplace(range.begin, range.end);
  }
}

// What each device holds of the model.
std::map<std::string, Units> held_in(const ModelShape& shape, const Placement& placement) {
  const int64_t group = shape.query_heads_per_kv();
  std::map<std::string, Units> held;
  for (const Lane& lane : placement.lanes) {
    for (const Stage& stage : lane.stages) {
      for (const Shard& shard : stage.shards) {
        Units& units = held[shard.device];
        std::vector<UnitRange> queries = shard.query_heads, experts;
        if (queries.empty())
          for (const UnitRange& heads : shard.kv_heads) queries.push_back({heads.begin * group, heads.end * group});
        for (const int32_t expert : shard.experts) experts.push_back({expert, expert + 1});
        const bool only = stage.shards.size() == 1;  // it may leave its experts out
        if (only && experts.empty() && shape.experts > 0) experts = {{0, shape.experts}};
        const bool any = !queries.empty() || !shard.ffn_columns.empty() || !experts.empty();
        for (size_t l = stage.layer_begin; l < stage.layer_end && any; ++l) {
          add(&units, kWhole, l, {{0, 1}});
          add(&units, kQueryHeads, l, queries);
          add(&units, kKvHeads, l, shard.kv_heads);
          add(&units, kColumns, l, shard.ffn_columns);
          add(&units, kExperts, l, experts);
        }
        if (stage.layer_begin == 0) add(&units, kEmbedding, 0, shard.vocab_rows);
        if (stage.layer_end == shape.layers.size()) add(&units, kHead, 0, shard.vocab_rows);
      }
    }
  }
  return held;
}

double unit_bytes(const ModelShape& shape, const Units& all, Axis axis, size_t layer) {
  const LayerShape& of = shape.layers[layer];
  switch (axis) {
    case kWhole: return static_cast<double>(of.replicated_bytes);
    case kQueryHeads: return static_cast<double>(of.query_head_bytes);
    case kKvHeads: return static_cast<double>(of.kv_head_bytes);
    case kColumns: return of.has_ffn ? of.ffn_column_bytes : 0;
    case kExperts: return of.has_experts ? static_cast<double>(of.expert_bytes) : 0;
    case kEmbedding: return static_cast<double>(shape.embedding_bytes) / static_cast<double>(shape.vocab);
    case kHead: break;
  }
  if (shape.tied_head && all.contains({kEmbedding, 0})) return 0;  // the same bytes
  return static_cast<double>(shape.head_bytes) / static_cast<double>(shape.vocab);
}

bool on_host(const PlanInput& input, const std::string& device) {
  return std::any_of(input.devices.begin(), input.devices.end(),
                     [&](const DeviceProfile& each) { return each.name == device && !each.own_memory; });
}

// As Holdings finds them: a matrix of equal units is there, any other is not.
double bytes_to_pack(const ModelShape& shape, const Units& next, const Units& now) {
  double bytes = 0;
  for (const auto& [key, ranges] : next) {
    const auto held = now.find(key);
    if (held != now.end() && held->second == ranges) continue;
    for (const auto& [begin, end] : ranges)
      bytes += static_cast<double>(end - begin) * unit_bytes(shape, next, key.first, key.second);
  }
  return bytes;
}

// Bytes that the device has left beside all that it holds for a plan.
double room_on(const PlanInput& input, const PlanReport& stays, const std::string& device) {
  for (const DeviceShare& share : stays.devices) {
    if (share.device == device)
      return static_cast<double>(share.usable_bytes) -
             static_cast<double>(share.weight_bytes + share.kv_bytes + share.step_bytes);
  }
  for (size_t d = 0; d < input.devices.size(); ++d)
    if (input.devices[d].name == device) return static_cast<double>(usable_bytes(input, d));
  return 0;
}

const Lane* lane_of(const Placement& placement, uint32_t pool) {
  const auto found =
      std::find_if(placement.lanes.begin(), placement.lanes.end(), [&](const Lane& lane) { return lane.pool == pool; });
  return found == placement.lanes.end() ? nullptr : &*found;
}

// By device, of the first `tokens` positions of a pool: it is filled from its first section on.
std::map<std::string, double> kv_bytes(const ModelShape& shape, const PlanRequest& request, const Placement& placement,
                                       const Lane& lane, double tokens) {
  std::vector<double> sections;
  const auto take = [&](uint32_t blocks) {
    sections.push_back(std::min(tokens, double{1} * blocks * placement.block_size));
    tokens -= sections.back();
  };
  take(lane.kv_blocks);
  for (const KvSection& section : lane.sections) take(section.blocks);
  return kv_bytes_of(shape, request, placement, lane, sections);
}

class Links {
 public:
  explicit Links(const PlanInput& input) : host_(input.host_memory) {
    for (const DeviceProfile& device : input.devices) devices_.emplace(device.name, &device);
  }
  // Bytes that the host reads or writes, and those that then go over the device's link, one way.
  Result<double> ns(const std::string& device, double at_host, double over_link) const {
    const auto found = devices_.find(device);
    if (found == devices_.end()) return invalid_argument("no device is called {}", in_quotes(device));
    return std::max(found->second->copy.at(over_link), at_host * host_.ns_per_byte);
  }
  double packed_ratio(const std::string& device) const {
    const auto found = devices_.find(device);
    return found == devices_.end() ? 1 : found->second->packed_ratio;
  }

 private:
  const LinkProfile& host_;
  std::map<std::string, const DeviceProfile*> devices_;
};

Status add_kv(const ModelShape& shape, const PlanInput& input, const PlanRequest& request, const PlanReport& stays,
              const Placement& next, MoveCost* cost) {
  const Links links(input);
  const Placement& now = stays.placement;
  std::map<std::string, double> from, to;
  double before = 0;  // positions of the pools that move
  std::set<uint32_t> seen;
  for (size_t i = 0; i < now.lanes.size(); ++i) {
    const uint32_t pool = now.lanes[i].pool;
    if (!seen.insert(pool).second || pool_stays(now, next, pool)) continue;
    const double each = request.prompt_len + request.output_len / 2.0;
    const double most = double{1} * pool_blocks(now.lanes[i]) * now.block_size;
    const double tokens = std::min(stays.lanes.at(i).predicted.concurrency * each, most);
    for (const auto& [device, bytes] : kv_bytes(shape, request, now, now.lanes[i], tokens)) from[device] += bytes;
    before += tokens;
  }
  seen.clear();
  for (const Lane& lane : next.lanes) {
    if (!seen.insert(lane.pool).second || pool_stays(now, next, lane.pool)) continue;
    const double tokens = std::min(before, double{1} * pool_blocks(lane) * next.block_size);
    for (const auto& [device, bytes] : kv_bytes(shape, request, next, lane, tokens)) to[device] += bytes;
    before -= tokens;
  }
  for (const auto* way : {&from, &to}) {
    double most = 0;
    for (const auto& [device, bytes] : *way) {
      ASSIGN_OR_RETURN(const double ns, links.ns(device, bytes, bytes));
      most = std::max(most, ns);
      if (way == &to) cost->kv_bytes += static_cast<uint64_t>(bytes);
    }
    if (way == &from) {
      cost->saving_ns = most;
    } else {
      const double paused = std::min(most, double{kKvPauseNs});
      cost->pause_ns += paused;
      cost->late_ns = most - paused;
    }
  }
  return ok_status();
}

// Until the steps of a lane have ended that are under way: one of them through all stages, and the others, one after
// another, through the slowest. A lane of one stage has one step ahead.
double steps_under_way_ns(const LaneReport& lane) {
  double through = 0, slowest = 0;
  for (const StageTime& stage : lane.stages) {
    through += stage.step_ns + stage.hop_ns;
    slowest = std::max({slowest, stage.step_ns, stage.hop_ns});
  }
  const double steps = std::max({2.0, double{1} * lane.predicted.micro_batches, double{1} * lane.stages.size()});
  return through + (steps - 1) * slowest;
}

double step_bytes_on_host(const PlanInput& input, const PlanReport& report) {
  double all = 0;
  for (const DeviceShare& share : report.devices)
    if (on_host(input, share.device)) all += static_cast<double>(share.step_bytes);
  return all;
}

// Of pools that the other placement does not have in the same memory, on devices without memory of their own.
double pool_bytes_on_host(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                          const Placement& placement, const Placement& other) {
  double all = 0;
  std::set<uint32_t> seen;
  for (const Lane& lane : placement.lanes) {
    if (!seen.insert(lane.pool).second || pool_stays(placement, other, lane.pool)) continue;
    const double tokens = double{1} * pool_blocks(lane) * placement.block_size;
    for (const auto& [device, bytes] : kv_bytes(shape, request, placement, lane, tokens))
      if (on_host(input, device)) all += bytes;
  }
  return all;
}

}  // namespace

double MoveCost::gain_over(double gain, double horizon_ns) const {
  const double before = std::min(prepare_ns + saving_ns, horizon_ns);
  const double after = std::max(0.0, horizon_ns - before - pause_ns);
  const double missed = late_ns <= after ? late_ns / 2 : after * (1 - after / (2 * late_ns));  // they come evenly
  return (before + gain * (after - missed)) / horizon_ns;
}

bool pool_stays(const Placement& now, const Placement& next, uint32_t pool) {
  const Lane *before = lane_of(now, pool), *after = lane_of(next, pool);
  return before != nullptr && after != nullptr && now.block_size == next.block_size && now.kv_dtype == next.kv_dtype &&
         before->kv_blocks == after->kv_blocks && before->sections == after->sections &&
         kv_parts(now, pool) == kv_parts(next, pool);
}

Result<MoveCost> move_cost(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                           const PlanReport& stays, const PlanReport& next, uint64_t host_bytes) {
  const Links links(input);
  MoveCost cost;
  const bool both = host_room(host_need(shape, input, request, stays, next), host_bytes) == HostRoom::kBeside;
  auto host_left = static_cast<double>(host_bytes);  // where it has no room for both
  std::map<std::string, Units> now = held_in(shape, stays.placement);
  for (const auto& [device, units] : held_in(shape, next.placement)) {
    const double bytes = bytes_to_pack(shape, units, now[device]);
    if (bytes == 0) continue;
    const double packed = bytes * links.packed_ratio(device);
    ASSIGN_OR_RETURN(const double ns, links.ns(device, bytes, packed));
    double beside = std::clamp(room_on(input, stays, device), 0.0, packed);
    if (!both && on_host(input, device)) {
      beside = std::min(beside, host_left);
      host_left -= beside;
    }
    cost.packed_bytes += static_cast<uint64_t>(packed);
    cost.without_room_bytes += static_cast<uint64_t>(packed - beside);
    cost.prepare_ns += ns * beside / packed;
    cost.pause_ns += ns * (1 - beside / packed);
  }
  RETURN_IF_ERROR(add_kv(shape, input, request, stays, next.placement, &cost));
  for (const LaneReport& lane : stays.lanes) cost.under_way_ns = std::max(cost.under_way_ns, steps_under_way_ns(lane));
  cost.pause_ns += cost.under_way_ns;
  return cost;
}

HostNeed host_need(const ModelShape& shape, const PlanInput& input, const PlanRequest& request, const PlanReport& now,
                   const PlanReport& next) {
  const Links links(input);
  std::map<std::string, Units> before = held_in(shape, now.placement), after = held_in(shape, next.placement);
  double packed = step_bytes_on_host(input, next), freed = step_bytes_on_host(input, now);
  for (const auto& [device, units] : after)
    if (on_host(input, device)) packed += bytes_to_pack(shape, units, before[device]) * links.packed_ratio(device);
  for (const auto& [device, units] : before)
    if (on_host(input, device)) freed += bytes_to_pack(shape, units, after[device]) * links.packed_ratio(device);
  const double grown = pool_bytes_on_host(shape, input, request, next.placement, now.placement) -
                       pool_bytes_on_host(shape, input, request, now.placement, next.placement);
  return {static_cast<uint64_t>(packed), static_cast<uint64_t>(std::max(grown, 0.0)), static_cast<uint64_t>(freed)};
}

HostRoom host_room(const HostNeed& need, uint64_t available) {
  if (available == 0 || need.beside() <= available) return HostRoom::kBeside;
  return need.instead() <= available ? HostRoom::kInstead : HostRoom::kNone;
}

}  // namespace motley
