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

}  // namespace

Result<std::vector<DriverLinks>> make_lane_links(const Lane& lane, const ModelConfig& config, const VirtualLink& link) {
  size_t ranks = 0;
  for (const Stage& stage : lane.stages) ranks += stage.shards.size();
  std::vector<DriverLinks> links(ranks);
  GroupOptions group;
  group.link_latency_ns = link.latency_ns;
  group.link_ns_per_byte = link.ns_per_byte;
  group.message_bytes_max =
      std::max<uint64_t>(kMessageBytesMin, uint64_t{std::max(config.hidden, config.vocab_size)} * sizeof(float));
  if (ranks > 1 && lane.stages.size() > 1) {
    group.size = static_cast<uint32_t>(ranks);
    ASSIGN_OR_RETURN(CommGroup made, make_shared_memory_group(group));
    for (size_t rank = 0; rank < ranks; ++rank) links[rank].lane = std::move(made[rank]);
  }
  size_t first = 0, before = 0;  // ranks of this stage's and the last one's first shard
  for (size_t s = 0; s < lane.stages.size(); ++s) {
    const size_t size = lane.stages[s].shards.size();
    if (size > 1) {
      group.size = static_cast<uint32_t>(size);
      ASSIGN_OR_RETURN(CommGroup made, make_shared_memory_group(group));
      for (size_t i = 0; i < size; ++i) links[first + i].stage = std::move(made[i]);
    }
    for (size_t i = 0; s > 0 && i < size; ++i) {
      const size_t from = before + i % (first - before);
      links[first + i].receive_from.push_back(static_cast<uint32_t>(from));
      links[from].send_to.push_back(static_cast<uint32_t>(first + i));
    }
    if (s + 1 == lane.stages.size()) link_tokens(lane.stages[s], lane.stages.size() == 1, first, &links);
    before = first;
    first += size;
  }
  return links;
}

}  // namespace motley
