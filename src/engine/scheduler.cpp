#include "engine/scheduler.hpp"

#include <algorithm>
#include <utility>

#include "base/check.hpp"

namespace motley {

bool Scheduler::RankLess::operator()(const Sequence* a, const Sequence* b) const {
  if (by_priority && a->request.priority != b->request.priority) return a->request.priority < b->request.priority;
  return a->arrival < b->arrival;
}

Scheduler::Scheduler(const SchedulerConfig& config, Sink sink, BlockPool::Hash hash)
    : config_(config),
      sink_(std::move(sink)),
      hash_(hash),
      waiting_(RankLess{config.options.policy == SchedulingPolicy::kPriority}) {
  take_config();
}

// Lanes, pools and slots as `config_` says, with nothing in them.
void Scheduler::take_config() {
  lanes_.clear();
  pools_.clear();
  free_slots_.clear();
  for (const KvPoolDescription& from : config_.pools) {
    const auto id = static_cast<uint32_t>(pools_.size());
    Pool& pool = pools_.emplace_back(
        id, BlockPool(from.blocks, from.block_size, config_.options.enable_prefix_caching, hash_, from.section_begins));
    pool.sequences_max = config_.sequences_max(id);
    pool.share = from.share;
    pool.preference = UINT32_MAX;
  }
  for (const LaneDescription& from : config_.lanes) {
    const uint32_t rows = config_.step_rows_max(from), fixed_rows = config_.has_fixed_steps(from) ? rows : 0;
    lanes_.emplace_back(from, static_cast<uint32_t>(lanes_.size()),
                        StepBudget(from.cost, fixed_rows, rows, from.buckets));
    Pool& pool = pools_[from.pool];
    if (from.role != LaneRole::kPrefill) pool.decode_steps += from.pipeline;
    pool.preference = std::min(pool.preference, lanes_.back().id);
  }
  if (config_.slots_each == 0) return;
  for (uint32_t i = config_.options.max_num_seqs; i-- > 0;)
    free_slots_.push_back(static_cast<SlotId>(i * config_.slots_each));
}

uint32_t Scheduler::running() const {
  size_t all = 0;
  for (const Pool& pool : pools_) all += pool.running.size();
  return static_cast<uint32_t>(all);
}

uint32_t Scheduler::steps_in_flight() const {
  size_t all = 0;
  for (const Lane& lane : lanes_) all += lane.in_flight.size();
  return static_cast<uint32_t>(all);
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
  for (Lane& lane : lanes_) {
    if (result.epoch != config_.epoch || lane.in_flight.empty() || lane.in_flight.front().id != result.step) continue;
    Step step = std::move(lane.in_flight.front());
    lane.in_flight.pop_front();
    return step;
  }
  return error(MOTLEY_INTERNAL,
               "a result of step {} (epoch {}) came, which is no lane's oldest step under way (epoch {})", result.step,
               result.epoch, config_.epoch);
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
  uint64_t lost = 0;
  for (const Transfer& never_taken : std::exchange(transfers_, {})) {
    Sequence& s = *sequences_.at(never_taken.id);
    if (!s.finished) lost += s.committed;
    s.interrupted |= s.committed > 0;
    moved(s.id(), false);
  }
  CHECK(steps_in_flight() == 0 && transfers_in_flight_ == 0, "a restart with {} steps and {} moves under way",
        steps_in_flight(), transfers_in_flight_);
  for (const Pool& pool : pools_)
    CHECK(pool.draining == 0, "{} sequences hold blocks without a step under way", pool.draining);
  held_.clear();
  late_failed_ = late_taken_ = false;
  config_ = config;
  take_config();
  const std::vector<Sequence*> all = by_rank();
  for (Sequence* s : all) {
    lost += s->committed;
    s->interrupted |= s->committed > 0;
    CHECK(s->unknown == 0, "request {} waits again with {} tokens unknown", s->id(), s->unknown);
    s->forget_progress();
    waiting_.insert(s);
  }
  for (Sequence* s : all) fit(*s);
  catching_up_ |= lost > 0;
  return lost;
}

Status Scheduler::apply(StepResult result, int64_t now_ns) {
  ASSIGN_OR_RETURN(const Step step, take_step(result));
  const Status status = check_result(step, result);
  if (status.ok()) lanes_[step.lane].budget.observe(step.rows, step.reads, static_cast<double>(result.busy_ns));
  step_ended(lanes_[step.lane], status.ok());
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
  BlockPool& pool = pools_[s.pool].blocks;
  const uint32_t size = pool.block_size();
  const uint32_t full = std::min(s.committed, static_cast<uint32_t>(s.tokens.size())) / size;
  for (; s.published < full; ++s.published) {
    s.chain = pool.publish(s.blocks[s.published], s.chain, text_of_block(s, s.published, size));
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
  if (s.state != Sequence::State::kLeaving && s.state != Sequence::State::kMoving) leave(s);
  update.finished = reason;
  sink_(s, std::move(update));
}

void Scheduler::leave(Sequence& s) {
  if (s.state == Sequence::State::kWaiting) waiting_.erase(&s);
  if (s.state == Sequence::State::kRunning) {
    std::vector<Sequence*>& running = pools_[s.pool].running;
    running.erase(std::find(running.begin(), running.end(), &s));
  }
  s.state = Sequence::State::kLeaving;
  if (s.in_flight == 0) return;
  s.draining = true;
  ++pools_[s.pool].draining;
}

// Once a leaving sequence has no step under way: gives back what it holds, and ends it or lets it move or wait again.
void Scheduler::settle(Sequence& s) {
  if (s.state != Sequence::State::kLeaving || s.in_flight > 0) return;
  if (!s.finished && move_on(s)) return;
  give_back(s);
}

void Scheduler::give_back(Sequence& s, bool preempted) {
  Pool& pool = pools_[s.pool];
  if (std::exchange(s.draining, false)) --pool.draining;
  for (size_t i = s.blocks.size(); i-- > 0;) pool.blocks.release(s.blocks[i]);
  s.blocks.clear();
  if (s.slot_base != MOTLEY_NONE) free_slots_.push_back(std::exchange(s.slot_base, MOTLEY_NONE));
  if (s.finished) {
    sequences_.erase(s.id());
    return;
  }
  CHECK(s.unknown == 0, "request {} waits again with {} tokens unknown", s.id(), s.unknown);
  if (preempted) ++counters_.preemptions;
  s.forget_progress();
  waiting_.insert(&s);
}

}  // namespace motley
