#include "server/api.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "base/clock.hpp"
#include "server/json_input.hpp"

namespace motley {

enum class RouteId {
  kModels,
  kCompletions,
  kChat,
  kDevices,
  kTokenize,
  kDetokenize,
  kHealth,
  kPing,
  kVersion,
  kLoad,
  kMetrics
};

// `methods`: a comma-separated list as the Allow header gives it. `prefix`: paths below count too.
struct Route {
  std::string_view path, methods;
  RouteId id;
  RouteKind kind;
  bool guarded;
  bool prefix = false;
};

namespace {

using Json = nlohmann::ordered_json;

// As vLLM, what costs or shows work is guarded; what watches the server is open.
constexpr Route kRoutes[] = {
    {"/v1/models", "GET, HEAD, OPTIONS", RouteId::kModels, RouteKind::kQuick, true, true},
    {"/v1/completions", "POST, OPTIONS", RouteId::kCompletions, RouteKind::kWork, true},
    {"/v1/chat/completions", "POST, OPTIONS", RouteId::kChat, RouteKind::kWork, true},
    {"/v1/devices", "GET, HEAD, POST, OPTIONS", RouteId::kDevices, RouteKind::kDevices, true},
    {"/tokenize", "POST, OPTIONS", RouteId::kTokenize, RouteKind::kText, true},
    {"/detokenize", "POST, OPTIONS", RouteId::kDetokenize, RouteKind::kText, true},
    {"/health", "GET, HEAD, OPTIONS", RouteId::kHealth, RouteKind::kQuick, false},
    {"/ping", "GET, HEAD, POST, OPTIONS", RouteId::kPing, RouteKind::kQuick, false},
    {"/version", "GET, HEAD, OPTIONS", RouteId::kVersion, RouteKind::kQuick, false},
    {"/load", "GET, HEAD, OPTIONS", RouteId::kLoad, RouteKind::kQuick, false},
    {"/metrics", "GET, HEAD, OPTIONS", RouteId::kMetrics, RouteKind::kDevices, false},
};

const Route* find_route(std::string_view path) {
  for (const Route& route : kRoutes) {
    if (path == route.path) return &route;
    const bool below = route.prefix && path.size() > route.path.size() + 1 && path.starts_with(route.path) &&
                       path[route.path.size()] == '/';
    if (below) return &route;
  }
  return nullptr;
}

bool allows(std::string_view methods, std::string_view method) {
  while (!methods.empty()) {
    const size_t comma = methods.find(',');
    if (methods.substr(0, comma) == method) return true;
    if (comma == std::string_view::npos) return false;
    methods.remove_prefix(comma + 2);
  }
  return false;
}

// Takes the same time for every wrong key of a length.
bool equal_in_constant_time(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  volatile unsigned char difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference =
        difference | static_cast<unsigned char>(static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]));
  }
  return difference == 0;
}

HttpResponse json_response(const Json& value) {
  HttpResponse response;
  response.body = dump(value);
  return response;
}

std::vector<std::string> take_echoes(GenerationCall& call, const std::vector<std::vector<TokenId>>& prompts,
                                     const Tokenizer& tokenizer) {
  std::vector<std::string> echoes;
  for (size_t i = 0; i < prompts.size(); ++i) {
    auto* text = std::get_if<std::string>(&call.prompts[i]);
    echoes.push_back(text ? std::move(*text) : replace_invalid_utf8(tokenizer.decode(prompts[i], true)));
  }
  return echoes;
}

std::mt19937_64 random_generator() {
  std::random_device device;
  std::seed_seq sequence{device(), device(), device(), device(), device(), device(), device(), device()};
  return std::mt19937_64(sequence);
}

}  // namespace

Api::Api(Engine& engine, const Tokenizer& tokenizer, const ChatTemplate* chat_template, const ServerOptions& options,
         std::shared_ptr<Mailbox> mailbox)
    : engine_(engine),
      options_(options),
      encoder_(tokenizer, chat_template, options.chat_unavailable, options.max_tokens),
      limits_{tokenizer.size(), engine.max_model_len(), engine.options().policy == SchedulingPolicy::kPriority,
              &options.sampling},
      context_{engine, tokenizer, std::move(mailbox)},
      counters_(engine.max_model_len()),
      started_s_(unix_time_s()),
      seeds_(options.seed ? std::mt19937_64(*options.seed) : random_generator()),
      ids_(random_generator()) {}

RouteKind Api::kind_of(const Route& route, std::string_view method) {
  return route.id == RouteId::kDevices && method == "POST" ? RouteKind::kChange : route.kind;
}

bool Api::is_new_work(RouteKind kind) { return kind != RouteKind::kQuick && kind != RouteKind::kDevices; }

bool Api::authorized(std::string_view authorization) const {
  if (options_.api_keys.empty()) return true;
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() < kScheme.size()) return false;
  for (size_t i = 0; i < kScheme.size(); ++i) {
    const char c = authorization[i];
    if ((c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c) != kScheme[i]) return false;
  }
  authorization.remove_prefix(kScheme.size());
  bool found = false;
  for (const std::string& key : options_.api_keys) found |= equal_in_constant_time(authorization, key);
  return found;
}

std::optional<HttpResponse> Api::check(const HttpRequest& request, bool draining, const Route*& route) const {
  std::string path;
  if (!path_of_target(request.target, path)) {
    return error_response(bad_request("", "the path has a broken %-escape"));
  }
  route = find_route(path);
  const std::string shown = quoted_text(replace_invalid_utf8(path));
  if (!route) {
    return error_response({404, fmt::format("there is no route {}", shown), "not_found_error", {}, "route_not_found"});
  }
  if (!allows(route->methods, request.method)) {
    HttpResponse response =
        error_response({405,
                        fmt::format("{} takes {}, not {}", shown, route->methods, quoted_text(request.method)),
                        "invalid_request_error",
                        {},
                        "method_not_allowed"});
    response.headers.emplace_back("Allow", route->methods);
    return response;
  }
  if (request.method == "OPTIONS") {
    HttpResponse response{204, {}, {}};
    response.headers.emplace_back("Allow", route->methods);
    return response;
  }
  if (route->guarded && !authorized(request.authorization)) {
    return error_response({401,
                           "the API key is missing or wrong; send \"Authorization: Bearer KEY\"",
                           "authentication_error",
                           {},
                           "invalid_api_key"});
  }
  if (draining && is_new_work(kind_of(*route, request.method))) return error_response(draining_error());
  return std::nullopt;
}

MaybeError Api::check_model(const std::string& model) const {
  const auto& names = options_.served_model_names;
  if (model.empty() || std::find(names.begin(), names.end(), model) != names.end()) return std::nullopt;
  return ApiError{404,
                  fmt::format("the model \"{}\" does not exist here; /v1/models lists what does", quoted_text(model)),
                  "not_found_error", "model", "model_not_found"};
}

Json Api::model_json(const std::string& name) const {
  return {{"id", name},
          {"object", "model"},
          {"created", started_s_},
          {"owned_by", "motley"},
          {"root", options_.model_path},
          {"parent", nullptr},
          {"max_model_len", engine_.max_model_len()}};
}

HttpResponse Api::answer_models(const std::string& path) const {
  constexpr std::string_view kBelow = "/v1/models/";
  if (path.starts_with(kBelow)) {
    const std::string name = path.substr(kBelow.size());
    if (MaybeError error = check_model(name)) return error_response(*error);
    return json_response(model_json(name));
  }
  Json list = Json::array();
  for (const std::string& name : options_.served_model_names) list.push_back(model_json(name));
  return json_response({{"object", "list"}, {"data", std::move(list)}});
}

HttpResponse Api::answer_health(bool draining) const {
  if (draining) return error_response(draining_error());
  if (const Status health = engine_.health(); !health.ok()) {
    return error_response({503, fmt::format("the engine has ended: {}", health.message()), "server_error", {}, {}});
  }
  if (const Status trouble = engine_.trouble(); !trouble.ok())
    return error_response({503, trouble.message(), "server_error", {}, {}});
  return {200, "text/plain; charset=utf-8", ""};
}

HttpResponse Api::metrics(PreparedMetrics devices) const {
  const EngineStats stats = engine_.stats();
  const MetricsInput input{stats, counters_, options_.served_model_names.front(), options_.cache_config,
                           std::move(devices)};
  return {200, "text/plain; version=0.0.4; charset=utf-8", metrics_page(input)};
}

HttpResponse Api::answer(const Route& route, const HttpRequest& request, const ServerState& state) const {
  std::string path;
  CHECK(path_of_target(request.target, path));
  switch (route.id) {
    case RouteId::kModels: return answer_models(path);
    case RouteId::kVersion: return json_response({{"version", options_.version}});
    case RouteId::kLoad: return json_response({{"server_load", state.load}});
    default: return answer_health(state.draining);
  }
}

Prepared Api::prepare(const Route& route, std::string_view method, std::string_view body) const {
  switch (route.id) {
    case RouteId::kMetrics: return device_list();
    case RouteId::kDevices: return method == "POST" ? prepare_add(body) : json_response(devices_json());
    case RouteId::kTokenize: return prepare_tokenize(body);
    case RouteId::kDetokenize: return prepare_detokenize(body);
    default: return prepare_generation(route.id == RouteId::kChat ? CallKind::kChat : CallKind::kCompletion, body);
  }
}

Prepared Api::prepare_generation(CallKind kind, std::string_view body) const {
  PreparedGeneration prepared;
  CallLimits limits = limits_;
  limits.max_model_len = engine_.max_model_len();  // changes with the devices
  if (MaybeError error = parse_generation_call(kind, body, limits, prepared.call)) return error_response(*error);
  if (MaybeError error = check_model(prepared.call.model)) return error_response(*error);
  if (MaybeError error = encoder_.encode(prepared.call, limits.max_model_len, prepared.prompts))
    return error_response(*error);
  GenerationCall& call = prepared.call;
  if (call.echo) prepared.echoes = take_echoes(call, prepared.prompts, encoder_.tokenizer());
  // The call lives as long as its answer is being made: what may be as large as a body goes, and what every choice
  // needs is made once.
  call.prompts = {};
  call.chat = {};
  if (!call.text.stop.empty()) call.text.stop_set = std::make_shared<const StopSet>(std::exchange(call.text.stop, {}));
  return prepared;
}

std::vector<DeviceCounters> Api::device_list() const {
  return options_.devices.list ? options_.devices.list() : std::vector<DeviceCounters>();
}

Json Api::devices_json() const {
  Json list = Json::array();
  for (const DeviceCounters& device : device_list()) {
    list.push_back({{"name", device.device},
                    {"state", device.state},
                    {"simulated", device.simulated},
                    {"programs", device.programs},
                    {"rows", device.rows},
                    {"bytes_moved", device.bytes_moved},
                    {"busy_s", device.busy_s},
                    {"own",
                     {{"programs", device.own.programs},
                      {"rows", device.own.rows},
                      {"padded_rows", device.own.padded_rows},
                      {"flops", device.own.flops},
                      {"padded_flops", device.own.padded_flops},
                      {"bytes_copied", device.own.bytes_copied},
                      {"bytes_resident", device.own.bytes_resident},
                      {"blob_hits", device.own.blob_hits},
                      {"reloads", device.own.reloads},
                      {"busy_s", device.own.busy_s},
                      {"compile_s", device.own.compile_s}}}});
  }
  return {{"object", "list"}, {"data", std::move(list)}};
}

Prepared Api::prepare_add(std::string_view body) const {
  std::vector<std::string> names;
  if (MaybeError error = parse_add_devices(body, names)) return error_response(*error);
  if (!options_.devices.add) return error_response({501, "no devices can be added here", "server_error", {}, {}});
  const auto added = options_.devices.add(names);
  if (!added.ok()) return error_response(error_of_status(added.error()));
  Json answer = devices_json();
  answer["added"] = added->names;
  answer["note"] = added->note.empty() ? Json(nullptr) : Json(added->note);
  return json_response(answer);
}

Prepared Api::prepare_tokenize(std::string_view body) const {
  TokenizeCall call;
  if (MaybeError error = parse_tokenize_call(body, call)) return error_response(*error);
  if (MaybeError error = check_model(call.model)) return error_response(*error);
  std::vector<TokenId> tokens;
  if (MaybeError error = encoder_.encode(call, tokens)) return error_response(*error);
  // As text, not as a tree: nlohmann's destructor needs memory in proportion to an array, and where there is none it
  // ends the program.
  HttpResponse response;
  response.body = fmt::format("{{\"count\":{},\"max_model_len\":{},\"tokens\":[{}],\"token_strs\":", tokens.size(),
                              engine_.max_model_len(), fmt::join(tokens, ","));
  if (call.return_token_strs) {
    char before = '[';
    for (const TokenId id : tokens) {
      response.body += std::exchange(before, ',');
      response.body += dump(Json(encoder_.tokenizer().piece(id)));
    }
    response.body += tokens.empty() ? "[]}" : "]}";
  } else {
    response.body += "null}";
  }
  return response;
}

Prepared Api::prepare_detokenize(std::string_view body) const {
  DetokenizeCall call;
  if (MaybeError error = parse_detokenize_call(body, limits_.vocab_size, call)) return error_response(*error);
  if (MaybeError error = check_model(call.model)) return error_response(*error);
  std::string text;
  if (MaybeError error = encoder_.decode(call.tokens, text)) return error_response(*error);
  return json_response({{"prompt", replace_invalid_utf8(text)}});
}

std::variant<HttpResponse, std::shared_ptr<Generation>> Api::start(PreparedGeneration prepared, AnswerSink& sink) {
  GenerationCall& call = prepared.call;
  if (!call.has_seed) call.params.seed = next_seed();
  const AnswerHead head{call.kind, next_id(call.kind),
                        call.model.empty() ? options_.served_model_names.front() : call.model, unix_time_s()};
  counters_.params_n.observe(call.n);
  counters_.params_max_tokens.observe(call.params.max_tokens);
  auto generation = std::make_shared<Generation>(context_, std::move(call), head, sink);
  if (MaybeError error = generation->start(prepared.prompts, std::move(prepared.echoes))) return error_response(*error);
  return generation;
}

uint64_t Api::next_seed() { return seeds_(); }

std::string Api::next_id(CallKind kind) {
  return fmt::format("{}-{:016x}{:016x}", kind == CallKind::kChat ? "chatcmpl" : "cmpl", ids_(), ids_());
}

}  // namespace motley
