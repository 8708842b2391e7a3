#include "llm/sampling.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>

#include "model/hf/json.hpp"
#include "model/hf/settings.hpp"

namespace motley {
namespace {

constexpr std::pair<std::string_view, float SamplingParams::*> kNumbers[] = {
    {"temperature", &SamplingParams::temperature},
    {"top_p", &SamplingParams::top_p},
    {"min_p", &SamplingParams::min_p},
    {"repetition_penalty", &SamplingParams::repetition_penalty}};

Status read_top_k(const hf::Settings& settings, int32_t& out) {
  constexpr std::string_view kKey = "top_k";
  const hf::JsonValue* found = settings.find(kKey);
  if (found == nullptr) return ok_status();
  const auto value = found->integer();
  if (!value || *value < -1 || *value > std::numeric_limits<int32_t>::max()) {
    return settings.invalid(kKey, "must be a whole number from -1 up");
  }
  out = static_cast<int32_t>(*value);
  return ok_status();
}

}  // namespace

TokenSampling token_sampling(const SamplingParams& params) {
  TokenSampling out;
  out.temperature = params.temperature;
  out.top_p = params.top_p;
  out.top_k = params.top_k;
  out.min_p = params.min_p;
  out.presence_penalty = params.presence_penalty;
  out.frequency_penalty = params.frequency_penalty;
  out.repetition_penalty = params.repetition_penalty;
  out.min_tokens = params.min_tokens;
  out.ignore_eos = params.ignore_eos;
  out.stop_token_ids = params.stop_token_ids;
  for (const auto& [id, bias] : params.logit_bias) out.logit_bias.push_back({id, bias});
  if (params.logprobs) {
    out.logprobs = static_cast<int32_t>(std::min<uint32_t>(*params.logprobs, std::numeric_limits<int32_t>::max()));
  }
  return out;
}

Result<SamplingParams> read_sampling_defaults(std::string_view generation_config_json, const SamplingParams& plain) {
  SamplingParams params = plain;
  if (generation_config_json.empty()) return params;
  ASSIGN_OR_RETURN(const hf::JsonValue values, hf::parse_json(generation_config_json));
  const hf::Settings settings(values);
  for (const auto& [key, member] : kNumbers) {
    const hf::JsonValue* found = settings.find(key);
    if (found == nullptr) continue;
    const auto value = found->number();
    if (!value) return settings.invalid(key, "must be a number");
    params.*member = static_cast<float>(*value);
  }
  RETURN_IF_ERROR(read_top_k(settings, params.top_k));
  ASSIGN_OR_RETURN(const auto max_tokens, settings.count("max_new_tokens", 1, std::numeric_limits<uint32_t>::max()));
  if (max_tokens) params.max_tokens = max_tokens;
  return params;
}

Result<SamplingParams> advised_sampling(const Model& model, const SamplingParams& plain) {
  constexpr std::string_view kFile = "generation_config.json";
  auto params = read_sampling_defaults(model.tokenizer().generation_config_json, plain);
  if (!params.ok()) return params.error().annotate(kFile);
  TokenSampling sampling = token_sampling(*params);
  sampling.max_tokens = params->max_tokens.value_or(sampling.max_tokens);
  const Status status = validate(sampling, model.config().vocab_size);
  if (!status.ok()) return status.annotate(kFile);
  return params;
}

std::string describe_advice(const SamplingParams& advised, const SamplingParams& plain) {
  std::string text;
  const auto add = [&](std::string_view name, const auto& value) {
    fmt::format_to(std::back_inserter(text), "{}{} {}", text.empty() ? "" : ", ", name, value);
  };
  for (const auto& [key, member] : kNumbers) {
    if (advised.*member != plain.*member) add(key, advised.*member);
  }
  if (advised.top_k != plain.top_k) add("top_k", advised.top_k);
  if (advised.max_tokens && advised.max_tokens != plain.max_tokens) add("max_tokens", *advised.max_tokens);
  return text;
}

}  // namespace motley
