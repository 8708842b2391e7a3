#include "client/load_run.hpp"

#include <deque>
#include <memory>
#include <utility>

#include "base/check.hpp"
#include "base/clock.hpp"

namespace motley::client {
namespace {

using Json = nlohmann::ordered_json;

class LoadRun {
 public:
  LoadRun(HttpClient& client, const LoadOptions& options, std::span<const Prompt> prompts,
          std::span<const double> arrivals_s)
      : client_(client), options_(options), prompts_(prompts), arrivals_s_(arrivals_s), records_(prompts.size()) {}
  LoadResult run();

 private:
  double now_s() const { return static_cast<double>(system_clock().now_ns() - begin_ns_) * 1e-9; }
  void arrive();
  void start_waiting();
  void start(uint32_t index);
  void end(uint32_t index, const Status& transport);

  HttpClient& client_;
  const LoadOptions& options_;
  const std::span<const Prompt> prompts_;
  const std::span<const double> arrivals_s_;
  std::vector<RequestRecord> records_;
  std::vector<std::unique_ptr<AnswerReader>> readers_{prompts_.size()};
  std::deque<uint32_t> waiting_;
  uint32_t arrived_ = 0, active_ = 0, completed_ = 0, failed_ = 0;
  const int64_t begin_ns_ = system_clock().now_ns();
};

LoadResult LoadRun::run() {
  arrive();
  client_.run();
  return {std::move(records_), now_s()};
}

// Everything that is due, and then a timer for what comes next.
void LoadRun::arrive() {
  while (arrived_ < prompts_.size()) {
    const double wait_s = arrivals_s_[arrived_] - now_s();
    if (wait_s > 0) return client_.after(wait_s, [this] { arrive(); });
    records_[arrived_].client_queue_s = now_s();  // becomes a duration in start()
    waiting_.push_back(arrived_++);
    start_waiting();
  }
}

void LoadRun::start_waiting() {
  while (!waiting_.empty() && (options_.max_concurrency == 0 || active_ < options_.max_concurrency)) {
    const uint32_t index = waiting_.front();
    waiting_.pop_front();
    start(index);
  }
}

void LoadRun::start(uint32_t index) {
  RequestRecord& record = records_[index];
  ++active_;
  std::string body = request_body(options_, prompts_[index]);
  record.prompt_tokens = prompts_[index].tokens;
  record.start_s = now_s();
  record.client_queue_s = record.start_s - record.client_queue_s;
  readers_[index] = std::make_unique<AnswerReader>(options_.kind, record);
  AnswerReader& reader = *readers_[index];
  client_.send({"POST", options_.target, std::move(body),
                [&reader](int status, std::string_view reason) { reader.on_head(status, reason); },
                [this, &reader](std::string_view bytes) { return reader.on_body(bytes, now_s()); },
                [this, index](const Status& transport) { end(index, transport); }});
}

void LoadRun::end(uint32_t index, const Status& transport) {
  readers_[index]->on_end(transport);
  readers_[index].reset();
  --active_;
  ++(records_[index].success ? completed_ : failed_);
  if (options_.on_progress) options_.on_progress(completed_, failed_);
  start_waiting();
}

}  // namespace

std::string request_body(const LoadOptions& options, const Prompt& prompt) {
  Json body = {{"model", options.model}};
  if (options.kind == ApiKind::kChat) {
    body["messages"] = Json::array({{{"role", "user"}, {"content", prompt.text}}});
    body["max_completion_tokens"] = prompt.output_tokens;
  } else if (prompt.text.empty()) {
    body["prompt"] = prompt.ids;
  } else {
    body["prompt"] = prompt.text;
  }
  body["max_tokens"] = prompt.output_tokens;  // chats too: not every server knows the newer name
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  if (options.ignore_eos) body["ignore_eos"] = true;
  body.update(options.extra);
  return body.dump(-1, ' ', false, Json::error_handler_t::replace);
}

LoadResult run_load(HttpClient& client, const LoadOptions& options, std::span<const Prompt> prompts,
                    std::span<const double> arrivals_s) {
  CHECK(prompts.size() == arrivals_s.size());
  return LoadRun(client, options, prompts, arrivals_s).run();
}

}  // namespace motley::client
