#include "server/generation.hpp"

#include <algorithm>
#include <new>

#include "base/log.hpp"
#include "server/json_input.hpp"

namespace motley {

Generation::Generation(const GenerationContext& context, GenerationCall call, AnswerHead head, AnswerSink& sink)
    : context_(context), call_(std::move(call)), head_(std::move(head)), sink_(&sink) {}

Generation::~Generation() { cancel(); }

MaybeError Generation::start(const std::vector<std::vector<TokenId>>& prompts, std::vector<std::string> echoes) {
  echoes_ = std::move(echoes);
  choices_.resize(prompts.size() * call_.n);
  open_ = choices_.size();
  call_.text.min_tokens = call_.params.min_tokens;
  for (const std::vector<TokenId>& prompt : prompts) prompt_tokens_.push_back(prompt.size());
  for (uint32_t index = 0; index < choices_.size(); ++index) {
    Choice& choice = choices_[index];
    choice.logprobs = LogprobsBuilder(call_.kind, call_.params.logprobs);
    choice.text_stream.emplace(context_.tokenizer, call_.text);
    if (MaybeError error = submit(index, prompts[index / call_.n])) {
      cancel();
      return error;
    }
  }
  if (call_.stream) sink_->begin_stream();
  return std::nullopt;
}

MaybeError Generation::submit(uint32_t index, const std::vector<TokenId>& prompt) {
  Request request;
  request.prompt = prompt;
  request.params = call_.params;
  request.params.choice = index % call_.n;
  request.end_tokens = context_.tokenizer.end_tokens();
  request.priority = call_.priority;
  request.on_update = [mailbox = context_.mailbox, self = weak_from_this(), index](RequestUpdate update) {
    mailbox->push(self, index, std::move(update));
  };
  Result<RequestId> id = context_.engine.submit(std::move(request));
  if (!id) return error_of_status(id.error());
  choices_[index].request = *id;
  return std::nullopt;
}

void Generation::cancel() noexcept {
  if (done_) return;
  done_ = true;
  sink_ = nullptr;
  for (const Choice& choice : choices_) {
    if (!choice.finished && choice.request != 0) abort(choice);
  }
}

void Generation::abort(const Choice& choice) noexcept {
  try {
    context_.engine.abort(choice.request);
  } catch (const std::bad_alloc&) {
    log_error("no memory to abort request {}: it runs to its end", choice.request);
  }
}

void Generation::stop() {
  if (done_) return;
  if (!call_.stream) return fail(draining_error());
  RequestUpdate last;
  last.finished = FinishReason::kAborted;
  for (uint32_t index = 0; index < choices_.size() && !done_; ++index) {
    if (choices_[index].finished) continue;
    abort(choices_[index]);
    on_update(index, last);
  }
}

void Generation::on_update(uint32_t index, RequestUpdate update) noexcept {
  if (done_ || choices_[index].finished) return;
  try {
    take_update(index, update);
  } catch (const std::bad_alloc&) {
    log_error("no memory for an answer: it is given up");
    give_up();
  }
}

void Generation::give_up() noexcept {
  if (done_) return;
  try {
    fail({503, "no memory for an answer of this size; retry later", "server_error", {}, {}});
  } catch (const std::bad_alloc&) {
    AnswerSink& sink = *sink_;
    cancel();
    sink.give_up();
  }
}

void Generation::take_update(uint32_t index, const RequestUpdate& update) {
  Choice& choice = choices_[index];
  if (update.finished == FinishReason::kError) return fail(error_of_status(update.status));
  take_tokens(choice, update);
  if (update.finished && !choice.finished) finish(choice, update);
  if (call_.stream) send_part(choice, index);
  if (done_) return;  // the sink found its client gone
  if (choice.finished && --open_ == 0) complete();
}

void Generation::take_tokens(Choice& choice, const RequestUpdate& update) {
  choice.cached_tokens = std::max(choice.cached_tokens, update.cached_tokens);
  for (size_t i = 0; i < update.tokens.size(); ++i) {
    const SampledToken& token = update.tokens[i];
    ++choice.completion_tokens;
    choice.logprobs.add(token, context_.tokenizer);
    // The token that ended the request is no text, unless asked for (vLLM's include_stop_str_in_output).
    const bool ended = update.finished && update.stop_token && i + 1 == update.tokens.size();
    if (ended && !call_.text.include_stop_in_output) continue;
    choice.text += choice.text_stream->push(token.id);
    if (choice.text_stream->stopped()) return finish_by_text(choice, !update.finished.has_value());
  }
}

void Generation::finish_by_text(Choice& choice, bool engine_running) {
  choice.finish_reason = finish_reason_name(FinishReason::kStop);
  choice.stop_reason = choice.text_stream->stop_match();
  if (engine_running) context_.engine.finish(choice.request);
  choice.finished = true;
}

void Generation::finish(Choice& choice, const RequestUpdate& update) {
  choice.finished = true;
  choice.text += choice.text_stream->finish();
  choice.finish_reason = finish_reason_name(*update.finished);
  const std::vector<TokenId>& stops = call_.params.stop_token_ids;
  if (update.stop_token && std::find(stops.begin(), stops.end(), *update.stop_token) != stops.end()) {
    choice.stop_reason = *update.stop_token;
  }
}

ChoicePart Generation::part_of(Choice& choice, uint32_t index) const {
  ChoicePart part;
  part.index = index;
  part.first = !std::exchange(choice.begun, true);
  if (part.first && !echoes_.empty()) part.text = echoes_[index / call_.n];
  part.text += std::exchange(choice.text, {});
  part.logprobs = choice.logprobs.take();
  part.finish_reason = choice.finish_reason;
  part.stop_reason = choice.stop_reason;
  return part;
}

void Generation::send_part(Choice& choice, uint32_t index) {
  const bool first = !choice.begun && choice.completion_tokens > 0;
  if (choice.text.empty() && !choice.finished && !first && call_.params.logprobs < 0) return;
  const ChoicePart part = part_of(choice, index);
  StreamUsage usage{call_.include_usage};
  if (call_.continuous_usage) usage.value = usage_of(index, 1);
  sink_->send_events(stream_event(head_, &part, usage));
}

Usage Generation::usage_of(size_t first, size_t count) const {
  Usage usage;
  for (size_t i = first; i < first + count; ++i) {
    usage.completion_tokens += choices_[i].completion_tokens;
    if (i % call_.n != 0 && count > 1) continue;  // a prompt counts once, however many choices it has
    usage.prompt_tokens += prompt_tokens_[i / call_.n];
    usage.cached_tokens += choices_[i].cached_tokens;
  }
  return usage;
}

// Nothing is done before the answer is there: making it may need more memory than there is.
void Generation::complete() {
  const Usage usage = usage_of(0, choices_.size());
  std::string events;
  HttpResponse response;
  if (call_.stream) {
    if (call_.include_usage) events = stream_event(head_, nullptr, {true, usage});
    events += kDoneEvent;
  } else {
    std::vector<ChoicePart> parts;
    for (uint32_t index = 0; index < choices_.size(); ++index) parts.push_back(part_of(choices_[index], index));
    response.body = full_answer(head_, parts, usage);
  }
  done_ = true;
  AnswerSink& sink = *std::exchange(sink_, nullptr);
  if (!call_.stream) return sink.send_answer(std::move(response));
  sink.send_events(std::move(events));
  sink.end_stream();
}

// As in complete(): the answer first.
void Generation::fail(const ApiError& error) {
  std::string events;
  HttpResponse response;
  if (call_.stream) {
    events = event_of_json(error_body(error)) + std::string(kDoneEvent);
  } else {
    response = error_response(error);
  }
  AnswerSink& sink = *sink_;
  cancel();
  if (!call_.stream) return sink.send_answer(std::move(response));
  sink.send_events(std::move(events));
  sink.end_stream();
}

}  // namespace motley
