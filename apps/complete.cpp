#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "commands.hpp"
#include "llm/generate.hpp"
#include "trace_signals.hpp"

namespace motley::apps {
namespace {

double seconds(int64_t from_ns, int64_t to_ns) {
  return to_ns > from_ns ? static_cast<double>(to_ns - from_ns) * 1e-9 : 0.0;
}

nlohmann::ordered_json logprobs_json(const GenerateResult& generation) {
  auto list = nlohmann::ordered_json::array();
  for (const SampledToken& token : generation.tokens) {
    auto top = nlohmann::ordered_json::array();
    for (const auto& alternative : token.top) top.push_back({alternative.id, alternative.logprob});
    list.push_back({{"id", token.id}, {"logprob", token.logprob}, {"top", top}});
  }
  return list;
}

void print_json(const CompleteCommand& command, const std::vector<TokenId>& prompt, const GenerateResult& generation,
                const std::vector<DeviceWork>& devices, int64_t started_ns) {
  nlohmann::ordered_json out;
  out["prompt_token_ids"] = prompt;
  auto& ids = out["token_ids"] = nlohmann::ordered_json::array();
  for (const SampledToken& token : generation.tokens) ids.push_back(token.id);
  out["text"] = generation.text;
  out["finish_reason"] = finish_reason_name(generation.finished);
  out["logprobs"] = command.logprobs >= 0 ? logprobs_json(generation) : nlohmann::ordered_json();
  out["load_s"] = seconds(started_ns, generation.first_step_ns);
  out["prefill_s"] = seconds(generation.first_step_ns, generation.first_token_ns);
  out["devices"] = nlohmann::json::array();
  for (const DeviceWork& work : devices) {
    out["devices"].push_back({{"name", work.name},
                              {"programs", work.programs},
                              {"rows", work.rows},
                              {"bytes_moved", work.bytes_moved},
                              {"busy_s", work.busy_s}});
  }
  out["decode_s"] = seconds(generation.first_token_ns, generation.last_token_ns);
  std::printf("%s\n", out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

// The default gives way to the context; what the user asked for is refused beyond it, as the server does.
Result<uint32_t> answer_tokens(const CompleteCommand& command, size_t prompt_tokens, size_t context) {
  constexpr uint32_t kDefault = 128;
  const auto room = static_cast<uint32_t>(context - prompt_tokens);
  if (!command.max_tokens) return std::min(kDefault, room);
  if (*command.max_tokens <= room) return *command.max_tokens;
  return invalid_argument("the context is {} tokens; the prompt has {} and --max-tokens asks for {}: lower either",
                          context, prompt_tokens, *command.max_tokens);
}

}  // namespace

Status complete(const CompleteCommand& command, int64_t started_ns) {
  ASSIGN_OR_RETURN(const std::string prompt, read_prompt(command.prompt, command.prompt_file));
  const TraceSignals signals(command.instance.trace, {SIGINT, SIGTERM});
  ASSIGN_OR_RETURN(const auto instance, Instance::open(command.instance));
  Request request;
  request.prompt = instance->tokenizer().encode(prompt, true, true);
  if (request.prompt.empty()) return invalid_argument("the prompt is empty; give at least one character");
  const size_t room = instance->engine().max_model_len();
  if (request.prompt.size() >= room) {
    return invalid_argument("the prompt has {} tokens; --max-model-len {} leaves room for {}", request.prompt.size(),
                            room, room - 1);
  }
  request.end_tokens = instance->tokenizer().end_tokens();
  TokenSampling& params = request.params;
  params.temperature = command.temperature;
  params.top_p = command.top_p;
  params.top_k = command.top_k;
  params.min_p = command.min_p;
  params.seed = command.seed ? *command.seed : random_seed();
  ASSIGN_OR_RETURN(params.max_tokens, answer_tokens(command, request.prompt.size(), room));
  params.ignore_eos = command.ignore_eos;
  params.logprobs = command.logprobs;
  const std::vector<TokenId> prompt_ids = request.prompt;
  const TextSink sink = [&](std::string_view text) {
    if (!command.json) {
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    }
    return std::ferror(stdout) == 0;  // nobody reads what follows
  };
  ASSIGN_OR_RETURN(const GenerateResult generation,
                   generate(instance->engine(), instance->tokenizer(), std::move(request), {command.stop}, sink));
  if (generation.finished == FinishReason::kError) return generation.status;
  if (command.json) {
    print_json(command, prompt_ids, generation, instance->device_work(), started_ns);
  } else {
    std::fputc('\n', stdout);
  }
  return ok_status();
}

}  // namespace motley::apps
