// Transfers: requests whose KV goes from one pool of an executor to another.
#pragma once

#include <cstddef>
#include <vector>

#include "engine/executor.hpp"

namespace motley {

struct Transfer {
  RequestId id = 0;
  std::vector<KvMove> moves;
};

// What became of some. A request that is left has what it had where it was.
struct Transferred {
  std::vector<RequestId> moved, left;
  size_t blocks = 0;  // of those that moved
  Result<KvLoaded> loaded;
};

// Makes them, the first ones where the host has no memory for all. Blocks, on any thread (Executor::save_kv). Does not
// throw.
Transferred transfer(Executor& executor, const std::vector<Transfer>& transfers);

}  // namespace motley
