#include "model/hf/rope_config.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <string>
#include <string_view>
#include <utility>

#include "base/quote.hpp"

namespace motley::hf {
namespace {

constexpr double kRopeBaseMax = 1e12;
constexpr double kFactorMax = 1e6;
constexpr std::string_view kOriginal = "original_max_position_embeddings";

struct RopeRequest {
  const Settings& model;    // the model's own keys
  const Settings& scaling;  // the rope's
  const LoadOptions& options;
  HyperParameters* parameters;
  std::vector<float>* divisors;
};

// The positions the model was trained on before its context was stretched; a key of the rope, or of the model.
Result<uint32_t> read_original_context(const RopeRequest& request) {
  ASSIGN_OR_RETURN(const auto own, request.scaling.count(kOriginal, 1, kContextMax));
  if (own) return *own;
  ASSIGN_OR_RETURN(const auto models, request.model.count(kOriginal, 1, kContextMax));
  return models.value_or(request.parameters->config.context_length);
}

Status scale_none(const RopeRequest& /*request*/) { return ok_status(); }

Status scale_linear(const RopeRequest& request) {
  ASSIGN_OR_RETURN(request.parameters->rope.linear_factor, request.scaling.required_positive("factor", kFactorMax));
  return ok_status();
}

// Llama 3.1's rule: frequencies whose wave is longer than the original context / low_freq_factor are divided by the
// factor, those shorter than the original context / high_freq_factor are kept, and between the two it is interpolated.
Status scale_llama3(const RopeRequest& request) {
  ASSIGN_OR_RETURN(const float factor, request.scaling.required_positive("factor", kFactorMax));
  ASSIGN_OR_RETURN(const float low, request.scaling.required_positive("low_freq_factor", kFactorMax));
  ASSIGN_OR_RETURN(const float high, request.scaling.required_positive("high_freq_factor", kFactorMax));
  if (low >= high) return request.scaling.invalid("high_freq_factor", "is not above 'low_freq_factor'");
  ASSIGN_OR_RETURN(const uint32_t original, read_original_context(request));
  const ModelConfig& config = request.parameters->config;
  for (uint32_t j = 0; j < config.rope_dims / 2; ++j) {
    const double wave =
        2 * std::numbers::pi * std::pow(static_cast<double>(config.rope_base), 2.0 * j / config.rope_dims);
    const double smooth = std::clamp((original / wave - low) / (static_cast<double>(high) - low), 0.0, 1.0);
    request.divisors->push_back(static_cast<float>(1 / ((1 - smooth) / factor + smooth)));
  }
  return ok_status();
}

// arXiv:2309.00071, with the magnitude that transformers gives cosine and sine.
Status scale_yarn(const RopeRequest& request) {
  const Settings& scaling = request.scaling;
  Rope& rope = request.parameters->rope;
  ASSIGN_OR_RETURN(const float factor, scaling.required_positive("factor", kFactorMax));
  rope.yarn_factor = std::max(1.0f, factor);
  ASSIGN_OR_RETURN(rope.original_context, read_original_context(request));
  ASSIGN_OR_RETURN(const auto fast, scaling.positive("beta_fast", kFactorMax));
  ASSIGN_OR_RETURN(const auto slow, scaling.positive("beta_slow", kFactorMax));
  ASSIGN_OR_RETURN(const auto truncate, scaling.flag("truncate"));
  rope.yarn_beta_fast = fast.value_or(rope.yarn_beta_fast);
  rope.yarn_beta_slow = slow.value_or(rope.yarn_beta_slow);
  rope.yarn_whole_bounds = truncate.value_or(true);
  if (request.parameters->config.rope_base <= 1) {
    return request.model.invalid("rope_theta", "is not above 1, as YaRN needs it");
  }
  ASSIGN_OR_RETURN(const auto given, scaling.positive("attention_factor", kFactorMax));
  ASSIGN_OR_RETURN(const auto scale, scaling.positive("mscale", kFactorMax));
  ASSIGN_OR_RETURN(const auto scale_all, scaling.positive("mscale_all_dim", kFactorMax));
  const auto magnitude = [&](double weight) {
    return 1 + 0.1 * weight * std::log(static_cast<double>(rope.yarn_factor));
  };
  rope.magnitude = static_cast<float>(scale && scale_all ? magnitude(*scale) / magnitude(*scale_all) : magnitude(1));
  if (given) rope.magnitude = *given;
  ModelConfig& config = request.parameters->config;
  const double stretched =
      std::min(static_cast<double>(kContextMax), static_cast<double>(factor) * rope.original_context);
  config.context_length = std::max(config.context_length, static_cast<uint32_t>(stretched));
  return ok_status();
}

// LongRoPE (arXiv:2402.13753): one list of divisors within the original context, another beyond. Which one is in
// force is decided once, by the positions that will be served.
Status scale_longrope(const RopeRequest& request) {
  HyperParameters& parameters = *request.parameters;
  ASSIGN_OR_RETURN(const uint32_t original, read_original_context(request));
  parameters.rope.original_context = original;
  ASSIGN_OR_RETURN(const auto factor, request.scaling.positive("factor", kFactorMax));
  const double stretch = factor ? *factor : static_cast<double>(parameters.config.context_length) / original;
  ASSIGN_OR_RETURN(const auto given, request.scaling.positive("attention_factor", kFactorMax));
  if (given) {
    parameters.rope.magnitude = *given;
  } else if (stretch > 1 && original > 1) {
    parameters.rope.magnitude = static_cast<float>(std::sqrt(1 + std::log(stretch) / std::log(original)));
  }
  const size_t count = parameters.config.rope_dims / 2;
  ASSIGN_OR_RETURN(auto far, request.scaling.positives("long_factor", count, kFactorMax));
  ASSIGN_OR_RETURN(auto near, request.scaling.positives("short_factor", count, kFactorMax));
  const uint32_t asked = request.options.max_model_len;
  const uint32_t served = asked > 0 ? asked : parameters.config.context_length;
  *request.divisors = served > original ? std::move(far) : std::move(near);
  return ok_status();
}

// Queries that grow with the position beyond the original context are not built; up to there they are plain.
Status check_temperature(const RopeRequest& request) {
  constexpr std::string_view kKey = "llama_4_scaling_beta";
  const JsonValue* value = request.scaling.find(kKey);
  if (value == nullptr || value->number() == 0.0) return ok_status();
  ASSIGN_OR_RETURN(const uint32_t plain, read_original_context(request));
  const uint32_t asked = request.options.max_model_len;
  if ((asked > 0 ? asked : request.parameters->config.context_length) <= plain) return ok_status();
  return error(MOTLEY_UNIMPLEMENTED,
               "key {}: asks for attention temperature beyond position {}, which is not built; give the model a length "
               "of at most {} (--max-model-len)",
               request.scaling.shown(kKey), plain, plain);
}

struct ScalingType {
  std::string_view name;
  Status (*apply)(const RopeRequest& request);
};
constexpr std::array kTypes = {ScalingType{"default", scale_none},      ScalingType{"linear", scale_linear},
                               ScalingType{"llama3", scale_llama3},     ScalingType{"yarn", scale_yarn},
                               ScalingType{"longrope", scale_longrope}, ScalingType{"su", scale_longrope}};

Status apply_scaling(const RopeRequest& request) {
  const std::string_view key = request.scaling.pick("rope_type", "type");
  ASSIGN_OR_RETURN(const auto name, request.scaling.text(key));
  const auto type = std::find_if(kTypes.begin(), kTypes.end(),
                                 [&](const ScalingType& entry) { return entry.name == name.value_or("default"); });
  if (type == kTypes.end()) return request.scaling.unbuilt(key, fmt::format("rope scaling {}", in_quotes(*name)));
  return type->apply(request);
}

// Layers with a window have a rope of their own: a base, and no scaling.
Status read_window_rope(const Settings& settings, const JsonValue* own, Rope* rope) {
  ASSIGN_OR_RETURN(const auto base, settings.positive("rope_local_base_freq", kRopeBaseMax));
  if (base) rope->window_base = *base;
  if (own == nullptr || own->object() == nullptr) return ok_status();
  const Settings window(*own, nullptr, "rope_parameters.sliding_attention.");
  const std::string_view key = window.pick("rope_type", "type");
  ASSIGN_OR_RETURN(const auto type, window.text(key));
  if (type && *type != "default") return window.unbuilt(key, "scaled rope in layers with a window");
  ASSIGN_OR_RETURN(rope->window_base, window.required_positive("rope_theta", kRopeBaseMax));
  return ok_status();
}

}  // namespace

Status read_rope(const Settings& settings, const LoadOptions& options, HyperParameters* parameters,
                 std::vector<float>* divisors) {
  static const JsonValue nothing;
  std::string path(settings.pick("rope_parameters", "rope_scaling"));
  const JsonValue* found = settings.find(path);
  if (found != nullptr && found->object() == nullptr) return settings.invalid(path, "is no object");
  if (found == nullptr) found = &nothing;
  const JsonValue* window = found->find("sliding_attention");
  if (const JsonValue* full = found->find("full_attention"); full != nullptr) {
    found = full;
    path += ".full_attention";
  }
  const Settings scaling(*found, nullptr, path + ".");

  ModelConfig& config = parameters->config;
  const Settings& holder = scaling.find("rope_theta") != nullptr ? scaling : settings;
  ASSIGN_OR_RETURN(const auto base, holder.positive("rope_theta", kRopeBaseMax));
  if (base) config.rope_base = *base;
  const Settings& partial = scaling.find("partial_rotary_factor") != nullptr ? scaling : settings;
  ASSIGN_OR_RETURN(const auto part, partial.positive("partial_rotary_factor", 1.0));
  // Whole dimensions; what is added outweighs the float's rounding.
  config.rope_dims = static_cast<uint32_t>(config.head_dim * static_cast<double>(part.value_or(1.0f)) + 1e-3);
  if (config.rope_dims < 2 || config.rope_dims % 2 != 0) {
    return partial.invalid("partial_rotary_factor",
                           fmt::format("leaves {} dimensions to turn, not an even number", config.rope_dims));
  }
  RETURN_IF_ERROR(read_window_rope(settings, window, &parameters->rope));
  const RopeRequest request{settings, scaling, options, parameters, divisors};
  RETURN_IF_ERROR(apply_scaling(request));
  return check_temperature(request);
}

}  // namespace motley::hf
