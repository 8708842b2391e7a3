// Transfers: requests whose KV goes from one pool of an executor to another, or comes late from the one before it.
#pragma once

#include <cstddef>
#include <vector>

#include "engine/executor.hpp"

namespace motley {

struct Transfer {
  RequestId id = 0;
  std::vector<KvMove> moves;
  bool comes_late = false;  // from the executor before; it was saved
};

// What became of some. A request that is left has what it had where it was.
struct Transferred {
  std::vector<RequestId> moved, left;
  size_t blocks = 0;  // of those that moved
  Result<KvLoaded> loaded;
};

// By pool, of all parts.
KvSavedBlocks blocks_of(const KvSaved& saved);
// How many load within a time, if that takes twice as long as saving took (1.4 to 1.7 times were seen).
size_t blocks_at_once(const KvSaved& saved, int64_t within_ns);
// Has the executor load each block from the part that has it. FAILED_PRECONDITION: none has.
Result<KvLoaded> load(Executor& executor, const KvSaved& saved, const std::vector<KvMove>& moves);

// Makes them, all late ones or none of them; of those from pool to pool the first where the host has no memory for all.
// `saved`: what late ones load. Blocks, on any thread (Executor::save_kv). Does not throw.
Transferred transfer(Executor& executor, const std::vector<Transfer>& transfers, const KvSaved& saved = {});

}  // namespace motley
