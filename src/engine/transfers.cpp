#include "engine/transfers.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>
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

Result<KvLoaded> load_late(Executor& executor, const std::vector<Transfer>& transfers, const KvSaved& saved,
                           Transferred* done) {
  std::vector<KvMove> moves;
  for (const Transfer& each : transfers) {
    done->moved.push_back(each.id);
    moves.insert(moves.end(), each.moves.begin(), each.moves.end());
  }
  done->blocks = moves.size();
  return load(executor, saved, moves);
}

}  // namespace

KvSavedBlocks blocks_of(const KvSaved& saved) {
  KvSavedBlocks all;
  for (const auto& part : saved) {
    all.resize(std::max(all.size(), part->blocks.size()));
    for (size_t pool = 0; pool < part->blocks.size(); ++pool)
      all[pool].insert(all[pool].end(), part->blocks[pool].begin(), part->blocks[pool].end());
  }
  for (std::vector<BlockId>& of_pool : all) std::sort(of_pool.begin(), of_pool.end());
  return all;
}

size_t blocks_at_once(const KvSaved& saved, int64_t within_ns) {
  double blocks = 0, ns = 0;
  for (const auto& part : saved) {
    for (const std::vector<BlockId>& of_pool : part->blocks) blocks += static_cast<double>(of_pool.size());
    ns += static_cast<double>(part->busy_ns);
  }
  constexpr double kLoadingIsSlower = 2;
  const double loaded = ns == 0 ? 0 : blocks * static_cast<double>(within_ns) / (kLoadingIsSlower * ns);
  return ns == 0 || loaded >= UINT32_MAX ? SIZE_MAX : static_cast<size_t>(loaded);
}

Result<KvLoaded> load(Executor& executor, const KvSaved& saved, const std::vector<KvMove>& moves) {
  KvLoaded all;
  const auto is_there = [&](const KvMove& move) {
    return std::any_of(saved.begin(), saved.end(),
                       [&](const auto& part) { return was_saved(part->blocks, move.from); });
  };
  if (!std::all_of(moves.begin(), moves.end(), is_there))
    return error(MOTLEY_FAILED_PRECONDITION, "the KV to be loaded was not saved");
  for (const auto& part : saved) {
    std::vector<KvMove> of_part;
    std::copy_if(moves.begin(), moves.end(), std::back_inserter(of_part),
                 [&](const KvMove& move) { return was_saved(part->blocks, move.from); });
    if (of_part.empty()) continue;
    ASSIGN_OR_RETURN(const KvLoaded loaded, executor.load_kv(part, std::move(of_part)));
    all.bytes += loaded.bytes, all.busy_ns += loaded.busy_ns;
  }
  return all;
}

Transferred transfer(Executor& executor, const std::vector<Transfer>& transfers, const KvSaved& saved) {
  Transferred done{{}, {}, 0, error(MOTLEY_RESOURCE_EXHAUSTED, "no memory to move KV")};
  const bool late = !transfers.empty() && transfers.front().comes_late;
  try {
    done.loaded = late ? load_late(executor, transfers, saved, &done) : save_and_load(executor, transfers, &done);
  } catch (const std::bad_alloc&) {
  }
  if (!done.loaded.ok()) {
    done.moved.clear(), done.left.clear(), done.blocks = 0;
    for (const Transfer& each : transfers) done.left.push_back(each.id);
  }
  return done;
}

}  // namespace motley
