// The demonstration: three workers run one model, one of them is killed in mid-sentence, and the text goes on.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <thread>

#include "base/config.hpp"
#include "commands.hpp"
#include "llm/generate.hpp"

namespace motley::apps {
namespace {

constexpr uint32_t kWorkers = 3;
constexpr size_t kKilledAfterTokens = 24;  // of the answer: in mid-sentence

// Three parts of the CPU where it has the cores; else two parts, or one, and simulated devices.
std::string demo_devices(uint32_t cores) {
  switch (std::clamp(cores, 1u, kWorkers)) {
    case 1: return "CPU:0,SIM:gpu-like,SIM:gpu-like";
    case 2: return "CPU:0/cores=0,CPU:0/cores=1,SIM:gpu-like";
    default: break;
  }
  std::string list;
  for (uint32_t i = 0; i < kWorkers; ++i) {
    const uint32_t first = cores * i / kWorkers, last = cores * (i + 1) / kWorkers - 1;
    list += (i == 0 ? "" : ",") +
            (first == last ? fmt::format("CPU:0/cores={}", first) : fmt::format("CPU:0/cores={}-{}", first, last));
  }
  return list;
}

// Where tools/get_model puts it.
Result<std::filesystem::path> quickstart_model() {
  const std::filesystem::path file = cache_directory() / "SmolLM2-135M-Instruct.Q4_1.gguf";
  std::error_code ignored;
  if (std::filesystem::exists(file, ignored)) return file;
  return error(MOTLEY_NOT_FOUND, "{} is not there: run ./quickstart, or name a model", file.string());
}

void say(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

void show_plan(const Instance& instance) {
  say(instance.plan_picture());
  for (const DeviceWorker& worker : instance.workers()) {
    const std::vector<std::string> all = instance.devices().simulated();
    const bool simulated = std::find(all.begin(), all.end(), worker.device) != all.end();
    say(fmt::format("worker {} drives {}{}\n", worker.pid, worker.device, simulated ? ", SIMULATED" : ""));
  }
}

Result<Request> make_request(const Instance& instance, const DemoCommand& command, uint32_t room) {
  Request request;
  request.prompt = instance.tokenizer().encode(command.prompt, true, true);
  if (request.prompt.size() >= room)
    return invalid_argument("--prompt has {} tokens; at most {} fit", request.prompt.size(), room - 1);
  request.end_tokens = instance.tokenizer().end_tokens();
  request.params.temperature = 0;
  request.params.ignore_eos = true;
  request.params.max_tokens = std::min(command.max_tokens, static_cast<uint32_t>(room - request.prompt.size()));
  return request;
}

}  // namespace

Status demo(const DemoCommand& command) {
  InstanceOptions options = command.instance;
  options.isolation = Isolation::kAll;
  options.planning.use_all_devices = true;
  if (options.model.empty()) {
    ASSIGN_OR_RETURN(options.model, quickstart_model());
  }
  if (options.devices.empty()) options.devices = demo_devices(std::thread::hardware_concurrency());
  ASSIGN_OR_RETURN(const auto instance, Instance::open(options));
  if (instance->workers().size() < 2)
    return invalid_argument("--devices {}: the demonstration needs at least two, one to be killed", options.devices);
  show_plan(*instance);
  ASSIGN_OR_RETURN(Request request, make_request(*instance, command, instance->engine().max_model_len()));
  say("\n" + command.prompt);
  size_t parts = 0;
  DeviceWorker victim;
  const TextSink sink = [&](std::string_view text) {
    say(std::string(text));
    if (++parts == kKilledAfterTokens) {
      victim = instance->workers().back();
      say(fmt::format("\n[killing worker {}, which drives {}]\n", victim.pid, victim.device));
      kill(victim.pid, SIGKILL);
    }
    return std::ferror(stdout) == 0;  // nobody reads what follows
  };
  ASSIGN_OR_RETURN(const GenerateResult answer,
                   generate(instance->engine(), instance->tokenizer(), std::move(request), {}, sink));
  if (answer.finished == FinishReason::kError) return answer.status;
  if (victim.pid < 0) return invalid_argument("the answer was too short for a worker to be killed; raise --max-tokens");
  say(fmt::format("\n\n{} tokens, none lost. Without {}:\n", answer.tokens.size(), victim.device));
  show_plan(*instance);
  return ok_status();
}

}  // namespace motley::apps
