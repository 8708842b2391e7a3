#include "llm/sampling_defaults.hpp"

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

Result<SamplingParams> read_sampling_defaults(std::string_view generation_config_json) {
  SamplingParams params;
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

}  // namespace motley
