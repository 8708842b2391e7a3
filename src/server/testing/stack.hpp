// Stack: a real server over a real engine over the scripted executor, for tests.
//
// The script spells the alphabet: after "x" comes "y", after "z" "a". After "Z" comes the end token; after "#" the two
// bytes of "é", then "a"; after "$" a letter by the request's seed, after "%" one by its choice; after anything else
// "a".
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "engine/engine.hpp"
#include "engine/testing/scripted_executor.hpp"
#include "server/server.hpp"
#include "server/testing/byte_tokenizer.hpp"
#include "server/testing/http_client.hpp"
#include "text/chat_template.hpp"

namespace motley::testing {

inline TokenId spell(std::span<const TokenId> text, const motley_sample_row& row,
                     const std::function<bool(TokenId)>& banned) {
  const TokenId last = text.back();
  TokenId next = 'a';
  if ((last >= 'a' && last < 'z') || (last >= 'A' && last < 'Z')) next = last + 1;
  if (last == 'Z') next = ByteTokenizer::kEnd;
  if (last == '#') next = 0xC3;
  if (last == 0xC3) next = 0xA9;
  if (last == '$') next = 'a' + static_cast<TokenId>(row.seed % 26);
  if (last == '%') next = 'a' + static_cast<TokenId>(row.choice % 26);
  return banned(next) ? 'a' : next;
}

struct StackOptions {
  ServerOptions server = {};
  bool manual = false;
  uint32_t positions = 512, blocks = 4096;
  bool chat = true;
  EngineOptions engine = {};
};

class Stack {
 public:
  explicit Stack(StackOptions options = {}) : executor_(script(options)) {
    auto engine = Engine::create(executor_, options.engine);
    EXPECT_TRUE(engine) << engine.error().to_string();
    engine_ = *std::move(engine);
    if (options.chat) {
      auto chat = ChatTemplate::create(
          "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
          "", "<|end|>");
      EXPECT_TRUE(chat) << chat.error().to_string();
      chat_ = *std::move(chat);
    }
    options.server.version = "1.2.3";
    if (options.server.served_model_names.empty()) options.server.served_model_names = {"m", "org/alias"};
    auto server = Server::start(*engine_, tokenizer_, chat_.get(), options.server);
    EXPECT_TRUE(server) << server.error().to_string();
    server_ = *std::move(server);
  }
  ~Stack() {
    server_.reset();
    engine_.reset();
    EXPECT_TRUE(executor_.violations().empty()) << executor_.violations().front();
  }

  HttpClient client() const { return HttpClient(server_->port()); }
  HttpReply post(std::string_view target, std::string_view body, std::string_view headers = {}) const {
    return client().call("POST", target, body, headers);
  }
  HttpReply get(std::string_view target) const { return client().call("GET", target); }
  // The answer's JSON, which must come with this status.
  nlohmann::json post_json(std::string_view target, std::string_view body, int status = 200) const {
    const HttpReply reply = post(target, body);
    EXPECT_EQ(reply.status, status) << reply.body;
    return nlohmann::json::parse(reply.body, nullptr, false);
  }

  // Waits, working off manual steps, until `condition` holds; false if it never does.
  template <typename Condition>
  bool reach(Condition condition) {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > give_up) return false;
      if (!run_steps_ || !executor_.run_next()) std::this_thread::yield();
    }
    return true;
  }
  // Requests that the server is answering; asking also lets it work off what reached it before.
  int load() const { return nlohmann::json::parse(get("/load").body).at("server_load").get<int>(); }
  void run_steps(bool on) { run_steps_ = on; }

  ScriptedExecutor& executor() { return executor_; }
  Engine& engine() { return *engine_; }
  Server& server() { return *server_; }
  void stop_server() { server_.reset(); }

 private:
  static ScriptedOptions script(const StackOptions& options) {
    ScriptedOptions script;
    script.block_size = 16;
    script.blocks = options.blocks;
    script.vocab_size = ByteTokenizer().size();
    script.positions_max = options.positions;
    script.manual = options.manual;
    script.choice = spell;
    return script;
  }

  ScriptedExecutor executor_;
  ByteTokenizer tokenizer_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<ChatTemplate> chat_;
  std::unique_ptr<Server> server_;
  bool run_steps_ = false;
};

}  // namespace motley::testing
