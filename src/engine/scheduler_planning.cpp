// Which rows a lane's next step has.
#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "engine/bucket_rounding.hpp"
#include "engine/scheduler.hpp"

namespace motley {
namespace {

constexpr uint32_t kCatchUpPeriod = 4;  // steps, of which one is everybody's

}  // namespace

std::optional<StepPlan> Scheduler::plan_step(int64_t now_ns) {
  std::optional<StepPlan> plan(std::in_place);
  for (uint64_t evictions = ~evictions_; evictions != evictions_;) {
    evictions = evictions_;  // who is preempted for one lane may be for another that was asked before
    for (Lane& lane : lanes_)
      if (plan_step(lane, now_ns, *plan)) return plan;
  }
  plan.reset();
  return plan;
}

// False leaves `plan` empty.
bool Scheduler::plan_step(Lane& lane, int64_t now_ns, StepPlan& plan) {
  if (lane.in_flight.size() >= static_cast<size_t>(lane.is.pipeline) + lane.is.lookahead) return false;
  Draft draft(lane, pools_[lane.is.pool], plan);
  // Who was to decode may have been preempted instead; then there is room for others. Ends: fewer run each time.
  for (uint64_t evictions = ~evictions_; draft.step.entries.empty();) {
    if (std::exchange(evictions, evictions_) == evictions_) return false;
    fill(draft, now_ns);
  }
  plan.epoch = config_.epoch;
  plan.lane = draft.step.lane = lane.id;
  plan.step = draft.step.id = ++last_step_;
  for (const Entry& entry : draft.step.entries) entry.sequence->last_step = last_step_;
  lane.in_flight.push_back(std::move(draft.step));
  return true;
}

// After a replacement, those that already go on give way to those that do not yet, in all steps but each fourth: what
// was lost is soon computed again, and nobody pauses for much longer than a step takes. (Where one lane prefills and
// another decodes, neither needs the other's steps.)
bool Scheduler::catches_up(Lane& lane) {
  if (!catching_up_ || !config_.options.enable_chunked_prefill || lane.is.role != LaneRole::kBoth) return false;
  catching_up_ = std::any_of(sequences_.begin(), sequences_.end(),
                             [](const auto& each) { return !each.second->finished && each.second->interrupted; });
  return catching_up_ && ++lane.catch_up_steps % kCatchUpPeriod != 0;
}

void Scheduler::fill(Draft& draft, int64_t now_ns) {
  Lane& lane = draft.lane;
  draft.target_ns = lane.budget.target_ns(0, 0);
  // In a pipeline several steps are to be under way. Elsewhere a long one is not queued behind another: who comes
  // meanwhile would wait for both.
  const double alone_ns = lane.is.pipeline == 1 && nobody_decodes() ? lane.budget.alone_ns() : 0;
  if (alone_ns > draft.target_ns && !lane.in_flight.empty()) return;
  draft.target_ns = std::max(draft.target_ns, alone_ns);
  if (catches_up(lane)) {
    plan_prefills(draft, true, now_ns);
    if (!draft.step.entries.empty()) return;
  }
  std::vector<Sequence*> decodes = choose_decodes(lane, draft.pool, true);
  bool room = reserve_blocks(draft.pool, decodes);
  // Where a share finds no block, all that lacks may be with one that is in none: it is to leave, not to be waited for.
  const auto lacks = [&](const Sequence* s) {
    return s->blocks.size() * draft.pool.blocks.block_size() <= s->computed;
  };
  if (!room && std::all_of(decodes.begin(), decodes.end(), lacks)) {
    decodes = choose_decodes(lane, draft.pool, false);
    room = reserve_blocks(draft.pool, decodes);
  }
  const bool prompts_first = std::exchange(lane.prompts_first, false);
  if (prompts_first) plan_prefills(draft, room, now_ns);
  plan_decodes(draft, decodes);
  if (prompts_first) return;
  if (!draft.step.entries.empty()) draft.target_ns = lane.budget.target_ns(draft.step.rows, draft.step.reads);
  plan_prefills(draft, room, now_ns);
}

// Whether nobody waits for a next token: lanes of other pools may run on the same devices, and who lost its place or
// its KV was at its tokens.
bool Scheduler::nobody_decodes() const {
  const auto decodes = [](const Sequence* s) { return !s->prefilling; };
  for (const Pool& pool : pools_)
    if (std::any_of(pool.running.begin(), pool.running.end(), decodes)) return false;
  return std::none_of(sequences_.begin(), sequences_.end(),
                      [](const auto& each) { return !each.second->finished && each.second->known_output() > 0; });
}

// Tokens that steps under way draw are known to their lane alone.
bool Scheduler::may_run(const Sequence& s, const Lane& lane) {
  return s.in_flight == 0 || (s.lane == lane.id && s.in_flight <= lane.is.lookahead);
}

// By rank. Where several steps of a pool's decodes may be under way, each takes its share of the sequences, those that
// ran longest ago, and a lane no more than its steps' shares, so that others find some; all without `shared`.
std::vector<Sequence*> Scheduler::choose_decodes(const Lane& lane, const Pool& pool, bool shared) const {
  std::vector<Sequence*> chosen;
  if (lane.is.role == LaneRole::kPrefill) return chosen;
  chosen.reserve(pool.running.size());
  size_t under_way = 0;  // in this lane
  for (Sequence* s : pool.running) {
    if (s->prefilling) continue;
    under_way += s->in_flight > 0 && s->lane == lane.id ? 1 : 0;
    if (!s->all_drawn() && may_run(*s, lane)) chosen.push_back(s);
  }
  if (shared && pool.decode_steps > 1 && !chosen.empty()) {
    const size_t share = (pool.running.size() + pool.decode_steps - 1) / pool.decode_steps;
    std::stable_sort(chosen.begin(), chosen.end(),
                     [](const Sequence* a, const Sequence* b) { return a->last_step < b->last_step; });
    size_t further = std::max(share * lane.is.pipeline, under_way) - under_way;
    std::erase_if(chosen, [&](const Sequence* s) { return s->in_flight == 0 && (further == 0 || further-- == 0); });
    chosen.resize(std::min<size_t>({chosen.size(), share, config_.step_rows_max(lane.is)}));
    std::sort(chosen.begin(), chosen.end(), waiting_.key_comp());
  }
  return chosen;
}

// Gives every decode the block its next row needs, by rank; preempts where none is left. While a leaving sequence still
// holds blocks, or blocks are held, nobody else is preempted: whoever finds no block sits out this step. Who needs more
// blocks than the pool has leaves it for a larger one. False if anybody lacked one.
bool Scheduler::reserve_blocks(Pool& pool, const std::vector<Sequence*>& decodes) {
  BlockPool& blocks = pool.blocks;
  bool enough = true;
  for (Sequence* s : decodes) {
    if (s->state != Sequence::State::kRunning) continue;
    if (s->blocks.size() * blocks.block_size() > s->computed) continue;
    if (s->blocks.size() == blocks.size()) preempt(*s);
    while (s->state == Sequence::State::kRunning && blocks.free_count() == 0 && pool.draining == 0 && !pool.held) {
      Sequence* victim = choose_victim(pool);
      if (victim == nullptr) break;
      preempt(*victim);
      enough = false;
    }
    if (s->state != Sequence::State::kRunning) continue;
    if (blocks.free_count() == 0) {
      enough = false;
      continue;
    }
    s->blocks.push_back(blocks.allocate());
  }
  return enough;
}

// Whose preemption loses least: the lowest priority class, then the fewest rows to recompute (blocks that another
// running sequence shares survive for certain; what may survive in the cache is not counted: memory is short), then the
// latest arrival. Never the one of highest rank, and only one whose leaving frees a block.
Sequence* Scheduler::choose_victim(const Pool& pool) const {
  const bool by_priority = config_.options.policy == SchedulingPolicy::kPriority;
  using Loss = std::tuple<int64_t, uint32_t, uint64_t>;
  std::optional<Loss> least;
  Sequence* victim = nullptr;
  for (size_t i = 1; i < pool.running.size(); ++i) {
    Sequence* s = pool.running[i];
    uint32_t shared = 0;
    while (shared < s->blocks.size() && pool.blocks.references(s->blocks[shared]) > 1) ++shared;
    if (shared == s->blocks.size()) continue;
    const uint32_t kept = shared * pool.blocks.block_size();
    const Loss loss{by_priority ? -static_cast<int64_t>(s->request.priority) : 0,
                    s->computed - std::min(kept, s->computed), ~s->arrival};
    if (least && *least <= loss) continue;
    least = loss;
    victim = s;
  }
  return victim;
}

void Scheduler::preempt(Sequence& victim) {
  ++evictions_;
  leave(victim);
  settle(victim);
}

uint32_t Scheduler::rows_left(const Draft& draft, uint32_t position) const {
  return draft.lane.budget.rows_beside(draft.step.rows, draft.step.reads, position, draft.target_ns);
}

void Scheduler::append(Draft& draft, Sequence& s, uint32_t rows) {
  const bool draws = s.append_rows(draft.plan, rows, draft.pool.blocks.block_size(), config_.slots_each);
  if (draws) s.prefilling = s.interrupted = false;
  ++s.in_flight;
  s.lane = draft.lane.id;
  draft.step.entries.push_back({.sequence = &s, .end = s.computed, .draws = draws});
  draft.step.rows += rows;
  draft.step.reads += positions_read(rows, s.computed);
}

void Scheduler::plan_decodes(Draft& draft, const std::vector<Sequence*>& decodes) {
  const size_t rows_max = config_.step_rows_max(draft.lane.is);
  for (Sequence* s : decodes) {
    if (draft.plan.tokens.size() >= rows_max) return;
    if (s->state != Sequence::State::kRunning) continue;
    if (s->blocks.size() * draft.pool.blocks.block_size() <= s->computed) continue;
    append(draft, *s, 1);
  }
}

uint32_t Scheduler::short_rows(const Lane& lane) const {
  return std::max(lane.budget.rows() / config_.options.max_concurrent_prefills, kBudgetRowsMin);
}

void Scheduler::plan_prefills(Draft& draft, bool may_admit, int64_t now_ns) {
  if (draft.lane.is.role == LaneRole::kDecode) return;
  std::vector<Sequence*> prefills;
  uint32_t longs = 0;
  for (Sequence* s : draft.pool.running) {
    if (!s->prefilling) continue;
    if (s->rows_missing() > short_rows(draft.lane) && ++longs > config_.options.max_concurrent_prefills) continue;
    if (may_run(*s, draft.lane)) prefills.push_back(s);
  }
  if (may_admit) admit(draft, prefills, longs);
  if (config_.options.enable_chunked_prefill) share_rows(draft, prefills);
  for (const Entry& entry : draft.step.entries)
    if (entry.sequence->times.first_scheduled_ns == 0) entry.sequence->times.first_scheduled_ns = now_ns;
}

// Of what is missing of it.
uint32_t Scheduler::rows_wanted(const Draft& draft, const Sequence& s) {
  const bool bounded = draft.lane.is.chunk_rows > 0 && !draft.plan.tokens.empty();
  return bounded ? std::min(s.rows_missing(), draft.lane.is.chunk_rows) : s.rows_missing();
}

// Rows that prompts may have of the step. Where a chunk's rows are given, one chunk beside rows that decode: sequences
// that began together would else be at their prompts in the same steps, those would take long, and the next ones, of
// tokens alone, would be over soon: a pipeline's stages would wait for both. More only where more wait than decode.
// Where several steps can be under way, each gets its part of several prompts:
// what one took alone would keep the others idle. (A prompt's own parts go one behind the other.)
uint32_t Scheduler::prompt_rows(const Draft& draft, const std::vector<Sequence*>& prefills) const {
  uint32_t left = rows_left(draft, prefills.front()->computed);
  const size_t decode = draft.plan.tokens.size(), wait = prefills.size();
  if (draft.lane.is.chunk_rows > 0 && decode > 0) {
    const size_t at_once = wait > decode ? wait - decode : 1;
    left = static_cast<uint32_t>(std::min<uint64_t>(left, uint64_t{draft.lane.is.chunk_rows} * at_once));
  }
  const auto under_way = static_cast<uint32_t>(draft.lane.in_flight.size());
  if (draft.lane.is.pipeline > under_way + 1 && prefills.size() > 1) {
    uint32_t missing = 0;
    for (const Sequence* s : prefills) missing += rows_wanted(draft, *s);
    const uint32_t steps = draft.lane.is.pipeline - under_way;
    left = std::min(left, std::max(rows_wanted(draft, *prefills.front()), (missing + steps - 1) / steps));
  }
  if (draft.lane.is.buckets.empty() || left == 0) return left;
  RowsAsked asked;
  asked.begun = asked.wanted = static_cast<uint32_t>(draft.plan.tokens.size());
  asked.limit = asked.begun + left;
  asked.strict = config_.has_fixed_steps(draft.lane.is);
  for (const Sequence* s : prefills) asked.wanted += rows_wanted(draft, *s);
  return rounded_rows(draft.lane.is.buckets, asked) - asked.begun;
}

// Half of the rows go to the prompt of the highest rank, so that it always moves on; the rest to the shortest first, so
// that a short prompt does not wait behind a long one; what is left, again by rank. Where several steps can be under
// way, the first takes what it can: a short one finds the next step.
void Scheduler::share_rows(Draft& draft, const std::vector<Sequence*>& prefills) {
  if (prefills.empty()) return;
  Sequence& first = *prefills.front();
  std::vector<std::pair<Sequence*, uint32_t>> shares;
  uint32_t left = prompt_rows(draft, prefills);
  const uint32_t half = std::min(rows_wanted(draft, first), draft.lane.is.pipeline > 1 ? left : (left + 1) / 2);
  left -= half;
  std::vector<Sequence*> rest(prefills.begin() + 1, prefills.end());
  std::stable_sort(rest.begin(), rest.end(),
                   [](const Sequence* a, const Sequence* b) { return a->rows_missing() < b->rows_missing(); });
  for (Sequence* s : rest) {
    const uint32_t rows = std::min(left, rows_wanted(draft, *s));
    left -= rows;
    shares.emplace_back(s, rows);
  }
  const bool whole_bucket = !draft.lane.is.buckets.empty();
  const uint32_t rows_of_first = std::min(rows_wanted(draft, first), half + left);
  if (rows_of_first > 0) append(draft, first, rows_of_first);
  for (const auto& [s, share] : shares) {
    const uint32_t rows = whole_bucket ? share : std::min(share, rows_left(draft, s->computed));
    if (rows > 0) append(draft, *s, rows);
  }
}

}  // namespace motley
