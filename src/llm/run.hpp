// Run::Impl: prompts times n requests under way through the engine, and what has come of them so far.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "llm/inbox.hpp"
#include "llm/instance.hpp"
#include "motley/llm.hpp"
#include "text/text_stream.hpp"

// What lies inside a class that libmotley.so shows and is not shown itself.
#define MOTLEY_LOCAL __attribute__((visibility("hidden")))

namespace motley {

// One prompt, checked and ready to run.
struct RunItem {
  std::optional<std::string> text;
  std::vector<TokenId> tokens;
  TokenSampling sampling;            // with a seed; max_tokens within the context
  TextStream::Options text_options;  // min_tokens as in `sampling`
  uint32_t n = 1;
};

// As thread-safe as Run: one thread at a time, and cancel() from any.
class MOTLEY_LOCAL Run::Impl {
 public:
  // Submits what there is room for; the rest follows as answers end.
  static Result<std::unique_ptr<Impl>> start(std::shared_ptr<Instance> instance, std::vector<RunItem> items);
  ~Impl();

  // A piece of news; nullopt when all is told or the deadline has come.
  Result<std::optional<RequestOutput>> next(const Inbox::Deadline& deadline);
  // True when every answer is whole.
  Result<bool> wait(const Inbox::Deadline& deadline);
  bool done() const { return open_ == 0 && news_.empty(); }
  std::vector<RequestOutput> outputs() const;
  void cancel();

 private:
  struct Answer {
    size_t item = 0;
    RequestId request = 0;
    std::optional<TextStream> stream;
    CompletionOutput output;
    size_t text_told = 0, tokens_told = 0;
    bool finished = false, finish_told = false;
  };
  struct ItemState {
    size_t first_answer = 0;
    uint32_t open = 0;  // answers that are not whole
    uint32_t cached_tokens = 0;
    bool begun = false;     // something was told
    bool has_news = false;  // stands in news_
  };

  Impl(std::shared_ptr<Instance> instance, std::vector<RunItem> items);
  Status submit_more();
  Result<RequestId> submit(size_t index);
  // Waits for updates and applies them; at once if all is whole.
  Status pump(const Inbox::Deadline& deadline);
  void apply(size_t index, RequestUpdate update);
  void take_token(Answer& answer, const SampledToken& token);
  void finish(Answer& answer, std::string_view reason);
  void finish_by_update(Answer& answer, const RequestUpdate& update);
  void abort_rest();
  bool cancelled() const;
  void announce(size_t item);
  RequestOutput piece_of(size_t item);

  const std::shared_ptr<Instance> instance_;  // shared with the LLM: a run may outlive it
  const std::shared_ptr<Inbox> inbox_;        // shared with the requests: they may outlive the run
  const std::vector<RunItem> items_;
  const size_t in_flight_max_;
  std::vector<ItemState> states_;
  std::vector<Answer> answers_;  // item by item
  std::deque<size_t> news_;      // items with something to tell, in the order in which it came
  size_t next_ = 0;              // the first answer not yet submitted
  size_t in_flight_ = 0;         // submitted, and the engine has not said its last word
  size_t open_ = 0;              // answers that are not whole
  Status failure_;               // the engine's error that ended the run
  mutable std::mutex mutex_;     // guards the two below, for cancel()
  std::vector<RequestId> requests_;
  bool cancelled_ = false;
};

}  // namespace motley
