// What requests keep when another executor takes over.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "base/check.hpp"
#include "engine/scheduler.hpp"

namespace motley {
namespace {

constexpr size_t kCachedBlocksMin = 256;  // that may move; more where running requests hold more

bool same_memory(const KvPoolDescription& a, const KvPoolDescription& b) {
  return !a.memory.empty() && a.memory == b.memory && a.blocks == b.blocks && a.block_size == b.block_size;
}

bool stays(const KvPoolDescription& pool, std::span<const KvPoolDescription> next) {
  return std::any_of(next.begin(), next.end(), [&](const KvPoolDescription& each) { return same_memory(pool, each); });
}

uint32_t blocks_for(uint32_t positions, uint32_t block_size) { return (positions + block_size - 1) / block_size; }

bool was_saved(const KvSavedBlocks& saved, uint32_t pool, BlockId block) {
  return pool < saved.size() && std::binary_search(saved[pool].begin(), saved[pool].end(), block);
}

}  // namespace

// The pools, chains and moves of one change.
struct Scheduler::Carrying {
  std::vector<Pool> before;
  std::vector<KvPoolDescription> described;      // those before
  std::vector<std::optional<uint32_t>> staying;  // by pool before: the one that lies in its memory
  std::vector<Pool*> by_preference;
  const KvSavedBlocks& saved;
  std::map<std::pair<uint32_t, ChainId>, std::pair<uint32_t, ChainId>> chains;  // by pool and id, before: now
  std::vector<std::pair<Pool*, BlockId>> cached;                                // held until all are there
  CarriedOn done;
};

std::vector<Sequence*> Scheduler::by_rank() const {
  std::vector<Sequence*> all;
  for (const auto& [id, sequence] : sequences_) all.push_back(sequence.get());
  std::sort(all.begin(), all.end(), waiting_.key_comp());
  return all;
}

std::vector<KvBlock> Scheduler::blocks_to_save(std::span<const KvPoolDescription> next) const {
  std::vector<KvBlock> blocks;
  std::set<KvBlock> known;
  for (const Sequence* s : by_rank()) {
    if (s->state != Sequence::State::kRunning || stays(config_.pools[s->pool], next)) continue;
    const uint32_t written = blocks_for(s->committed, config_.pools[s->pool].block_size);
    for (uint32_t i = 0; i < written; ++i)
      if (known.insert({s->pool, s->blocks[i]}).second) blocks.push_back({s->pool, s->blocks[i]});
  }
  size_t cached = std::max(blocks.size(), kCachedBlocksMin);
  for (const Pool& pool : pools_) {
    if (stays(config_.pools[pool.id], next)) continue;
    const std::vector<BlockId> order = pool.blocks.free_order();
    for (auto at = order.rbegin(); at != order.rend() && cached > 0 && pool.blocks.cached(*at); ++at, --cached)
      blocks.push_back({pool.id, *at});
  }
  return blocks;
}

Scheduler::CarriedOn Scheduler::carry_on(const SchedulerConfig& config, const KvSavedBlocks& saved) {
  CHECK(steps_in_flight() == 0, "going on with another executor with {} steps under way", steps_in_flight());
  Carrying carrying{.before = std::move(pools_),
                    .described = std::move(config_.pools),
                    .staying = {},
                    .by_preference = {},
                    .saved = saved,
                    .chains = {},
                    .cached = {},
                    .done = {}};
  config_ = config;
  take_config();
  carrying.staying.resize(carrying.before.size());
  for (Pool& pool : pools_) {
    carrying.by_preference.push_back(&pool);
    for (size_t i = 0; i < carrying.before.size(); ++i) {
      if (carrying.staying[i] || !same_memory(carrying.described[i], config_.pools[pool.id])) continue;
      pool.blocks = std::move(carrying.before[i].blocks);
      carrying.staying[i] = pool.id;
      break;
    }
  }
  std::sort(carrying.by_preference.begin(), carrying.by_preference.end(),
            [](const Pool* a, const Pool* b) { return a->preference < b->preference; });
  const std::vector<Sequence*> all = by_rank();
  for (Sequence* s : all)
    if (s->state == Sequence::State::kRunning) carry(carrying, *s);
  carry_cache(carrying);
  for (Sequence* s : all) fit(*s);
  catching_up_ |= carrying.done.lost > 0;
  return std::move(carrying.done);
}

// Whether the pool may have one more that runs.
bool Scheduler::has_seat(const Pool& pool) const {
  return pool.running.size() < pool.sequences_max && running() < config_.options.max_num_seqs;
}

// Who comes is of lower rank than all that have come. Slots hold nothing: every token is known.
void Scheduler::seat(Pool& pool, Sequence& s) {
  pool.running.push_back(&s);
  s.pool = pool.id;
  s.slot_base = MOTLEY_NONE;
  if (free_slots_.empty()) return;
  s.slot_base = free_slots_.back();
  free_slots_.pop_back();
}

// Where its blocks lie already, or else to the first pool that has room, or else to those that wait.
void Scheduler::carry(Carrying& carrying, Sequence& s) {
  CHECK(s.unknown == 0 && s.in_flight == 0, "request {} goes on with {} tokens unknown", s.id(), s.unknown);
  if (const auto stays_in = carrying.staying[s.pool]) {
    Pool& pool = pools_[*stays_in];
    if (has_seat(pool)) return seat(pool, s);
    for (size_t i = s.blocks.size(); i-- > 0;) pool.blocks.release(s.blocks[i]);
  } else {
    for (Pool* pool : carrying.by_preference)
      if (has_seat(*pool) && carry_to(carrying, s, *pool)) return;
  }
  carrying.done.lost += s.committed;
  s.interrupted |= s.committed > 0;
  s.forget_progress();
  waiting_.insert(&s);
}

// False, and nothing changed, where there is no room or its blocks were not saved. Blocks that hold the same text are
// shared there as they were before.
bool Scheduler::carry_to(Carrying& carrying, Sequence& s, Pool& pool) {
  const BlockPool& from = carrying.before[s.pool].blocks;
  const uint32_t size = from.block_size(), full = s.committed / size, written = blocks_for(s.committed, size);
  if (pool.blocks.block_size() != size) return false;
  const bool cached = uses_cache(s);
  std::vector<BlockPool::Hit> hits;
  uint32_t free_hits = 0;
  ChainId chain = kChainRoot;
  while (cached && hits.size() < full) {
    const auto hit = pool.blocks.find(chain, text_of_block(s, hits.size(), size));
    if (!hit) break;
    free_hits += pool.blocks.references(hit->block) == 0 ? 1 : 0;
    chain = hit->chain;
    hits.push_back(*hit);
  }
  const uint64_t fresh = s.blocks.size() - hits.size();
  if (fresh + free_hits + pool.running.size() > pool.blocks.free_count()) return false;
  for (size_t i = hits.size(); i < written; ++i)
    if (!was_saved(carrying.saved, s.pool, s.blocks[i])) return false;
  const std::vector<BlockId> old = std::exchange(s.blocks, {});
  for (const BlockPool::Hit& hit : hits) {
    pool.blocks.retain(hit.block);
    s.blocks.push_back(hit.block);
  }
  for (size_t i = hits.size(); i < old.size(); ++i) {
    s.blocks.push_back(pool.blocks.allocate());
    if (i < written) carrying.done.moves.push_back({{s.pool, old[i]}, {pool.id, s.blocks[i]}});
  }
  s.chain = kChainRoot;
  ChainId before = kChainRoot;
  for (s.published = 0; cached && s.published < full; ++s.published) {
    const auto text = text_of_block(s, s.published, size);
    s.chain =
        s.published < hits.size() ? hits[s.published].chain : pool.blocks.publish(s.blocks[s.published], s.chain, text);
    const auto known = from.find(before, text);
    before = known ? known->chain : kChainRoot;
    if (known) carrying.chains[{s.pool, before}] = {pool.id, s.chain};
  }
  seat(pool, s);
  return true;
}

std::span<const TokenId> Scheduler::text_of_block(const Sequence& s, size_t block, uint32_t size) {
  return std::span(s.tokens).subspan(block * size, size);
}

// Blocks that nobody holds but whose text may be asked for again, the latest used first, as far as there is room; of a
// chain without its beginning, none.
void Scheduler::carry_cache(Carrying& carrying) {
  for (const Pool& before : carrying.before) {
    if (carrying.staying[before.id]) continue;
    const auto to = std::find_if(carrying.by_preference.begin(), carrying.by_preference.end(), [&](const Pool* pool) {
      return pool->blocks.block_size() == before.blocks.block_size() &&
             std::none_of(carrying.staying.begin(), carrying.staying.end(),
                          [&](const auto& taken) { return taken == pool->id; });
    });
    if (to != carrying.by_preference.end()) carry_cache(carrying, before, **to);
  }
  for (const auto& [pool, block] : carrying.cached) pool->blocks.release(block);
}

void Scheduler::carry_cache(Carrying& carrying, const Pool& before, Pool& to) {
  struct Kept {
    BlockId from = 0;
    size_t age = 0;
    BlockId block = 0;
  };
  std::vector<Kept> kept;  // the latest used first; then by chain, so that a beginning comes before what follows it
  const std::vector<BlockId> order = before.blocks.free_order();
  const size_t room = to.blocks.free_count() - std::min<size_t>(to.blocks.free_count(), to.running.size());
  for (auto at = order.rbegin(); at != order.rend() && kept.size() < room; ++at)
    if (was_saved(carrying.saved, before.id, *at) && before.blocks.cached(*at)) kept.push_back({*at, kept.size(), 0});
  std::sort(kept.begin(), kept.end(), [&](const Kept& a, const Kept& b) {
    return before.blocks.text_of(a.from).chain < before.blocks.text_of(b.from).chain;
  });
  std::vector<Kept> taken;
  for (Kept each : kept) {
    const BlockPool::Text text = before.blocks.text_of(each.from);
    ChainId parent = kChainRoot;
    if (text.parent != kChainRoot) {
      const auto known = carrying.chains.find({before.id, text.parent});
      if (known == carrying.chains.end() || known->second.first != to.id) continue;
      parent = known->second.second;
    }
    ChainId& chain = (carrying.chains[{before.id, text.chain}] = {to.id, kChainRoot}).second;
    if (const auto there = to.blocks.find(parent, text.tokens)) {
      chain = there->chain;
      continue;
    }
    each.block = to.blocks.allocate();
    chain = to.blocks.publish(each.block, parent, text.tokens);
    carrying.done.moves.push_back({{before.id, each.from}, {to.id, each.block}});
    taken.push_back(each);
  }
  std::sort(taken.begin(), taken.end(), [](const Kept& a, const Kept& b) { return a.age > b.age; });
  for (const Kept& each : taken) carrying.cached.emplace_back(&to, each.block);
}

}  // namespace motley
