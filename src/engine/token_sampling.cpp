// Ranges and names follow vLLM's SamplingParams.
#include <algorithm>
#include <cmath>
#include <iterator>

#include "base/limits.hpp"
#include "engine/request.hpp"

namespace motley {
namespace {

struct Range {
  const char* name;
  float TokenSampling::*field;
  float low, high;
  bool low_open;  // the lower bound itself is refused
  const char* text;
};

constexpr float kTemperatureMax = 1e6f;  // beyond it every choice is uniform anyway; keeps the arithmetic finite
constexpr float kRepetitionMax = 1e6f;

constexpr Range kRanges[] = {
    {"temperature", &TokenSampling::temperature, 0.0f, kTemperatureMax, false, "non-negative"},
    {"top_p", &TokenSampling::top_p, 0.0f, 1.0f, true, "in (0, 1]"},
    {"min_p", &TokenSampling::min_p, 0.0f, 1.0f, false, "in [0, 1]"},
    {"presence_penalty", &TokenSampling::presence_penalty, -2.0f, 2.0f, false, "in [-2, 2]"},
    {"frequency_penalty", &TokenSampling::frequency_penalty, -2.0f, 2.0f, false, "in [-2, 2]"},
    {"repetition_penalty", &TokenSampling::repetition_penalty, 0.0f, kRepetitionMax, true, "greater than zero"},
};

Status check_tokens(const TokenSampling& params, uint32_t vocab_size) {
  const auto known = [&](TokenId id) { return id >= 0 && static_cast<uint32_t>(id) < vocab_size; };
  if (params.stop_token_ids.size() > limits::kStopTokensMax)
    return invalid_argument("stop_token_ids must have at most {} entries, got {}", limits::kStopTokensMax,
                            params.stop_token_ids.size());
  for (const TokenId id : params.stop_token_ids)
    if (!known(id)) return invalid_argument("stop_token_ids must be in [0, {}), got {}", vocab_size, id);
  if (params.logit_bias.size() > limits::kLogitBiasMax)
    return invalid_argument("logit_bias must have at most {} entries, got {}", limits::kLogitBiasMax,
                            params.logit_bias.size());
  std::vector<TokenId> ids;
  ids.reserve(params.logit_bias.size());
  for (const motley_token_bias& bias : params.logit_bias) {
    if (!known(bias.id))
      return invalid_argument("logit_bias token ids must be in [0, {}), got {}", vocab_size, bias.id);
    if (std::isnan(bias.bias) || bias.bias == INFINITY)
      return invalid_argument("logit_bias of token {} must be a finite number", bias.id);
    ids.push_back(bias.id);
  }
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  if (twice != ids.end()) return invalid_argument("logit_bias names token {} twice", *twice);
  return ok_status();
}

}  // namespace

Status validate(const TokenSampling& params, uint32_t vocab_size) {
  for (const Range& range : kRanges) {
    const float value = params.*range.field;
    const bool inside = (range.low_open ? value > range.low : value >= range.low) && value <= range.high;
    if (!inside) return invalid_argument("{} must be {}, got {}", range.name, range.text, value);
  }
  if (params.top_k < -1) return invalid_argument("top_k must be 0 or -1 (off) or at least 1, got {}", params.top_k);
  if (params.max_tokens < 1) return invalid_argument("max_tokens must be at least 1, got {}", params.max_tokens);
  if (params.min_tokens > params.max_tokens)
    return invalid_argument("min_tokens must be less than or equal to max_tokens={}, got {}", params.max_tokens,
                            params.min_tokens);
  if (params.logprobs < -1 || params.logprobs > static_cast<int32_t>(limits::kTopLogprobsMax))
    return invalid_argument("logprobs must be in [0, {}], got {}", limits::kTopLogprobsMax, params.logprobs);
  if (params.choice >= limits::kChoicesMax)
    return invalid_argument("choice must be below {}, got {}", limits::kChoicesMax, params.choice);
  return check_tokens(params, vocab_size);
}

std::string_view finish_reason_name(FinishReason reason) {
  constexpr std::string_view kNames[] = {"stop", "length", "abort", "error"};
  return kNames[static_cast<size_t>(reason)];
}

}  // namespace motley
