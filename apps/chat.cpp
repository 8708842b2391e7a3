#include <csignal>
#include <cstdio>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "commands.hpp"
#include "llm/generate.hpp"
#include "trace_signals.hpp"

namespace motley::apps {
namespace {

// Turns Ctrl-C into the end of the running answer. Blocks SIGINT for threads made after it; owns a thread of its own.
class AnswerInterrupt {
 public:
  AnswerInterrupt() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    thread_ = std::thread([this, set] { watch(set); });
  }
  ~AnswerInterrupt() {
    pthread_kill(thread_.native_handle(), SIGUSR1);
    thread_.join();
  }
  void running(Engine* engine, RequestId id) {
    std::lock_guard lock(mutex_);
    engine_ = engine;
    id_ = id;
  }
  void idle() {
    std::lock_guard lock(mutex_);
    engine_ = nullptr;
  }

 private:
  void watch(sigset_t set) {
    int signal = 0;
    while (sigwait(&set, &signal) == 0 && signal == SIGINT) {
      std::lock_guard lock(mutex_);
      if (engine_ != nullptr) {
        engine_->abort(id_);
      } else {
        std::fputs("\n(Ctrl-D ends)\n> ", stderr);
      }
    }
  }

  std::mutex mutex_;  // guards engine_ and id_
  Engine* engine_ = nullptr;
  RequestId id_ = 0;
  std::thread thread_;
};

Result<Request> make_request(const ChatCommand& command, const Instance& instance, uint32_t room,
                             const nlohmann::ordered_json& messages) {
  ASSIGN_OR_RETURN(const auto spans, instance.chat_template()->render(messages, true, nullptr));
  Request request;
  request.prompt = ChatTemplate::encode(spans, instance.tokenizer());
  if (request.prompt.size() >= room) {
    return invalid_argument("the conversation fills the context of {} tokens; start again or raise --max-model-len",
                            room);
  }
  request.end_tokens = instance.tokenizer().end_tokens();
  const auto left = static_cast<uint32_t>(room - request.prompt.size());
  request.params.max_tokens = command.max_tokens == 0 ? left : std::min(left, command.max_tokens);
  request.params.temperature = command.temperature;
  request.params.top_p = command.top_p;
  request.params.seed = command.seed ? *command.seed : random_seed();
  return request;
}

}  // namespace

Status chat(const ChatCommand& command) {
  AnswerInterrupt interrupt;  // before any other thread, so that all inherit the blocked signal
  const TraceSignals signals(command.instance.trace, {SIGTERM});
  ASSIGN_OR_RETURN(const auto instance, Instance::open(command.instance));
  if (instance->chat_template() == nullptr) return instance->template_error();
  auto messages = nlohmann::ordered_json::array();
  if (!command.system_prompt.empty()) messages.push_back({{"role", "system"}, {"content", command.system_prompt}});
  std::string line;
  const TextSink sink = [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
    return true;
  };
  while (std::fputs("> ", stderr) >= 0 && std::getline(std::cin, line)) {
    if (line.empty()) continue;
    messages.push_back({{"role", "user"}, {"content", line}});
    Engine& engine = instance->engine();
    auto request = make_request(command, *instance, engine.max_model_len(), messages);
    if (!request.ok()) {  // the conversation so far stays
      std::fprintf(stderr, "%s\n", request.error().message().c_str());
      messages.erase(messages.size() - 1);
      continue;
    }
    const auto answer = generate(engine, instance->tokenizer(), *std::move(request), {}, sink,
                                 [&](RequestId id) { interrupt.running(&engine, id); });
    interrupt.idle();
    if (!answer.ok()) return answer.error();
    if (answer->finished == FinishReason::kError) return answer->status;
    std::fputs("\n", stdout);
    std::fflush(stdout);
    messages.push_back({{"role", "assistant"}, {"content", answer->text}});
  }
  std::fputs("\n", stderr);
  return ok_status();
}

}  // namespace motley::apps
