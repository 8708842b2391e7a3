#include "llm/run.hpp"

#include <algorithm>
#include <utility>

namespace motley {
namespace {

constexpr size_t kInFlightMin = 1024;  // of one run; more wait here, so that many runs fit into the engine's queue

std::vector<Logprob> logprobs_of(const SampledToken& token, size_t alternatives, const Tokenizer& tokenizer) {
  std::vector<Logprob> list = {{token.id, token.logprob, std::nullopt, tokenizer.token_bytes(token.id, true)}};
  for (size_t i = 0; i < std::min(alternatives, token.top.size()); ++i) {
    const auto rank = static_cast<uint32_t>(i + 1);
    if (token.top[i].id == token.id) {
      list.front().rank = rank;
      continue;
    }
    list.push_back({token.top[i].id, token.top[i].logprob, rank, tokenizer.token_bytes(token.top[i].id, true)});
  }
  return list;
}

}  // namespace

Run::Impl::Impl(std::shared_ptr<Instance> instance, std::vector<RunItem> items)
    : instance_(std::move(instance)),
      inbox_(std::make_shared<Inbox>()),
      items_(std::move(items)),
      in_flight_max_(std::max<size_t>(kInFlightMin, 2 * size_t{instance_->engine().options().max_num_seqs})) {
  states_.resize(items_.size());
  for (size_t i = 0; i < items_.size(); ++i) {
    states_[i].first_answer = answers_.size();
    states_[i].open = items_[i].n;
    for (uint32_t choice = 0; choice < items_[i].n; ++choice) {
      Answer& answer = answers_.emplace_back();
      answer.item = i;
      answer.output.index = choice;
      if (items_[i].sampling.logprobs < 0) continue;
      answer.output.cumulative_logprob = 0;
      answer.output.logprobs.emplace();
    }
  }
  open_ = answers_.size();
}

Run::Impl::~Impl() { cancel(); }

Result<std::unique_ptr<Run::Impl>> Run::Impl::start(std::shared_ptr<Instance> instance, std::vector<RunItem> items) {
  std::unique_ptr<Impl> run(new Impl(std::move(instance), std::move(items)));
  RETURN_IF_ERROR(run->submit_more());
  return run;
}

Status Run::Impl::submit_more() {
  while (next_ < answers_.size() && in_flight_ < in_flight_max_ && !cancelled()) {
    const Result<RequestId> id = submit(next_);
    // Others fill the queue: what runs here will make room.
    if (id.error().code() == MOTLEY_RESOURCE_EXHAUSTED && in_flight_ > 0) return ok_status();
    RETURN_IF_ERROR(id.error());
    answers_[next_++].request = *id;
    ++in_flight_;
    bool late = false;
    {
      std::lock_guard lock(mutex_);
      requests_.push_back(*id);
      late = cancelled_;
    }
    if (late) instance_->engine().abort(*id);
  }
  return ok_status();
}

Result<RequestId> Run::Impl::submit(size_t index) {
  Answer& answer = answers_[index];
  const RunItem& item = items_[answer.item];
  answer.stream.emplace(instance_->tokenizer(), item.text_options);
  Request request;
  request.prompt = item.tokens;
  request.params = item.sampling;
  request.params.choice = answer.output.index;
  request.end_tokens = instance_->tokenizer().end_tokens();
  request.on_update = [inbox = inbox_, index](RequestUpdate update) { inbox->push(index, std::move(update)); };
  return instance_->engine().submit(std::move(request));
}

void Run::Impl::cancel() {
  std::vector<RequestId> requests;
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(cancelled_, true)) return;
    requests.swap(requests_);
  }
  for (const RequestId id : requests) instance_->engine().abort(id);
}

bool Run::Impl::cancelled() const {
  std::lock_guard lock(mutex_);
  return cancelled_;
}

void Run::Impl::abort_rest() {
  for (; next_ < answers_.size(); ++next_) {
    finish(answers_[next_], finish_reason_name(FinishReason::kAborted));
    announce(answers_[next_].item);
  }
}

Status Run::Impl::pump(const Inbox::Deadline& deadline) {
  RETURN_IF_ERROR(failure_);
  RETURN_IF_ERROR(submit_more());
  if (cancelled()) abort_rest();
  if (open_ == 0) return ok_status();
  for (Inbox::Letter& letter : inbox_->take(deadline)) apply(letter.answer, std::move(letter.update));
  if (!failure_.ok()) cancel();
  return failure_;
}

void Run::Impl::apply(size_t index, RequestUpdate update) {
  Answer& answer = answers_[index];
  states_[answer.item].cached_tokens = std::max(states_[answer.item].cached_tokens, update.cached_tokens);
  if (update.finished) --in_flight_;
  if (update.finished == FinishReason::kError && failure_.ok()) failure_ = update.status;
  if (answer.finished) return;
  for (size_t i = 0; i < update.tokens.size() && !answer.finished; ++i) {
    take_token(answer, update.tokens[i]);
    // The token that ended the request is no text, unless asked for.
    const bool ended = update.finished && update.stop_token && i + 1 == update.tokens.size();
    if (ended && !items_[answer.item].text_options.include_stop_in_output) continue;
    answer.output.text += answer.stream->push(update.tokens[i].id);
    if (!answer.stream->stopped()) continue;
    answer.output.stop_string = answer.stream->stop_match();
    finish(answer, finish_reason_name(FinishReason::kStop));
    if (!update.finished) instance_->engine().finish(answer.request);
  }
  if (update.finished && !answer.finished) finish_by_update(answer, update);
  announce(answer.item);
}

void Run::Impl::take_token(Answer& answer, const SampledToken& token) {
  CompletionOutput& output = answer.output;
  output.token_ids.push_back(token.id);
  if (!output.logprobs) return;
  *output.cumulative_logprob += static_cast<double>(token.logprob);
  const auto alternatives = static_cast<size_t>(items_[answer.item].sampling.logprobs);
  output.logprobs->push_back(logprobs_of(token, alternatives, instance_->tokenizer()));
}

void Run::Impl::finish(Answer& answer, std::string_view reason) {
  answer.finished = true;
  answer.output.finish_reason = std::string(reason);
  --states_[answer.item].open;
  --open_;
}

void Run::Impl::finish_by_update(Answer& answer, const RequestUpdate& update) {
  answer.output.text += answer.stream->finish();
  const std::vector<TokenId>& stops = items_[answer.item].sampling.stop_token_ids;
  if (update.stop_token && std::find(stops.begin(), stops.end(), *update.stop_token) != stops.end()) {
    answer.output.stop_token = update.stop_token;
  }
  finish(answer, finish_reason_name(*update.finished));
}

void Run::Impl::announce(size_t item) {
  if (!std::exchange(states_[item].has_news, true)) news_.push_back(item);
}

RequestOutput Run::Impl::piece_of(size_t index) {
  ItemState& state = states_[index];
  RequestOutput piece;
  piece.index = static_cast<uint32_t>(index);
  piece.num_cached_tokens = state.cached_tokens;
  piece.finished = state.open == 0;
  if (!std::exchange(state.begun, true)) {
    piece.prompt = items_[index].text;
    piece.prompt_token_ids = items_[index].tokens;
  }
  for (size_t i = state.first_answer; i < state.first_answer + items_[index].n; ++i) {
    Answer& answer = answers_[i];
    const CompletionOutput& whole = answer.output;
    if (answer.tokens_told == whole.token_ids.size() && answer.finished == answer.finish_told) continue;
    const auto from = static_cast<std::ptrdiff_t>(std::exchange(answer.tokens_told, whole.token_ids.size()));
    CompletionOutput& part = piece.outputs.emplace_back();
    part.index = whole.index;
    part.text = whole.text.substr(std::exchange(answer.text_told, whole.text.size()));
    part.token_ids.assign(whole.token_ids.begin() + from, whole.token_ids.end());
    part.cumulative_logprob = whole.cumulative_logprob;
    if (whole.logprobs) part.logprobs.emplace(whole.logprobs->begin() + from, whole.logprobs->end());
    part.finish_reason = whole.finish_reason;
    part.stop_string = whole.stop_string;
    part.stop_token = whole.stop_token;
    answer.finish_told = answer.finished;
  }
  return piece;
}

Result<std::optional<RequestOutput>> Run::Impl::next(const Inbox::Deadline& deadline) {
  while (news_.empty() && open_ > 0) {
    RETURN_IF_ERROR(pump(deadline));
    if (news_.empty() && deadline && std::chrono::steady_clock::now() >= *deadline) break;
  }
  RETURN_IF_ERROR(failure_);
  if (news_.empty()) return std::optional<RequestOutput>();
  const size_t item = news_.front();
  news_.pop_front();
  states_[item].has_news = false;
  return std::optional<RequestOutput>(piece_of(item));
}

Result<bool> Run::Impl::wait(const Inbox::Deadline& deadline) {
  while (open_ > 0) {
    RETURN_IF_ERROR(pump(deadline));
    if (deadline && std::chrono::steady_clock::now() >= *deadline) break;
  }
  RETURN_IF_ERROR(failure_);
  return open_ == 0;
}

std::vector<RequestOutput> Run::Impl::outputs() const {
  std::vector<RequestOutput> list(items_.size());
  for (size_t i = 0; i < items_.size(); ++i) {
    RequestOutput& output = list[i];
    output.index = static_cast<uint32_t>(i);
    output.prompt = items_[i].text;
    output.prompt_token_ids = items_[i].tokens;
    output.num_cached_tokens = states_[i].cached_tokens;
    output.finished = states_[i].open == 0;
    for (size_t j = 0; j < items_[i].n; ++j) output.outputs.push_back(answers_[states_[i].first_answer + j].output);
  }
  return list;
}

}  // namespace motley
