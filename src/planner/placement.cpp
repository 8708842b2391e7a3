#include "planner/placement.hpp"

#include <set>

namespace motley {

uint64_t kv_tokens(const Placement& placement) {
  std::set<uint32_t> pools;
  uint64_t blocks = 0;
  for (const Lane& lane : placement.lanes) blocks += pools.insert(lane.pool).second ? lane.kv_blocks : 0;
  return blocks * placement.block_size;
}

}  // namespace motley
