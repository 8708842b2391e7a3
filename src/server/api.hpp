// Api: what each route does, without a socket.
//
// Requests come in three parts, so that the slow one may run on any thread: check() at the header's end, prepare() for
// the body (thread-safe), and start() on the server's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/engine.hpp"
#include "server/generation.hpp"
#include "server/http.hpp"
#include "server/metrics.hpp"
#include "server/prompt.hpp"
#include "server/server.hpp"

namespace motley {

// What the routes that watch the server tell of it.
struct ServerState {
  bool draining = false;
  uint64_t load = 0;  // requests being answered, this one left out
};

// kText turns text and tokens into each other, kWork generates, kChange adds devices: new work, refused while draining.
// kDevices asks the devices, which may keep it waiting. None waits for another kind.
enum class RouteKind { kQuick, kText, kWork, kDevices, kChange };

struct Route;

// A call whose body was understood: what is left to do on the server's thread.
struct PreparedGeneration {
  GenerationCall call;  // without what the prompts were made of
  std::vector<std::vector<TokenId>> prompts;
  std::vector<std::string> echoes;  // the prompts as text; none if they are not to be repeated
};
// What the devices told for /metrics.
using PreparedMetrics = std::vector<DeviceCounters>;
// An answer, ready, or a generation to start, or what to make the metrics of.
using Prepared = std::variant<HttpResponse, PreparedGeneration, PreparedMetrics>;

class Api {
 public:
  // Borrows engine, tokenizer and template. `options.served_model_names` must not be empty.
  Api(Engine& engine, const Tokenizer& tokenizer, const ChatTemplate* chat_template, const ServerOptions& options,
      std::shared_ptr<Mailbox> mailbox);

  // By method, target and authorization alone (the body may not be there yet): a refusal (401, 404, 405, or 503 for
  // work while `draining`), an answer to OPTIONS, or nothing, and then `route` is set.
  std::optional<HttpResponse> check(const HttpRequest& request, bool draining, const Route*& route) const;
  static RouteKind kind_of(const Route& route, std::string_view method);

  // Refused while draining.
  static bool is_new_work(RouteKind kind);

  // Routes of kind kQuick. On the server's thread.
  HttpResponse answer(const Route& route, const HttpRequest& request, const ServerState& state) const;

  // Routes of the other kinds: parses, validates and tokenises; asks and adds devices. Thread-safe.
  Prepared prepare(const Route& route, std::string_view method, std::string_view body) const;
  HttpResponse metrics(PreparedMetrics devices) const;
  // Submits. On the server's thread. The sink hears of everything but a refusal, which is the return value.
  std::variant<HttpResponse, std::shared_ptr<Generation>> start(PreparedGeneration prepared, AnswerSink& sink);

 private:
  bool authorized(std::string_view authorization) const;
  MaybeError check_model(const std::string& model) const;
  nlohmann::ordered_json model_json(const std::string& name) const;
  HttpResponse answer_models(const std::string& path) const;
  HttpResponse answer_health(bool draining) const;
  Prepared prepare_generation(CallKind kind, std::string_view body) const;
  std::vector<DeviceCounters> device_list() const;
  nlohmann::ordered_json devices_json() const;
  Prepared prepare_add(std::string_view body) const;
  Prepared prepare_tokenize(std::string_view body) const;
  Prepared prepare_detokenize(std::string_view body) const;
  uint64_t next_seed();
  std::string next_id(CallKind kind);

  Engine& engine_;
  const ServerOptions& options_;
  PromptEncoder encoder_;
  CallLimits limits_;
  GenerationContext context_;
  ServerCounters counters_;
  int64_t started_s_;
  std::mt19937_64 seeds_, ids_;
};

}  // namespace motley
