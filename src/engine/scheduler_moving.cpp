// What requests keep when they leave a pool for another, of the same executor or of one that takes over.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "base/check.hpp"
#include "engine/scheduler.hpp"

namespace motley {
namespace {

constexpr size_t kCachedBlocksMin = 32;  // that may move, in the pause; more where running requests hold more

bool same_memory(const KvPoolDescription& a, const KvPoolDescription& b) {
  return !a.memory.empty() && a.memory == b.memory && a.blocks == b.blocks && a.block_size == b.block_size;
}

bool stays(const KvPoolDescription& pool, std::span<const KvPoolDescription> next) {
  return std::any_of(next.begin(), next.end(), [&](const KvPoolDescription& each) { return same_memory(pool, each); });
}

}  // namespace

// The pools, chains and moves of one change.
struct Scheduler::Carrying {
  std::vector<Pool> before;
  std::vector<KvPoolDescription> described;      // those before
  std::vector<std::optional<uint32_t>> staying;  // by pool before: the one that lies in its memory
  std::vector<Pool*> by_preference;
  const KvSavedBlocks& saved;
  const size_t at_once;
  std::map<std::pair<uint32_t, ChainId>, std::pair<uint32_t, ChainId>> chains;  // by pool and id, before: now
  std::vector<std::pair<Pool*, BlockId>> cached;                                // held until all are there
  std::map<std::pair<uint32_t, KvBlock>, BlockId> late;  // by pool: where a block will lie that comes late
  CarriedOn done;
};

std::vector<Sequence*> Scheduler::by_rank() const {
  std::vector<Sequence*> all;
  for (const auto& [id, sequence] : sequences_) all.push_back(sequence.get());
  std::sort(all.begin(), all.end(), waiting_.key_comp());
  return all;
}

std::vector<KvBlock> Scheduler::blocks_to_save(std::span<const KvPoolDescription> next, const KvSavedBlocks& saved,
                                               size_t cached_max) const {
  std::vector<KvBlock> blocks;
  std::set<KvBlock> known;
  for (const Sequence* s : by_rank()) {
    if (s->state != Sequence::State::kRunning || stays(config_.pools[s->pool], next)) continue;
    const uint32_t written = blocks_for(s->committed, config_.pools[s->pool].block_size);
    for (uint32_t i = 0; i < written; ++i) {
      const KvBlock block{s->pool, s->blocks[i]};
      if (known.insert(block).second && !was_saved(saved, block)) blocks.push_back(block);
    }
  }
  size_t cached = std::min(std::max(known.size(), kCachedBlocksMin), cached_max);
  for (const Pool& pool : pools_) {
    if (stays(config_.pools[pool.id], next)) continue;
    for (const BlockId block : pool.blocks.free_cached()) {
      if (cached == 0) break;
      blocks.push_back({pool.id, block});
      --cached;
    }
  }
  return blocks;
}

std::vector<KvBlock> Scheduler::hold_written(std::span<const KvPoolDescription> next) {
  let_go();
  std::set<KvBlock> known;
  for (const Sequence* s : by_rank()) {
    if (s->state != Sequence::State::kRunning || stays(config_.pools[s->pool], next)) continue;
    for (uint32_t i = 0; i < s->committed / config_.pools[s->pool].block_size; ++i) {
      if (!known.insert({s->pool, s->blocks[i]}).second) continue;
      pools_[s->pool].blocks.retain(s->blocks[i]);
      pools_[s->pool].held = true;
      held_.push_back({s->pool, s->blocks[i]});
    }
  }
  return held_;
}

void Scheduler::let_go() {
  for (size_t i = held_.size(); i-- > 0;) pools_[held_[i].pool].blocks.release(held_[i].block);
  held_.clear();
  for (Pool& pool : pools_) pool.held = false;
}

Scheduler::CarriedOn Scheduler::carry_on(const SchedulerConfig& config, const KvSavedBlocks& saved, size_t at_once) {
  CHECK(steps_in_flight() == 0 && transfers_in_flight_ == 0, "going on with {} steps and {} moves under way",
        steps_in_flight(), transfers_in_flight_);
  let_go();
  Carrying carrying{.before = std::move(pools_),
                    .described = std::move(config_.pools),
                    .staying = {},
                    .by_preference = {},
                    .saved = saved,
                    .at_once = at_once,
                    .chains = {},
                    .cached = {},
                    .late = {},
                    .done = {}};
  late_failed_ = late_taken_ = false;
  config_ = config;
  take_config();
  carrying.staying.resize(carrying.before.size());
  for (Pool& pool : pools_) {
    carrying.by_preference.push_back(&pool);
    for (size_t i = 0; i < carrying.before.size(); ++i) {
      if (carrying.staying[i] || !same_memory(carrying.described[i], config_.pools[pool.id])) continue;
      pool.blocks = std::move(carrying.before[i].blocks);
      pool.troubles = carrying.before[i].troubles, pool.passed_by = carrying.before[i].passed_by;
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

// What `blocks` blocks of a sequence need in a pool: those that hold the same text are shared there.
Scheduler::Landing Scheduler::landing(const Pool& pool, const Sequence& s, uint32_t size, uint32_t blocks,
                                      const std::vector<std::optional<BlockId>>& known) const {
  Landing landing;
  if (pool.blocks.block_size() != size) return landing;
  const bool cached = uses_cache(s);
  uint32_t free_hits = 0;
  ChainId chain = kChainRoot;
  while (cached && landing.hits.size() < s.committed / size) {
    const auto hit = pool.blocks.find(chain, text_of_block(s, landing.hits.size(), size));
    if (!hit) break;
    free_hits += pool.blocks.references(hit->block) == 0 ? 1 : 0;
    chain = hit->chain;
    landing.hits.push_back(hit->block);
  }
  for (size_t i = landing.hits.size(); i < known.size() && known[i]; ++i, ++landing.known)
    landing.hits.push_back(*known[i]);
  landing.fresh = blocks - static_cast<uint32_t>(landing.hits.size());
  const size_t running = pool.running.size() + pool.arriving;
  landing.room = pool.sequences() < pool.sequences_max &&
                 uint64_t{landing.fresh} + free_hits + running <= pool.blocks.free_count();
  return landing;
}

std::vector<BlockId> Scheduler::take_blocks(Pool& pool, const Landing& landing) {
  std::vector<BlockId> blocks = landing.hits;
  for (const BlockId hit : blocks) pool.blocks.retain(hit);
  for (uint32_t i = 0; i < landing.fresh; ++i) blocks.push_back(pool.blocks.allocate());
  return blocks;
}

// In the pool that it has come to.
void Scheduler::publish_again(Pool& pool, Sequence& s) const {
  s.published = 0;
  s.chain = kChainRoot;
  if (!uses_cache(s)) return;
  const uint32_t size = pool.blocks.block_size();
  for (; s.published < s.committed / size; ++s.published) {
    const BlockId block = s.blocks[s.published];
    const auto text = text_of_block(s, s.published, size);
    const auto there = pool.blocks.find(s.chain, text);
    if (there)
      s.chain = there->chain;
    else  // one that late ones share may be published, behind what was there then
      s.chain =
          pool.blocks.cached(block) ? pool.blocks.text_of(block).chain : pool.blocks.publish(block, s.chain, text);
  }
}

// ---- from pool to pool

// Whether somebody of higher rank waits who could take the room there.
bool Scheduler::is_waited_for(const Pool& pool, const Sequence& s) const {
  for (const Sequence* other : waiting_) {
    if (!waiting_.key_comp()(other, &s)) return false;
    if (blocks_for(static_cast<uint32_t>(other->tokens.size()), pool.blocks.block_size()) <= pool.blocks.size())
      return true;
  }
  return false;
}

// Has the sequence, which leaves its pool and has no step under way, move to another one. False where that cannot be.
bool Scheduler::move_on(Sequence& s) {
  if (!config_.moves_kv || s.computed == 0 || s.computed != s.committed) return false;
  Pool& from = pools_[s.pool];
  const uint32_t size = from.blocks.block_size();
  const uint32_t blocks = std::max(static_cast<uint32_t>(s.blocks.size()), blocks_for(s.committed + 1, size));
  Pool* to = nullptr;
  Landing there;
  for (Pool& pool : pools_) {
    if (pool.id == from.id || (to != nullptr && comes_first(*to, pool)) || is_waited_for(pool, s)) continue;
    if (is_passed_by(pool, s, {})) continue;
    Landing other = landing(pool, s, size, blocks);
    if (!other.room) continue;
    to = &pool;
    there = std::move(other);
  }
  if (to == nullptr) return false;
  s.next_pool = to->id;
  s.next_blocks = take_blocks(*to, there);
  s.state = Sequence::State::kMoving;
  ++to->arriving;
  if (!std::exchange(s.draining, true)) ++from.draining;
  Transfer transfer{s.id(), {}};
  for (size_t i = there.hits.size(); i < blocks_for(s.committed, size); ++i)
    transfer.moves.push_back({{from.id, s.blocks[i]}, {to->id, s.next_blocks[i]}});
  transfers_.push_back(std::move(transfer));
  ++transfers_in_flight_;
  return true;
}

std::vector<Transfer> Scheduler::take_transfers() {
  std::sort(transfers_.begin(), transfers_.end(), [&](const Transfer& a, const Transfer& b) {
    if (a.comes_late != b.comes_late) return a.comes_late;
    return waiting_.key_comp()(sequences_.at(a.id).get(), sequences_.at(b.id).get());
  });
  while (late_failed_ && !late_taken_ && !transfers_.empty() && transfers_.front().comes_late) {
    const RequestId id = transfers_.front().id;
    transfers_.erase(transfers_.begin());
    moved(id, false);
  }
  if (transfers_.empty() || !transfers_.front().comes_late) return std::exchange(transfers_, {});
  if (std::exchange(late_taken_, true)) return {};
  std::vector<Transfer> one = {std::move(transfers_.front())};
  transfers_.erase(transfers_.begin());
  return one;
}

bool Scheduler::some_come_late() const {
  return std::any_of(pools_.begin(), pools_.end(), [](const Pool& pool) { return pool.late > 0; });
}

void Scheduler::moved(RequestId id, bool ok) {
  Sequence& s = *sequences_.at(id);
  CHECK(s.state == Sequence::State::kMoving, "request {} does not move", id);
  --transfers_in_flight_;
  Pool& to = pools_[s.next_pool];
  --to.arriving;
  const bool late = !s.draining;
  if (late) {
    --to.late;
    late_taken_ = false;
    late_failed_ |= !ok;
    ok = !late_failed_;
    if (!ok && !s.finished) s.interrupted = catching_up_ = true;
  }
  if (s.finished || !ok) {
    for (size_t i = s.next_blocks.size(); i-- > 0;) to.blocks.release(s.next_blocks[i]);
    s.next_blocks.clear();
    return give_back(s, !late);
  }
  Pool& from = pools_[s.pool];
  if (std::exchange(s.draining, false)) --from.draining;
  for (size_t i = s.blocks.size(); i-- > 0;) from.blocks.release(s.blocks[i]);
  s.blocks = std::exchange(s.next_blocks, {});
  s.pool = to.id;
  publish_again(to, s);
  s.state = Sequence::State::kRunning;
  to.running.insert(std::upper_bound(to.running.begin(), to.running.end(), &s, waiting_.key_comp()), &s);
}

// ---- from executor to executor

// Whether the pool may have one more that runs.
bool Scheduler::has_seat(const Pool& pool) const {
  return pool.sequences() < pool.sequences_max && holding() < config_.options.max_num_seqs;
}

// Slots hold nothing: every token is known.
void Scheduler::seat(Pool& pool, Sequence& s) {
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
    if (has_seat(pool)) {
      pool.running.push_back(&s);
      return seat(pool, s);
    }
    for (size_t i = s.blocks.size(); i-- > 0;) pool.blocks.release(s.blocks[i]);
  } else {
    std::vector<Pool*> pools = carrying.by_preference;
    std::sort(pools.begin(), pools.end(), [](const Pool* a, const Pool* b) { return comes_first(*a, *b); });
    for (Pool* pool : pools)
      if (has_seat(*pool) && carry_to(carrying, s, *pool)) return;
  }
  carrying.done.lost += s.committed;
  s.interrupted |= s.committed > 0;
  s.forget_progress();
  waiting_.insert(&s);
}

// Who comes is of lower rank than all that have come. False, and nothing changed, where there is no room or its blocks
// were not saved.
bool Scheduler::carry_to(Carrying& carrying, Sequence& s, Pool& pool) {
  const BlockPool& from = carrying.before[s.pool].blocks;
  const uint32_t size = from.block_size(), written = blocks_for(s.committed, size);
  std::vector<std::optional<BlockId>> known(written);  // of late ones: shared as they were
  for (uint32_t i = 0; i < written; ++i) {
    const auto at = carrying.late.find({pool.id, {s.pool, s.blocks[i]}});
    if (at != carrying.late.end()) known[i] = at->second;
  }
  const Landing there = landing(pool, s, size, static_cast<uint32_t>(s.blocks.size()), known);
  if (!there.room) return false;
  for (size_t i = there.hits.size(); i < written; ++i)
    if (!was_saved(carrying.saved, {s.pool, s.blocks[i]})) return false;
  const std::vector<BlockId> old = std::exchange(s.blocks, take_blocks(pool, there));
  const uint32_t before_pool = s.pool;
  std::vector<KvMove> moves;
  for (size_t i = there.hits.size(); i < written; ++i) moves.push_back({{s.pool, old[i]}, {pool.id, s.blocks[i]}});
  seat(pool, s);
  if (there.known > 0 || (!moves.empty() && carrying.done.moves.size() + moves.size() > carrying.at_once)) {
    ++carrying.done.late;
    for (const KvMove& move : moves) carrying.late.emplace(std::pair(pool.id, move.from), move.to.block);
    come_late(pool, s, std::move(moves));
    return true;
  }
  carrying.done.moves.insert(carrying.done.moves.end(), moves.begin(), moves.end());
  pool.running.push_back(&s);
  publish_again(pool, s);
  ChainId before = kChainRoot, now = kChainRoot;
  for (size_t i = 0; i < s.published; ++i) {
    const auto was = from.find(before, text_of_block(s, i, size)),
               is = pool.blocks.find(now, text_of_block(s, i, size));
    if (!was || !is) break;
    before = was->chain, now = is->chain;
    carrying.chains[{before_pool, before}] = {pool.id, now};
  }
  return true;
}

// It runs once its blocks are loaded; until then their text is nobody else's.
void Scheduler::come_late(Pool& pool, Sequence& s, std::vector<KvMove> moves) {
  s.next_pool = pool.id;
  s.next_blocks = std::exchange(s.blocks, {});
  s.state = Sequence::State::kMoving;
  s.published = 0;
  s.chain = kChainRoot;
  ++pool.arriving, ++pool.late;
  transfers_.push_back({s.id(), std::move(moves), true});
  ++transfers_in_flight_;
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
  const size_t free = to.blocks.free_count(), moves = carrying.done.moves.size();
  const size_t room = std::min(free - std::min(free, to.running.size() + to.arriving),
                               carrying.at_once - std::min(carrying.at_once, moves));
  for (const BlockId block : before.blocks.free_cached())
    if (kept.size() < room && was_saved(carrying.saved, {before.id, block})) kept.push_back({block, kept.size(), 0});
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
