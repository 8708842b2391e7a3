// Which waiting requests begin, and in which pool.
#include <algorithm>
#include <bit>
#include <utility>

#include "engine/scheduler.hpp"
#include "engine/step_trouble.hpp"

namespace motley {
namespace {

// Waiting requests that one step looks at and passes: a running one computes their prefix just now, or another pool is
// the one for them.
constexpr uint32_t kPassedOverMax = 64;

// Requests for which a pool is passed by after kFailedStepsTold failed steps on end, and after very many.
constexpr uint32_t kPassedBy = 16, kPassedByMax = 1024;

bool fits(const BlockPool& pool, const Sequence& s) {
  return blocks_for(static_cast<uint32_t>(s.tokens.size()), pool.block_size()) <= pool.size();
}

}  // namespace

// Takes waiting requests by rank while there is room, and stops at the first that finds none, so that nobody is passed
// for good. While enough long prompts are under way, further ones are passed by short ones that fit into the step
// (`longs` counts them; the first of them always moves on, so that this too ends). Without chunking, an admitted prompt
// is put into the step at once, in one piece. Who is passed because another pool takes him, or is the first to wait for
// another, keeps his claim to be one of those that run.
void Scheduler::admit(Draft& draft, std::vector<Sequence*>& prefills, uint32_t longs) {
  const bool chunked = config_.options.enable_chunked_prefill;
  const uint32_t brief = short_rows(draft.lane);
  uint32_t claimed = 0;  // rows of the short prompts that are not in the draft yet
  for (const Sequence* s : prefills) claimed += s->rows_missing() > brief ? 0 : s->rows_missing();
  uint32_t passed_over = 0;
  AdmissionPass pass;
  for (auto at = waiting_.begin(); at != waiting_.end();) {
    Sequence& s = **at;
    if (holding() + pass.claims() >= config_.options.max_num_seqs) return;
    pass.rows_left = rows_left(draft, 0);
    if (pass.rows_left <= claimed) return;
    const bool enough_longs = longs >= config_.options.max_concurrent_prefills;
    ++at;                                 // before `s` leaves the set
    if (passed_over >= kPassedOverMax) {  // without a look-up
      if (enough_longs && s.rows_missing() > brief) continue;
      if (!fits(draft.pool.blocks, s)) continue;
    }
    pass.missing_max = enough_longs ? brief : s.rows_missing();
    const Admission outcome = try_admit(draft, s, pass);
    const bool passed = outcome == Admission::kPassOver || outcome == Admission::kNotHere;
    if (passed && ++passed_over <= kPassedOverMax) continue;
    if (outcome != Admission::kAdmitted) return;
    prefills.push_back(&s);
    if (s.rows_missing() > brief)
      ++longs;
    else if (chunked)
      claimed += s.rows_missing();
    if (!chunked) append(draft, s, s.rows_missing());
  }
}

uint32_t Scheduler::AdmissionPass::claims() const { return elsewhere + static_cast<uint32_t>(std::popcount(closed)); }

// Sequences that run or hold what they ran with.
uint32_t Scheduler::holding() const {
  size_t all = 0;
  for (const Pool& pool : pools_) all += pool.running.size() + pool.draining + pool.late;
  return static_cast<uint32_t>(all);
}

Scheduler::Admission Scheduler::try_admit(Draft& draft, Sequence& s, AdmissionPass& pass) {
  const Offer own = offer(draft.pool, s);
  if (const Pool* other = pools_.size() > 1 ? better_pool(draft.pool, s, own, pass) : nullptr) {
    ++pass.elsewhere;
    pass.by_pool.resize(pools_.size());
    ++pass.by_pool[other->id];
    return Admission::kNotHere;
  }
  if (own.fits) {
    if (own.missing > pass.missing_max) return Admission::kPassOver;
    if (uses_cache(s) && waits_for_shared_prefix(draft.pool, s, own)) return Admission::kPassOver;
  }
  if (!own.room || !may_take(draft.pool, s, pass)) {
    close_pools(s, pass);
    return own.fits && !is_passed_by(draft.pool, s, pass) ? Admission::kNoRoom : Admission::kNotHere;
  }
  if (!config_.options.enable_chunked_prefill && own.missing > pass.rows_left) {
    draft.lane.prompts_first = true;
    return Admission::kNoRoom;
  }
  start(draft.pool, s, own);
  return Admission::kAdmitted;
}

bool Scheduler::uses_cache(const Sequence& s) const {
  return s.request.use_prefix_cache && config_.options.enable_prefix_caching;
}

// There is room when all its known text fits and every running sequence could still take a block; an empty pool takes
// any that fits.
Scheduler::Offer Scheduler::offer(const Pool& pool, const Sequence& s) const {
  const BlockPool& blocks = pool.blocks;
  const uint32_t size = blocks.block_size();
  const auto length = static_cast<uint32_t>(s.tokens.size());
  Offer offer;
  offer.fits = fits(blocks, s);
  if (!offer.fits) return offer;
  uint32_t free_hits = 0;
  const bool cached = uses_cache(s);
  while (cached && (offer.hits.size() + 1) * size < length) {  // the last token is recomputed: its logits are needed
    const auto hit = blocks.find(offer.chain, text_of_block(s, offer.hits.size(), size));
    if (!hit) break;
    offer.chain = hit->chain;
    offer.hits.push_back(*hit);
    if (blocks.references(hit->block) == 0) ++free_hits;
  }
  const auto found = static_cast<uint32_t>(offer.hits.size());
  offer.fresh = blocks_for(length, size) - found;
  offer.missing = length - found * size;
  offer.room =
      pool.sequences() < pool.sequences_max &&
      static_cast<uint64_t>(offer.fresh) + free_hits + pool.running.size() + pool.arriving <= blocks.free_count();
  return offer;
}

// Whether a sequence is for `pool` rather than for `other`, both having room, and so many `more` coming there, by pool.
bool Scheduler::comes_first(const Pool& pool, const Pool& other, const std::vector<uint32_t>& more) {
  const auto with_it = [&](const Pool& p) {
    return static_cast<double>(p.sequences() + 1 + (p.id < more.size() ? more[p.id] : 0));
  };
  const double load = with_it(pool) * other.share, of_other = with_it(other) * pool.share;
  return load != of_other ? load < of_other : pool.preference < other.preference;
}

bool Scheduler::may_take(const Pool& pool, const Sequence& s, const AdmissionPass& pass) const {
  return !is_passed_by(pool, s, pass) && within_share(pool, s, pass);
}

// Whether its steps fail, it is not to be tried or with another one, and there are pools for the sequence whose steps
// do not fail.
bool Scheduler::is_passed_by(const Pool& pool, const Sequence& s, const AdmissionPass& pass) const {
  if (pool.troubles == 0) return false;
  const bool tried = pool.sequences() > 0 || (pool.id < pass.by_pool.size() && pass.by_pool[pool.id] > 0);
  const auto better = [&](const Pool& other) { return other.troubles == 0 && fits(other.blocks, s); };
  return (pool.passed_by > 0 || tried) && std::any_of(pools_.begin(), pools_.end(), better);
}

// A step that fails takes its requests with it, and many fail in the time that one takes to succeed.
void Scheduler::step_ended(Lane& lane, bool well) {
  Pool& pool = pools_[lane.is.pool];
  const auto fails = [&](const Lane& of) { return of.is.pool == pool.id && of.failed >= kFailedStepsTold; };
  lane.failed = well ? 0 : lane.failed + 1;
  if (well && pool.troubles > 0 && std::none_of(lanes_.begin(), lanes_.end(), fails)) {
    pool.troubles = pool.passed_by = 0;
  } else if (fails(lane) && pool.passed_by == 0) {
    pool.passed_by = std::min(kPassedBy << std::min(pool.troubles++, 16u), kPassedByMax);
  }
}

// Whether a pool with a share, and so many `more` coming, has less than its part of all sequences, those that wait
// among them: who waits for a fast pool is not sent to a slow one, where it would end later, as long as that has its
// part. An empty pool takes any. The parts are of the pools that the sequence fits into and that are not passed by;
// what one that has no room lacks of its part is for those that are not to have less than it.
bool Scheduler::within_share(const Pool& pool, const Sequence& s, const AdmissionPass& pass) const {
  const auto there = [&](const Pool& p) {
    return static_cast<double>(p.sequences() + (p.id < pass.by_pool.size() ? pass.by_pool[p.id] : 0));
  };
  if (pool.share == 0 || there(pool) == 0) return true;
  const auto counts = [&](const Pool& p) { return fits(p.blocks, s) && !is_passed_by(p, s, pass); };
  double shares = 0;
  size_t all = waiting_.size();
  for (const Pool& each : pools_) {
    all += each.sequences();
    if (counts(each)) shares += each.share;
  }
  const double of_each = static_cast<double>(all) / shares;
  double part = of_each * pool.share;
  if (there(pool) < part) return true;
  for (const Pool& other : pools_) {
    if (other.id == pool.id || other.share > pool.share || !counts(other) || offer(other, s).room) continue;
    part += std::max(0.0, of_each * other.share - there(other));
  }
  return there(pool) < part;
}

// The other pool that takes the request, or will as soon as its lane plans a step, `own` being what `pool` offers; null
// where it is for `pool`.
const Scheduler::Pool* Scheduler::better_pool(const Pool& pool, const Sequence& s, const Offer& own,
                                              const AdmissionPass& pass) const {
  const Pool* best = own.room && may_take(pool, s, pass) ? &pool : nullptr;
  for (const Pool& other : pools_) {
    if (other.id == pool.id || (pass.closed >> other.id & 1) != 0) continue;
    if (best != nullptr && !comes_first(other, *best, pass.by_pool)) continue;
    if (may_take(other, s, pass) && offer(other, s).room) best = &other;
  }
  return best == &pool ? nullptr : best;
}

// Nobody who ranks lower takes the room that the request waits for.
void Scheduler::close_pools(const Sequence& s, AdmissionPass& pass) const {
  for (const Pool& pool : pools_)
    if (fits(pool.blocks, s) && !is_passed_by(pool, s, pass)) pass.closed |= uint64_t{1} << pool.id;
}

void Scheduler::start(Pool& pool, Sequence& s, const Offer& offer) {
  waiting_.erase(&s);
  for (const BlockPool::Hit& hit : offer.hits) {
    pool.blocks.retain(hit.block);
    s.blocks.push_back(hit.block);
  }
  for (uint32_t i = 0; i < offer.fresh; ++i) s.blocks.push_back(pool.blocks.allocate());
  s.pool = pool.id;
  s.published = static_cast<uint32_t>(offer.hits.size());
  s.computed = s.committed = s.published * pool.blocks.block_size();
  s.chain = offer.chain;
  s.prefilling = true;
  s.state = Sequence::State::kRunning;
  if (pool.troubles == 0 && !s.admitted_before)
    for (Pool& other : pools_) other.passed_by -= std::min(other.passed_by, 1u);
  if (config_.slots_each > 0) {
    s.slot_base = free_slots_.back();
    free_slots_.pop_back();
  }
  pool.running.insert(std::upper_bound(pool.running.begin(), pool.running.end(), &s, waiting_.key_comp()), &s);
  if (std::exchange(s.admitted_before, true)) {
    counters_.recomputed_tokens += s.rows_missing();
    return;
  }
  s.cached_tokens = s.computed;
  counters_.prefix_queries += s.prompt_length();
  counters_.prefix_hits += s.cached_tokens;
}

// Whether a running sequence is about to compute the next block of `s`: then waiting a step or two saves computing it
// twice. (Choices of one prompt, submitted together.)
bool Scheduler::waits_for_shared_prefix(const Pool& pool, const Sequence& s, const Offer& offer) {
  const size_t found = offer.hits.size(), begin = found * pool.blocks.block_size();
  const size_t end = begin + pool.blocks.block_size();
  if (end >= s.tokens.size()) return false;
  for (const Sequence* r : pool.running) {
    if (r->published != found || r->chain != offer.chain || r->tokens.size() < end || !r->request.use_prefix_cache)
      continue;
    if (std::equal(s.tokens.begin() + static_cast<ptrdiff_t>(begin), s.tokens.begin() + static_cast<ptrdiff_t>(end),
                   r->tokens.begin() + static_cast<ptrdiff_t>(begin)))
      return true;
  }
  return false;
}

}  // namespace motley
