// Generation: one call to the engine under way: prompts times n requests in, one answer or one stream out.
//
// Lives on the server's thread; only the engine's updates come from elsewhere, through the mailbox.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.hpp"
#include "server/answer.hpp"
#include "server/generation_request.hpp"
#include "server/http.hpp"
#include "server/mailbox.hpp"
#include "text/text_stream.hpp"
#include "text/tokenizer.hpp"

namespace motley {

// Where an answer goes. Calls come on the server's thread. One that finds no memory gives the answer up by itself and
// throws nothing; begin_stream() alone throws bad_alloc.
class AnswerSink {
 public:
  virtual ~AnswerSink() = default;
  virtual void send_answer(HttpResponse response) = 0;
  virtual void begin_stream() = 0;
  virtual void send_events(std::string events) = 0;
  virtual void end_stream() = 0;
  // There is no memory for the answer.
  virtual void give_up() noexcept = 0;
};

// What every generation of a server shares. Borrowed parts outlive them.
struct GenerationContext {
  Engine& engine;
  const Tokenizer& tokenizer;
  std::shared_ptr<Mailbox> mailbox;  // shared: engine requests may outlive the server
};

class Generation : public UpdateReceiver, public std::enable_shared_from_this<Generation> {
 public:
  // `sink` is borrowed until done() or cancel().
  Generation(const GenerationContext& context, GenerationCall call, AnswerHead head, AnswerSink& sink);
  ~Generation() override;  // cancels what is left

  // Submits everything, or nothing and says why. Begins the stream if there is one. `echoes`: what each prompt's
  // answers begin with; none if the call does not ask for it.
  MaybeError start(const std::vector<std::vector<TokenId>>& prompts, std::vector<std::string> echoes);
  // Ends every request of it; the sink hears no more.
  void cancel() noexcept;
  // Ends every request of it, and tells: a stream's choices finish with "abort", a whole answer becomes a 503.
  void stop();
  bool done() const { return done_; }

  void on_update(uint32_t index, RequestUpdate update) noexcept override;

 private:
  struct Choice {
    RequestId request = 0;
    std::optional<TextStream> text_stream;
    LogprobsBuilder logprobs{CallKind::kCompletion, -1};
    std::string text;  // not yet sent (whole answers: all of it)
    uint64_t completion_tokens = 0;
    uint32_t cached_tokens = 0;
    bool begun = false, finished = false;
    nlohmann::ordered_json finish_reason, stop_reason;
  };

  MaybeError submit(uint32_t index, const std::vector<TokenId>& prompt);
  void take_update(uint32_t index, const RequestUpdate& update);
  void take_tokens(Choice& choice, const RequestUpdate& update);
  void finish_by_text(Choice& choice, bool engine_running);
  void finish(Choice& choice, const RequestUpdate& update);
  ChoicePart part_of(Choice& choice, uint32_t index) const;
  void send_part(Choice& choice, uint32_t index);
  void complete();
  void fail(const ApiError& error);
  void give_up() noexcept;
  void abort(const Choice& choice) noexcept;
  Usage usage_of(size_t first, size_t count) const;

  GenerationContext context_;
  GenerationCall call_;
  AnswerHead head_;
  AnswerSink* sink_;
  std::vector<Choice> choices_;  // prompt-major: prompt * n + choice
  std::vector<size_t> prompt_tokens_;
  std::vector<std::string> echoes_;  // one a prompt, or none
  size_t open_ = 0;
  bool done_ = false;
};

}  // namespace motley
