#include "llm/generate.hpp"

#include <memory>
#include <utility>

#include "base/bounded_queue.hpp"

namespace motley {
namespace {

// An update with the time it was heard.
struct TimedUpdate {
  RequestUpdate update;
  int64_t heard_ns = 0;
};

// Gives the update's tokens to the text stream; false when the answer ends here.
bool take_tokens(TimedUpdate& timed, TextStream& stream, const TextSink& sink, GenerateResult& out) {
  const size_t count = out.tokens.size() + timed.update.tokens.size();
  for (SampledToken& token : timed.update.tokens) {
    if (out.tokens.empty()) out.first_token_ns = timed.heard_ns;
    out.last_token_ns = timed.heard_ns;
    const TokenId id = token.id;
    out.tokens.push_back(std::move(token));
    if (timed.update.stop_token == id && out.tokens.size() == count) continue;
    const std::string text = stream.push(id);
    out.text += text;
    if (!text.empty() && !sink(text)) return false;
    if (stream.stopped()) return false;
  }
  return true;
}

}  // namespace

Result<GenerateResult> generate(Engine& engine, const Tokenizer& tokenizer, Request request,
                                const TextStream::Options& text_options, const TextSink& sink,
                                const std::function<void(RequestId)>& started, const Clock& clock) {
  TextStream stream(tokenizer, text_options);
  // One update a step at most, and max_tokens steps: the queue cannot fill.
  BoundedQueue<TimedUpdate> updates(size_t{request.params.max_tokens} + 2);
  request.on_update = [&](RequestUpdate update) { updates.try_push({std::move(update), clock.now_ns()}); };
  ASSIGN_OR_RETURN(const RequestId id, engine.submit(std::move(request)));
  if (started) started(id);
  GenerateResult out;
  bool live = true;
  for (;;) {
    auto timed = updates.pop();
    if (out.first_step_ns == 0) out.first_step_ns = timed->update.first_scheduled_ns;
    if (live && !take_tokens(*timed, stream, sink, out)) {
      live = false;
      engine.abort(id);
    }
    if (!timed->update.finished) continue;
    out.finished = live ? *timed->update.finished : (stream.stopped() ? FinishReason::kStop : FinishReason::kAborted);
    out.status = timed->update.status;
    break;
  }
  const std::string rest = stream.finish();
  out.text += rest;
  if (!rest.empty() && live) sink(rest);
  return out;
}

}  // namespace motley
