#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

#include "base/log.hpp"
#include "commands.hpp"
#include "llm/sampling.hpp"
#include "server/server.hpp"

namespace motley::apps {
namespace {

using std::chrono::milliseconds;

// SIGTERM and SIGINT as values, for the main thread. Blocks them for every thread made after it.
class Signals {
 public:
  Signals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  }
  int wait() const {
    int signal = 0;
    while (sigwait(&set_, &signal) != 0) {
    }
    return signal;
  }
  // 0 if none came in that time.
  int wait_for(milliseconds time) const {
    const timespec span{time.count() / 1000, (time.count() % 1000) * 1'000'000};
    const int signal = sigtimedwait(&set_, nullptr, &span);
    return signal > 0 ? signal : 0;
  }

 private:
  sigset_t set_{};
};

// What requests leave out is sampled as the model's makers advise.
Status take_advice(const Instance& instance, ServerOptions& options) {
  SamplingParams plain;
  plain.max_tokens.reset();
  auto advised = advised_sampling(instance.model(), plain);
  if (!advised.ok()) {
    return invalid_argument("{}; correct it, or leave it unread with --generation-config vllm",
                            advised.error().message());
  }
  options.sampling = token_sampling(*advised);
  options.max_tokens = advised->max_tokens.value_or(0);
  const std::string said = describe_advice(*advised, plain);
  if (!said.empty()) log_info("sampling defaults of the model's generation_config.json: {}", said);
  return ok_status();
}

OwnCounters own_counters(const motley_device_stats& stats) {
  OwnCounters own;
  own.programs = stats.programs, own.rows = stats.rows, own.padded_rows = stats.padded_rows;
  own.flops = stats.flops, own.padded_flops = stats.padded_flops;
  own.bytes_copied = stats.bytes_copied, own.bytes_resident = stats.bytes_resident;
  own.blob_hits = stats.blob_hits, own.reloads = stats.reloads;
  own.busy_s = static_cast<double>(stats.busy_ns) / 1e9, own.compile_s = static_cast<double>(stats.compile_ns) / 1e9;
  return own;
}

DeviceControl device_control(Instance& instance) {
  const auto list = [&instance] {
    std::vector<DeviceCounters> counters;
    for (const DeviceWork& work : instance.device_work()) {
      const char* state = work.lost ? "lost" : work.in_force ? "serving" : "idle";
      counters.push_back({work.name, state, work.programs, work.rows, work.bytes_moved, work.busy_s, work.simulated,
                          work.weight_formats, work.weight_error, own_counters(work.own)});
    }
    return counters;
  };
  const auto add = [&instance](const std::vector<std::string>& names) -> Result<DevicesAdded> {
    ASSIGN_OR_RETURN(AddedDevices added, instance.add_devices(names));
    return DevicesAdded{std::move(added.names), std::move(added.note)};
  };
  return {list, add};
}

Result<ServerOptions> server_options(const ServeCommand& command, Instance& instance) {
  ServerOptions options;
  if (command.generation_config == "auto") RETURN_IF_ERROR(take_advice(instance, options));
  options.host = command.host;
  options.port = command.port;
  options.api_keys = command.api_keys;
  options.served_model_names = command.served_model_names;
  options.model_path = command.instance.model.string();
  options.version = kVersion;
  if (!instance.template_error().ok()) options.chat_unavailable = instance.template_error().message();
  options.seed = command.seed;
  const Placement& placement = instance.placement();
  const EngineOptions& engine = command.instance.engine;
  options.devices = device_control(instance);
  options.cache_config = {{"block_size", std::to_string(placement.block_size)},
                          {"num_gpu_blocks", std::to_string(kv_tokens(placement) / placement.block_size)},
                          {"cache_dtype", command.instance.kv_cache_dtype},
                          {"enable_prefix_caching", engine.enable_prefix_caching ? "True" : "False"}};
  return options;
}

// One word of a shell, whatever it holds.
std::string shell_quoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

// A request that a newcomer can paste. The key itself is never logged.
std::string curl_line(const ServeCommand& command, const std::string& address, bool chat) {
  const std::string model =
      command.served_model_names.empty() ? command.instance.model.string() : command.served_model_names.front();
  const nlohmann::ordered_json body =
      chat ? nlohmann::ordered_json{{"model", model},
                                    {"temperature", 0},
                                    {"messages", {{{"role", "user"}, {"content", "Where is the Eiffel Tower?"}}}}}
           : nlohmann::ordered_json{{"model", model}, {"temperature", 0}, {"prompt", "The capital of France is"}};
  return fmt::format("curl {}/v1/{} {}-H 'Content-Type: application/json' -d {}", address,
                     chat ? "chat/completions" : "completions",
                     command.api_keys.empty() ? "" : "-H \"Authorization: Bearer $API_KEY\" ",
                     shell_quoted(body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)));
}

// Once the drain is over the program is about to end: an interrupt need not wait for it, nor may anything that hangs.
void end_soon() {
  constexpr unsigned kGraceSeconds = 5;
  std::signal(SIGINT, [](int) { _exit(130); });
  std::signal(SIGALRM, [](int) { _exit(0); });
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  alarm(kGraceSeconds);
}

// Lets what runs finish. A second SIGINT ends the program at once.
void drain(Server& server, const Signals& signals, uint32_t timeout_s) {
  constexpr milliseconds kSlice{20};  // how soon a second SIGINT is seen while waiting
  server.begin_drain();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(timeout_s);
  while (std::chrono::steady_clock::now() < end) {
    if (server.wait_drained(milliseconds(0)).ok()) break;
    if (signals.wait_for(kSlice) == SIGINT) {
      log_warning("second interrupt: stopping at once");
      _exit(130);
    }
  }
  if (!server.wait_drained(milliseconds(0)).ok()) {
    log_warning("after {} s some requests still ran: ending them", timeout_s);
  }
}

}  // namespace

Status serve(const ServeCommand& command) {
  const Signals signals;          // before any other thread, so that all inherit the blocked signals
  std::signal(SIGPIPE, SIG_IGN);  // a log whose reader has gone is no reason to stop serving
  InstanceOptions options_of_instance = command.instance;
  options_of_instance.serve_first = true;
  options_of_instance.adapt = command.adapt;
  ASSIGN_OR_RETURN(const auto instance, Instance::open(options_of_instance));
  Engine& engine = instance->engine();
  ASSIGN_OR_RETURN(ServerOptions options, server_options(command, *instance));
  ASSIGN_OR_RETURN(const auto server,
                   Server::start(engine, instance->tokenizer(), instance->chat_template(), std::move(options)));
  log_info("{} on {}, context {}, KV {} tokens", instance->model().config().name, instance->device_text(),
           engine.max_model_len(), kv_tokens(instance->placement()));
  const bool bare = command.host.find(':') == std::string::npos;  // an IPv6 address stands in brackets
  const std::string address =
      fmt::format("http://{}:{}", bare ? command.host : "[" + command.host + "]", server->port());
  log_info("ready at {}", address);
  log_info("try: {}", curl_line(command, address, instance->chat_template() != nullptr));
  const int signal = signals.wait();
  log_info("{}: draining, up to {} s", signal == SIGTERM ? "SIGTERM" : "SIGINT", command.shutdown_timeout_s);
  instance->end_changes();
  drain(*server, signals, command.shutdown_timeout_s);
  // Now: what follows may be cut short. A failure is told where the trace was opened.
  if (command.instance.trace != nullptr) (void)command.instance.trace->close();
  end_soon();
  return ok_status();
}

}  // namespace motley::apps
