#include "engine/transfers.hpp"

#include <algorithm>
#include <memory>
#include <new>
#include <set>
#include <utility>

namespace motley {
namespace {

Result<KvLoaded> save_and_load(Executor& executor, const std::vector<Transfer>& transfers, Transferred* done) {
  std::vector<KvBlock> blocks;
  std::set<KvBlock> known;  // some are shared
  for (const Transfer& each : transfers) {
    for (const KvMove& move : each.moves)
      if (known.insert(move.from).second) blocks.push_back(move.from);
  }
  ASSIGN_OR_RETURN(KvContents saved, executor.save_kv(std::move(blocks)));
  std::vector<KvMove> moves;
  for (const Transfer& each : transfers) {
    const bool all = std::all_of(each.moves.begin(), each.moves.end(),
                                 [&](const KvMove& move) { return was_saved(saved.blocks, move.from); });
    (all ? done->moved : done->left).push_back(each.id);
    if (all) moves.insert(moves.end(), each.moves.begin(), each.moves.end());
  }
  if (done->moved.empty()) return error(MOTLEY_RESOURCE_EXHAUSTED, "the host has no memory for it");
  done->blocks = moves.size();
  return executor.load_kv(std::make_shared<const KvContents>(std::move(saved)), std::move(moves));
}

}  // namespace

Transferred transfer(Executor& executor, const std::vector<Transfer>& transfers) {
  Transferred done{{}, {}, 0, error(MOTLEY_RESOURCE_EXHAUSTED, "no memory to move KV")};
  try {
    done.loaded = save_and_load(executor, transfers, &done);
  } catch (const std::bad_alloc&) {
  }
  if (!done.loaded.ok()) {
    done.moved.clear(), done.left.clear(), done.blocks = 0;
    for (const Transfer& each : transfers) done.left.push_back(each.id);
  }
  return done;
}

}  // namespace motley
