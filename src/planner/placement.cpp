#include "planner/placement.hpp"

#include <set>

namespace motley {

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

}  // namespace motley
