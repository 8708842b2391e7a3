#include "engine/scheduler.hpp"

#include <algorithm>
#include <tuple>
#include <utility>

#include "base/check.hpp"

namespace motley {
namespace {

// Waiting requests that one step passes over because a running one computes their prefix just now.
constexpr uint32_t kPassedOverMax = 16;
constexpr uint32_t kCatchUpPeriod = 4;  // steps, of which one is everybody's

uint32_t blocks_for(uint32_t positions, uint32_t block_size) { return (positions + block_size - 1) / block_size; }

}  // namespace

bool Scheduler::RankLess::operator()(const Sequence* a, const Sequence* b) const {
  if (by_priority && a->request.priority != b->request.priority) return a->request.priority < b->request.priority;
  return a->arrival < b->arrival;
}

Scheduler::Scheduler(const SchedulerConfig& config, Sink sink, BlockPool::Hash hash)
    : config_(config),
      sink_(std::move(sink)),
      hash_(hash),
      pool_(config.pool.blocks, config.pool.block_size, config.options.enable_prefix_caching, hash),
      budget_(config.lane.cost, config.chosen_budget ? 0 : config.options.max_num_batched_tokens, config.lane.rows_max),
      waiting_(RankLess{config.options.policy == SchedulingPolicy::kPriority}) {
  make_slots();
}

void Scheduler::make_slots() {
  free_slots_.clear();
  if (config_.slots_each == 0) return;
  for (uint32_t i = config_.options.max_num_seqs; i-- > 0;)
    free_slots_.push_back(static_cast<SlotId>(i * config_.slots_each));
}

void Scheduler::add(Request request, int64_t now_ns) {
  const auto prompt = static_cast<uint32_t>(request.prompt.size());
  const uint32_t room = config_.options.max_model_len - std::min(config_.options.max_model_len, prompt);
  const uint32_t max_output = std::min(request.params.max_tokens, room);
  const RequestId id = request.id;
  auto made = std::make_unique<Sequence>(std::move(request), max_output, ++arrivals_, now_ns);
  Sequence& sequence = *made;
  waiting_.insert(&sequence);
  const bool inserted = sequences_.emplace(id, std::move(made)).second;
  CHECK(inserted, "request id {} is in use", id);
  ++unfinished_;
  fit(sequence);
}

// Takes the limits in force for the sequence; ends it where they leave no room for another token.
void Scheduler::fit(Sequence& s) {
  const uint32_t length = config_.options.max_model_len;
  s.output_room = std::min(s.max_output(), length - std::min(length, s.prompt_length()));
  if (s.known_output() < s.output_room) return;
  RequestUpdate update = update_of(s);
  update.status = no_room(s);
  finish(s, FinishReason::kError, std::move(update));
  settle(s);
}

Status Scheduler::no_room(const Sequence& s) const {
  return error(
      MOTLEY_RESOURCE_EXHAUSTED,
      "the devices in service have changed and serve {} positions now: not enough for a prompt of {} tokens and {} "
      "generated ones; ask for less, or try again when they are back",
      config_.options.max_model_len, s.prompt_length(), s.max_output());
}

void Scheduler::end(RequestId id, FinishReason reason) {
  const auto at = sequences_.find(id);
  if (at == sequences_.end() || at->second->finished) return;
  Sequence& sequence = *at->second;
  finish(sequence, reason, update_of(sequence));
  settle(sequence);
}

void Scheduler::end_all(FinishReason reason, const Status& status) {
  std::vector<Sequence*> all;
  for (const auto& [id, sequence] : sequences_)
    if (!sequence->finished) all.push_back(sequence.get());
  std::sort(all.begin(), all.end(), [](const Sequence* a, const Sequence* b) { return a->arrival < b->arrival; });
  for (Sequence* sequence : all) {
    RequestUpdate update = update_of(*sequence);
    update.status = status;
    finish(*sequence, reason, std::move(update));
    settle(*sequence);
  }
}

// ---- planning

std::optional<StepPlan> Scheduler::plan_step(int64_t now_ns) {
  if (in_flight_.size() >= config_.steps_max) return std::nullopt;
  Draft draft;
  // Who was to decode may have been preempted instead; then there is room for others. Ends: fewer run each time.
  for (uint64_t preemptions = ~counters_.preemptions; draft.step.entries.empty();) {
    if (std::exchange(preemptions, counters_.preemptions) == counters_.preemptions) return std::nullopt;
    fill(draft, now_ns);
  }
  draft.plan.epoch = config_.epoch;
  draft.plan.step = draft.step.id = ++last_step_;
  for (const Entry& entry : draft.step.entries) entry.sequence->last_step = last_step_;
  in_flight_.push_back(std::move(draft.step));
  return std::move(draft.plan);
}

// After a replacement, those that already go on give way to those that do not yet, in all steps but each fourth: what
// was lost is soon computed again, and nobody pauses for much longer than a step takes.
bool Scheduler::catches_up() {
  if (!catching_up_ || !config_.options.enable_chunked_prefill) return false;
  catching_up_ = std::any_of(sequences_.begin(), sequences_.end(),
                             [](const auto& each) { return !each.second->finished && each.second->interrupted; });
  return catching_up_ && ++catch_up_steps_ % kCatchUpPeriod != 0;
}

void Scheduler::fill(Draft& draft, int64_t now_ns) {
  draft.target_ns = budget_.target_ns(0, 0);
  if (catches_up()) {
    plan_prefills(draft, true, now_ns);
    if (!draft.step.entries.empty()) return;
  }
  const std::vector<Sequence*> decodes = choose_decodes();
  const bool room = reserve_blocks(decodes);
  const bool prompts_first = std::exchange(prompts_first_, false);
  if (prompts_first) plan_prefills(draft, room, now_ns);
  plan_decodes(draft, decodes);
  if (!prompts_first) draft.target_ns = budget_.target_ns(draft.step.rows, draft.step.reads);
  if (!prompts_first) plan_prefills(draft, room, now_ns);
}

bool Scheduler::can_decode(const Sequence& s) const {
  return s.state == Sequence::State::kRunning && !s.prefilling && !s.all_drawn() && s.in_flight <= config_.lookahead;
}

// By rank. With a pipeline, each step takes its share of the sequences, those that ran longest ago.
std::vector<Sequence*> Scheduler::choose_decodes() {
  std::vector<Sequence*> chosen;
  chosen.reserve(running_.size());
  for (Sequence* s : running_)
    if (can_decode(*s)) chosen.push_back(s);
  if (config_.pipeline > 1 && !chosen.empty()) {
    const size_t share = (running_.size() + config_.pipeline - 1) / config_.pipeline;
    std::stable_sort(chosen.begin(), chosen.end(),
                     [](const Sequence* a, const Sequence* b) { return a->last_step < b->last_step; });
    chosen.resize(std::min(chosen.size(), share));
    std::sort(chosen.begin(), chosen.end(), waiting_.key_comp());
  }
  return chosen;
}

// Gives every decode the block its next row needs, by rank; preempts where none is left. While a leaving sequence still
// holds blocks, nobody else is preempted: whoever finds no block sits out this step. False if anybody lacked one.
bool Scheduler::reserve_blocks(const std::vector<Sequence*>& decodes) {
  bool enough = true;
  for (Sequence* s : decodes) {
    if (s->state != Sequence::State::kRunning) continue;
    if (s->blocks.size() * pool_.block_size() > s->computed) continue;
    while (pool_.free_count() == 0 && draining_ == 0) {
      Sequence* victim = choose_victim();
      if (victim == nullptr) break;
      preempt(*victim);
      enough = false;
      if (victim == s) break;
    }
    if (s->state != Sequence::State::kRunning) continue;
    if (pool_.free_count() == 0) {
      enough = false;
      continue;
    }
    s->blocks.push_back(pool_.allocate());
  }
  return enough;
}

// Whose preemption loses least: the lowest priority class, then the fewest rows to recompute (blocks that another
// running sequence shares survive for certain; what may survive in the cache is not counted: memory is short), then the
// latest arrival. Never the one of highest rank, and only one whose leaving frees a block.
Sequence* Scheduler::choose_victim() {
  const bool by_priority = config_.options.policy == SchedulingPolicy::kPriority;
  using Loss = std::tuple<int64_t, uint32_t, uint64_t>;
  std::optional<Loss> least;
  Sequence* victim = nullptr;
  for (size_t i = 1; i < running_.size(); ++i) {
    Sequence* s = running_[i];
    uint32_t shared = 0;
    while (shared < s->blocks.size() && pool_.references(s->blocks[shared]) > 1) ++shared;
    if (shared == s->blocks.size()) continue;
    const uint32_t kept = shared * pool_.block_size();
    const Loss loss{by_priority ? -static_cast<int64_t>(s->request.priority) : 0,
                    s->computed - std::min(kept, s->computed), ~s->arrival};
    if (least && *least <= loss) continue;
    least = loss;
    victim = s;
  }
  return victim;
}

void Scheduler::preempt(Sequence& victim) {
  ++counters_.preemptions;
  leave(victim);
  settle(victim);
}

uint32_t Scheduler::rows_left(const Draft& draft, uint32_t position) const {
  return budget_.rows_beside(draft.step.rows, draft.step.reads, position, draft.target_ns);
}

void Scheduler::append(Draft& draft, Sequence& s, uint32_t rows) {
  const bool draws = s.append_rows(draft.plan, rows, pool_.block_size(), config_.slots_each);
  if (draws) s.prefilling = s.interrupted = false;
  ++s.in_flight;
  draft.step.entries.push_back({.sequence = &s, .end = s.computed, .draws = draws});
  draft.step.rows += rows;
  draft.step.reads += positions_read(rows, s.computed);
}

void Scheduler::plan_decodes(Draft& draft, const std::vector<Sequence*>& decodes) {
  const size_t rows_max = config_.chosen_budget ? config_.lane.rows_max : config_.options.max_num_batched_tokens;
  for (Sequence* s : decodes) {
    if (draft.plan.tokens.size() >= rows_max) return;
    if (s->state != Sequence::State::kRunning || s->blocks.size() * pool_.block_size() <= s->computed) continue;
    append(draft, *s, 1);
  }
}

uint32_t Scheduler::short_rows() const {
  return std::max(budget_.rows() / config_.options.max_concurrent_prefills, kBudgetRowsMin);
}

void Scheduler::plan_prefills(Draft& draft, bool may_admit, int64_t now_ns) {
  std::vector<Sequence*> prefills;
  uint32_t longs = 0;
  for (Sequence* s : running_) {
    if (!s->prefilling) continue;
    if (s->rows_missing() > short_rows() && ++longs > config_.options.max_concurrent_prefills) continue;
    if (s->in_flight <= config_.lookahead) prefills.push_back(s);
  }
  if (may_admit) admit(draft, prefills, longs);
  if (config_.options.enable_chunked_prefill) share_rows(draft, prefills);
  for (const Entry& entry : draft.step.entries)
    if (entry.sequence->times.first_scheduled_ns == 0) entry.sequence->times.first_scheduled_ns = now_ns;
}

// Half of the rows go to the prompt of the highest rank, so that it always moves on; the rest to the shortest first, so
// that a short prompt does not wait behind a long one; what is left, again by rank.
void Scheduler::share_rows(Draft& draft, const std::vector<Sequence*>& prefills) {
  if (prefills.empty()) return;
  Sequence& first = *prefills.front();
  std::vector<std::pair<Sequence*, uint32_t>> shares;
  uint32_t left = rows_left(draft, first.computed);
  const uint32_t half = prefills.size() == 1 ? left : std::min(first.rows_missing(), (left + 1) / 2);
  left -= half;
  std::vector<Sequence*> rest(prefills.begin() + 1, prefills.end());
  std::stable_sort(rest.begin(), rest.end(),
                   [](const Sequence* a, const Sequence* b) { return a->rows_missing() < b->rows_missing(); });
  for (Sequence* s : rest) {
    const uint32_t rows = std::min(left, s->rows_missing());
    left -= rows;
    shares.emplace_back(s, rows);
  }
  const uint32_t rows_of_first = std::min(first.rows_missing(), half + left);
  if (rows_of_first > 0) append(draft, first, rows_of_first);
  for (const auto& [s, share] : shares) {
    const uint32_t rows = std::min(share, rows_left(draft, s->computed));
    if (rows > 0) append(draft, *s, rows);
  }
}

// Takes waiting requests by rank while there is room, and stops at the first that finds none, so that nobody is passed
// for good. While enough long prompts are under way, further ones are passed by short ones that fit into the step
// (`longs` counts them; the first of them always moves on, so that this too ends). Without chunking, an admitted prompt
// is put into the step at once, in one piece.
void Scheduler::admit(Draft& draft, std::vector<Sequence*>& prefills, uint32_t longs) {
  const bool chunked = config_.options.enable_chunked_prefill;
  const uint32_t brief = short_rows();
  uint32_t claimed = 0;  // rows of the short prompts that are not in the draft yet
  for (const Sequence* s : prefills) claimed += s->rows_missing() > brief ? 0 : s->rows_missing();
  uint32_t passed_over = 0;
  for (auto at = waiting_.begin(); at != waiting_.end();) {
    Sequence& s = **at;
    if (running_.size() + draining_ >= config_.options.max_num_seqs) return;
    const uint32_t left = rows_left(draft, 0);
    if (left <= claimed) return;
    const bool enough_longs = longs >= config_.options.max_concurrent_prefills;
    ++at;  // before `s` leaves the set
    if (enough_longs && passed_over >= kPassedOverMax && s.rows_missing() > brief) continue;  // without a look-up
    const Admission outcome = try_admit(s, chunked ? 1 : left, enough_longs ? brief : s.rows_missing());
    if (outcome == Admission::kPassOver && ++passed_over <= kPassedOverMax) continue;
    if (outcome != Admission::kAdmitted) return;
    prefills.push_back(&s);
    if (s.rows_missing() > brief)
      ++longs;
    else if (chunked)
      claimed += s.rows_missing();
    if (!chunked) append(draft, s, s.rows_missing());
  }
}

// A request is admitted when all its known text fits and every running sequence could still take a block; an empty pool
// takes any.
Scheduler::Admission Scheduler::try_admit(Sequence& s, uint32_t rows_left, uint32_t missing_max) {
  const uint32_t size = pool_.block_size();
  const bool cached = s.request.use_prefix_cache && config_.options.enable_prefix_caching;
  const auto length = static_cast<uint32_t>(s.tokens.size());
  std::vector<BlockPool::Hit> hits;
  ChainId chain = kChainRoot;
  uint32_t free_hits = 0;
  while (cached && (hits.size() + 1) * size < length) {  // the last token is always recomputed: its logits are needed
    const auto hit = pool_.find(chain, std::span(s.tokens).subspan(hits.size() * size, size));
    if (!hit) break;
    chain = hit->chain;
    hits.push_back(*hit);
    if (pool_.references(hit->block) == 0) ++free_hits;
  }
  const auto found = static_cast<uint32_t>(hits.size());
  if (length - found * size > missing_max) return Admission::kPassOver;
  if (cached && waits_for_shared_prefix(s, found, chain)) return Admission::kPassOver;
  const uint32_t fresh = blocks_for(length, size) - found;
  if (static_cast<uint64_t>(fresh) + free_hits + running_.size() > pool_.free_count()) return Admission::kNoRoom;
  if (!config_.options.enable_chunked_prefill && length - found * size > rows_left) {
    prompts_first_ = true;
    return Admission::kNoRoom;
  }
  waiting_.erase(&s);
  for (const BlockPool::Hit& hit : hits) {
    pool_.retain(hit.block);
    s.blocks.push_back(hit.block);
  }
  for (uint32_t i = 0; i < fresh; ++i) s.blocks.push_back(pool_.allocate());
  start(s, found, chain);
  return Admission::kAdmitted;
}

void Scheduler::start(Sequence& s, uint32_t found, ChainId chain) {
  s.computed = s.committed = found * pool_.block_size();
  s.published = found;
  s.chain = chain;
  s.prefilling = true;
  s.state = Sequence::State::kRunning;
  if (config_.slots_each > 0) {
    s.slot_base = free_slots_.back();
    free_slots_.pop_back();
  }
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &s, waiting_.key_comp()), &s);
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
bool Scheduler::waits_for_shared_prefix(const Sequence& s, uint32_t found, ChainId chain) const {
  const size_t begin = static_cast<size_t>(found) * pool_.block_size(), end = begin + pool_.block_size();
  if (end >= s.tokens.size()) return false;
  for (const Sequence* r : running_) {
    if (r->published != found || r->chain != chain || r->tokens.size() < end || !r->request.use_prefix_cache) continue;
    if (std::equal(s.tokens.begin() + static_cast<ptrdiff_t>(begin), s.tokens.begin() + static_cast<ptrdiff_t>(end),
                   r->tokens.begin() + static_cast<ptrdiff_t>(begin)))
      return true;
  }
  return false;
}

// ---- results

Status Scheduler::check_result(const Step& step, const StepResult& result) const {
  if (!result.status.ok()) return result.status;
  size_t expected = 0;
  for (const Entry& entry : step.entries) expected += entry.draws ? 1 : 0;
  if (result.tokens.size() != expected)
    return error(MOTLEY_INTERNAL, "step {}: {} tokens came back for {} logit rows", step.id, result.tokens.size(),
                 expected);
  for (const SampledToken& token : result.tokens)
    if (token.id < 0 || static_cast<uint32_t>(token.id) >= config_.vocab_size)
      return error(MOTLEY_INTERNAL, "step {}: token id {} is outside the vocabulary of {}", step.id, token.id,
                   config_.vocab_size);
  return ok_status();
}

Result<Scheduler::Step> Scheduler::take_step(const StepResult& result) {
  if (in_flight_.empty() || in_flight_.front().id != result.step || result.epoch != config_.epoch)
    return error(MOTLEY_INTERNAL, "a result of step {} (epoch {}) came, but the oldest step under way is {} (epoch {})",
                 result.step, result.epoch, in_flight_.empty() ? 0 : in_flight_.front().id, config_.epoch);
  Step step = std::move(in_flight_.front());
  in_flight_.pop_front();
  return step;
}

Status Scheduler::discard(const StepResult& result) {
  ASSIGN_OR_RETURN(const Step step, take_step(result));
  for (const Entry& entry : step.entries) {
    Sequence& s = *entry.sequence;
    --s.in_flight;
    if (entry.draws) --s.unknown;
    settle(s);
  }
  return ok_status();
}

uint64_t Scheduler::restart(const SchedulerConfig& config) {
  CHECK(in_flight_.empty(), "a restart with {} steps under way", in_flight_.size());
  config_ = config;
  pool_ = BlockPool(config.pool.blocks, config.pool.block_size, config.options.enable_prefix_caching, hash_);
  budget_ = StepBudget(config.lane.cost, config.chosen_budget ? 0 : config.options.max_num_batched_tokens,
                       config.lane.rows_max);
  make_slots();
  running_.clear();
  prompts_first_ = false;
  CHECK(draining_ == 0, "{} sequences hold blocks without a step under way", draining_);
  std::vector<Sequence*> all;
  for (const auto& [id, sequence] : sequences_) all.push_back(sequence.get());
  std::sort(all.begin(), all.end(), waiting_.key_comp());
  uint64_t lost = 0;
  for (Sequence* s : all) {
    lost += s->committed;
    s->interrupted |= s->committed > 0;
    CHECK(s->unknown == 0, "request {} waits again with {} tokens unknown", s->id(), s->unknown);
    s->forget_progress();
    waiting_.insert(s);
  }
  for (Sequence* s : all) fit(*s);
  catching_up_ |= lost > 0;
  catch_up_steps_ = 0;
  return lost;
}

Status Scheduler::apply(StepResult result, int64_t now_ns) {
  ASSIGN_OR_RETURN(const Step step, take_step(result));
  const Status status = check_result(step, result);
  if (status.ok()) budget_.observe(step.rows, step.reads, static_cast<double>(result.busy_ns));
  size_t next = 0;
  for (const Entry& entry : step.entries) {
    Sequence& s = *entry.sequence;
    --s.in_flight;
    if (status.ok()) {
      s.committed = std::max(s.committed, entry.end);
      SampledToken* token = entry.draws ? &result.tokens[next++] : nullptr;
      if (token != nullptr && !s.finished) accept(s, std::move(*token), now_ns);
      publish(s);
    } else if (s.broken = true; !s.finished) {
      RequestUpdate update = update_of(s);
      update.status = status;
      finish(s, FinishReason::kError, std::move(update));
    }
    settle(s);
  }
  return ok_status();
}

void Scheduler::accept(Sequence& s, SampledToken token, int64_t now_ns) {
  const TokenId id = token.id;
  s.learn(id);
  s.times.previous_token_ns = s.times.last_token_ns;
  s.times.last_token_ns = now_ns;
  if (s.times.first_token_ns == 0) s.times.first_token_ns = now_ns;
  RequestUpdate update = update_of(s);
  update.tokens.push_back(std::move(token));
  if (s.is_end(id)) {
    update.stop_token = id;
    finish(s, FinishReason::kStop, std::move(update));
  } else if (s.known_output() >= s.max_output()) {
    finish(s, FinishReason::kLength, std::move(update));
  } else if (s.known_output() >= s.output_room) {
    update.status = no_room(s);
    finish(s, FinishReason::kError, std::move(update));
  } else {
    sink_(s, std::move(update));
  }
}

// Full blocks whose rows have run and whose text is known become shareable. (Text of a sequence that ended while a
// further step was under way may stay unknown.)
void Scheduler::publish(Sequence& s) {
  if (!config_.options.enable_prefix_caching || !s.request.use_prefix_cache || s.broken) return;
  const uint32_t size = pool_.block_size();
  const uint32_t full = std::min(s.committed, static_cast<uint32_t>(s.tokens.size())) / size;
  for (; s.published < full; ++s.published) {
    const auto text = std::span<const TokenId>(s.tokens).subspan(static_cast<size_t>(s.published) * size, size);
    s.chain = pool_.publish(s.blocks[s.published], s.chain, text);
  }
}

RequestUpdate Scheduler::update_of(const Sequence& s) const {
  RequestUpdate update;
  update.id = s.id();
  update.cached_tokens = s.cached_tokens;
  update.first_scheduled_ns = s.times.first_scheduled_ns;
  return update;
}

void Scheduler::finish(Sequence& s, FinishReason reason, RequestUpdate update) {
  s.finished = true;
  --unfinished_;
  if (s.state != Sequence::State::kLeaving) leave(s);
  update.finished = reason;
  sink_(s, std::move(update));
}

void Scheduler::leave(Sequence& s) {
  if (s.state == Sequence::State::kWaiting) waiting_.erase(&s);
  if (s.state == Sequence::State::kRunning) running_.erase(std::find(running_.begin(), running_.end(), &s));
  s.state = Sequence::State::kLeaving;
  if (s.in_flight == 0) return;
  s.draining = true;
  ++draining_;
}

// Once a leaving sequence has no step under way: gives back what it holds, and ends it or lets it wait again.
void Scheduler::settle(Sequence& s) {
  if (s.state != Sequence::State::kLeaving || s.in_flight > 0) return;
  if (std::exchange(s.draining, false)) --draining_;
  for (size_t i = s.blocks.size(); i-- > 0;) pool_.release(s.blocks[i]);
  s.blocks.clear();
  if (s.slot_base != MOTLEY_NONE) free_slots_.push_back(std::exchange(s.slot_base, MOTLEY_NONE));
  if (s.finished) {
    sequences_.erase(s.id());
    return;
  }
  CHECK(s.unknown == 0, "request {} waits again with {} tokens unknown", s.id(), s.unknown);
  s.forget_progress();
  waiting_.insert(&s);
}

}  // namespace motley
