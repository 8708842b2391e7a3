#include "runtime/lane_links.hpp"

#include <algorithm>
#include <utility>

#include "comm/communicator.hpp"

namespace motley {
namespace {

constexpr uint64_t kMessageBytesMin = 1u << 20;

void link_tokens(const Stage& stage, bool embeds_here, size_t first_rank, std::vector<DriverLinks>* links) {
  uint32_t sampler = 0;
  while (sampler + 1 < stage.shards.size() && stage.shards[sampler].vocab_rows.empty()) ++sampler;
  for (uint32_t rank = 0; rank < stage.shards.size(); ++rank) {
    DriverLinks& link = (*links)[first_rank + rank];
    link.sampler = sampler;
    for (uint32_t other = 0; other < stage.shards.size(); ++other) {
      link.vocab.push_back(stage.shards[other].vocab_rows);
      if (embeds_here && other != sampler && !stage.shards[other].vocab_rows.empty()) link.embedders.push_back(other);
    }
  }
}

Route route_between(const Lane& lane, const std::string& a, const std::string& b) {
  for (const PairRoute& pair : lane.routes) {
    if ((pair.a == a && pair.b == b) || (pair.a == b && pair.b == a)) return pair.route;
  }
  return Route::kSharedMemory;
}

Route stage_route(const Lane& lane, const Stage& stage) {
  const Route route = route_between(lane, stage.shards[0].device, stage.shards[1].device);
  for (size_t i = 0; i < stage.shards.size(); ++i) {
    for (size_t j = i + 1; j < stage.shards.size(); ++j) {
      if (route_between(lane, stage.shards[i].device, stage.shards[j].device) != route) return Route::kSharedMemory;
    }
  }
  return route;
}

Result<CommGroup> make_route(Route route, const GroupOptions& options) {
  auto group = make_group(route, options);
  if (group.ok() || route == Route::kSharedMemory) return group;
  return Status(group.error().code(), group.error().message() + "; a plan without routes takes shared memory");
}

// Ways between shards from links[first] on and those who attend for them, whose links are appended.
Status link_attendants(const Lane& lane, const Stage& stage, size_t first, GroupOptions group,
                       std::vector<DriverLinks>* links) {
  group.size = 2;
  for (size_t i = 0; i < stage.shards.size(); ++i) {
    const Shard& shard = stage.shards[i];
    for (const Attendant& attendant : attendants_of(lane, shard)) {
      ASSIGN_OR_RETURN(CommGroup way, make_route(route_between(lane, shard.device, attendant.device), group));
      (*links)[first + i].partners.push_back(std::move(way[kWaySender]));
      (*links)[first + i].partner_devices.push_back(attendant.device);
      links->emplace_back().partners.push_back(std::move(way[kWayReceiver]));
      links->back().partner_devices.push_back(shard.device);
    }
  }
  return ok_status();
}

}  // namespace

std::vector<LanePart> lane_parts(const Lane& lane) {
  std::vector<LanePart> parts;
  for (size_t s = 0; s < lane.stages.size(); ++s) {
    const std::vector<Shard>& shards = lane.stages[s].shards;
    for (size_t i = 0; i < shards.size(); ++i)
      parts.push_back({s, i, shards[i].partner.empty() ? ShardRole::kWhole : ShardRole::kDense, shards[i].device, 0});
    for (size_t i = 0; i < shards.size(); ++i) {
      for (const Attendant& attendant : attendants_of(lane, shards[i]))
        parts.push_back({s, i, ShardRole::kAttention, attendant.device, attendant.section});
    }
  }
  return parts;
}

Result<std::vector<DriverLinks>> make_lane_links(const Lane& lane, const ModelConfig& config, const VirtualLink& link,
                                                 bool own_cores) {
  std::vector<DriverLinks> links;
  GroupOptions group;
  group.link_latency_ns = link.latency_ns;
  group.link_ns_per_byte = link.ns_per_byte;
  group.own_cores = own_cores;
  group.message_bytes_max =
      std::max<uint64_t>(kMessageBytesMin, uint64_t{std::max(config.hidden, config.vocab_size)} * sizeof(float));
  size_t before = 0, before_size = 0;  // the last stage's first shard, and how many it has
  for (size_t s = 0; s < lane.stages.size(); ++s) {
    const Stage& stage = lane.stages[s];
    const size_t first = links.size(), size = stage.shards.size();
    links.resize(first + size);
    if (size > 1) {
      group.size = static_cast<uint32_t>(size);
      ASSIGN_OR_RETURN(CommGroup made, make_route(stage_route(lane, stage), group));
      for (size_t i = 0; i < size; ++i) {
        links[first + i].stage = std::move(made[i]);
        for (const Shard& shard : stage.shards) links[first + i].stage_devices.push_back(shard.device);
      }
    }
    for (size_t i = 0; s > 0 && i < size; ++i) {
      const size_t from = i % before_size;
      group.size = 2;
      const Shard& sender = lane.stages[s - 1].shards[from];
      ASSIGN_OR_RETURN(CommGroup way, make_route(route_between(lane, sender.device, stage.shards[i].device), group));
      links[before + from].send_to.push_back(std::move(way[kWaySender]));
      links[before + from].send_devices.push_back(stage.shards[i].device);
      links[first + i].receive_from = std::move(way[kWayReceiver]);
    }
    if (s + 1 == lane.stages.size()) link_tokens(stage, lane.stages.size() == 1, first, &links);
    before = first, before_size = size;
    RETURN_IF_ERROR(link_attendants(lane, stage, first, group, &links));
  }
  return links;
}

}  // namespace motley
