#include "planner/placement.hpp"

#include <algorithm>
#include <cctype>

namespace motley {

int64_t units_in(const std::vector<UnitRange>& ranges) {
  int64_t units = 0;
  for (const UnitRange& range : ranges) units += range.end - range.begin;
  return units;
}

uint32_t pool_blocks(const Lane& lane) {
  uint32_t blocks = lane.kv_blocks;
  for (const KvSection& section : lane.sections) blocks += section.blocks;
  return blocks;
}

uint64_t kv_tokens(const Placement& placement) {
  std::set<uint32_t> pools;
  uint64_t blocks = 0;
  for (const Lane& lane : placement.lanes) blocks += pools.insert(lane.pool).second ? pool_blocks(lane) : 0;
  return blocks * placement.block_size;
}

std::set<KvPart> kv_parts(const Placement& placement, uint32_t pool) {
  std::set<KvPart> parts;
  for (const Lane& lane : placement.lanes) {
    for (const Stage& stage : lane.stages) {
      for (const Shard& shard : stage.shards) {
        for (const UnitRange& heads : shard.kv_heads)
          if (lane.pool == pool)
            parts.emplace(shard.kv_owner(), stage.layer_begin, stage.layer_end, heads.begin, heads.end);
      }
    }
  }
  return parts;
}

std::vector<std::string> devices_of(const Placement& placement) {
  std::vector<std::string> names;
  const auto add = [&](const std::string& name) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  };
  for (const Lane& lane : placement.lanes) {
    for (const Stage& stage : lane.stages) {
      for (const Shard& shard : stage.shards) {
        add(shard.device);
        if (!shard.partner.empty()) add(shard.partner);
      }
    }
    for (const KvSection& section : lane.sections) add(section.owner);
  }
  return names;
}

bool same_device(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); });
}

}  // namespace motley
