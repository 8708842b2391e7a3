#include "model/hf/config.hpp"

#include <array>
#include <cmath>
#include <string>
#include <utility>

#include "base/quote.hpp"
#include "model/hf/rope_config.hpp"
#include "model/hf/settings.hpp"

namespace motley::hf {
namespace {

constexpr uint64_t kLayersMax = 1024;
constexpr uint64_t kHiddenMax = 1u << 17;
constexpr uint64_t kHeadsMax = 4096;
constexpr uint64_t kHeadDimMax = 4096;
constexpr uint64_t kFfnMax = 1u << 20;
constexpr uint64_t kVocabularyMax = 1u << 24;
constexpr uint64_t kExpertsMax = 4096;
constexpr size_t kEndTokensMax = 256;
constexpr double kScaleMax = 1e6;

// Whole numbers that go into a field as they are. Absent ones leave the field as it was.
struct CountKey {
  std::string_view key;
  uint64_t least, most;
  bool required;
  uint32_t& (*field)(HyperParameters& parameters);
};
using P = HyperParameters;
constexpr std::array kCounts = {
    CountKey{"num_hidden_layers", 1, kLayersMax, true, [](P& p) -> uint32_t& { return p.config.layers; }},
    CountKey{"hidden_size", 1, kHiddenMax, true, [](P& p) -> uint32_t& { return p.config.hidden; }},
    CountKey{"intermediate_size", 1, kFfnMax, true, [](P& p) -> uint32_t& { return p.config.ffn; }},
    CountKey{"num_attention_heads", 1, kHeadsMax, true, [](P& p) -> uint32_t& { return p.config.heads; }},
    CountKey{"num_key_value_heads", 1, kHeadsMax, false, [](P& p) -> uint32_t& { return p.config.kv_heads; }},
    CountKey{"head_dim", 2, kHeadDimMax, false, [](P& p) -> uint32_t& { return p.config.head_dim; }},
    CountKey{"vocab_size", 1, kVocabularyMax, true, [](P& p) -> uint32_t& { return p.config.vocab_size; }},
    CountKey{"max_position_embeddings", 2, kContextMax, true,
             [](P& p) -> uint32_t& { return p.config.context_length; }},
    CountKey{"num_local_experts", 0, kExpertsMax, false, [](P& p) -> uint32_t& { return p.experts.count; }},
    CountKey{"num_experts", 0, kExpertsMax, false, [](P& p) -> uint32_t& { return p.experts.count; }},
    CountKey{"experts_per_token", 1, kExpertsMax, false, [](P& p) -> uint32_t& { return p.experts.used; }},
    CountKey{"num_experts_per_tok", 1, kExpertsMax, false, [](P& p) -> uint32_t& { return p.experts.used; }},
    CountKey{"moe_intermediate_size", 1, kFfnMax, false, [](P& p) -> uint32_t& { return p.experts.ffn; }},
    CountKey{"shared_expert_intermediate_size", 0, kFfnMax, false,
             [](P& p) -> uint32_t& { return p.experts.shared_ffn; }},
};

// Keys that change the computation and are not built. Null, false, 0, an empty list and `neutral` ask for nothing.
struct UnbuiltKey {
  std::string_view key;
  double neutral;
  std::string_view meaning;
};
constexpr std::array kUnbuilt = {
    UnbuiltKey{"residual_multiplier", 1, "scaled residuals"},
    UnbuiltKey{"embedding_multiplier", 1, "scaled embeddings"},
    UnbuiltKey{"scale_emb", 1, "scaled embeddings"},
    UnbuiltKey{"scale_depth", 0, "scaled residuals"},
    UnbuiltKey{"attention_multiplier", 0, "a scale of its own for attention"},
    UnbuiltKey{"logits_scaling", 1, "scaled logits"},
    UnbuiltKey{"logit_scale", 1, "scaled logits"},
    UnbuiltKey{"clip_qkv", 0, "clamped queries, keys and values"},
    UnbuiltKey{"alibi", 0, "ALiBi"},
    UnbuiltKey{"use_bidirectional_attention", 0, "attention that is not causal"},
    UnbuiltKey{"kv_lora_rank", 0, "latent attention"},
    UnbuiltKey{"attention_chunk_size", 0, "chunked attention"},
    UnbuiltKey{"no_rope_layers", 0, "layers without rope"},
    UnbuiltKey{"attn_temperature_tuning", 0, "attention temperature"},
    UnbuiltKey{"use_parallel_residual", 0, "parallel residuals"},
    UnbuiltKey{"parallel_attn", 0, "parallel residuals"},
    UnbuiltKey{"mlp_only_layers", 0, "dense layers between layers of experts"},
    UnbuiltKey{"decoder_sparse_step", 1, "dense layers between layers of experts"},
    UnbuiltKey{"cross_attention_layers", 0, "cross attention"},
    UnbuiltKey{"num_kv_shared_layers", 0, "layers that share keys and values"},
};

bool asks_for_nothing(const JsonValue& value, double neutral) {
  if (const bool* flag = value.boolean(); flag != nullptr) return !*flag;
  if (value.array() != nullptr) return value.array()->empty();
  const auto number = value.number();
  return number && (*number == 0 || *number == neutral);
}

Status refuse_unbuilt(const Settings& settings) {
  for (const UnbuiltKey& entry : kUnbuilt) {
    const JsonValue* value = settings.find(entry.key);
    if (value != nullptr && !asks_for_nothing(*value, entry.neutral)) return settings.unbuilt(entry.key, entry.meaning);
  }
  return ok_status();
}

Result<const Architecture*> choose_architecture(const Settings& root) {
  constexpr std::string_view kKey = "architectures";
  const JsonValue* classes = root.find(kKey);
  const JsonValue::Array* list = classes == nullptr ? nullptr : classes->array();
  if (list == nullptr || list->empty() || list->front().text() == nullptr) {
    return root.invalid(kKey, "does not name the model's class");
  }
  const Architecture* architecture = find_hugging_face_architecture(*list->front().text());
  if (architecture != nullptr) return architecture;
  return error(MOTLEY_UNIMPLEMENTED, "key '{}': class {} is not built; use a model of {}", kKey,
               in_quotes(*list->front().text()), architecture_names());
}

Status read_counts(const Settings& settings, HyperParameters* parameters) {
  for (const CountKey& entry : kCounts) {
    ASSIGN_OR_RETURN(const auto value, settings.count(entry.key, entry.least, entry.most));
    if (!value && entry.required) return settings.invalid(entry.key, "is missing");
    if (!value) continue;
    uint32_t& field = entry.field(*parameters);
    if (field != 0 && field != *value) {
      return settings.invalid(entry.key, fmt::format("is {}, but another key for the same is {}", *value, field));
    }
    field = *value;
  }
  ModelConfig& config = parameters->config;
  if (config.kv_heads == 0) config.kv_heads = config.heads;
  if (config.heads % config.kv_heads != 0) {
    return settings.invalid("num_key_value_heads",
                            fmt::format("{} heads cannot share {} KV heads evenly", config.heads, config.kv_heads));
  }
  if (config.head_dim == 0) {
    config.head_dim = config.hidden / config.heads;
    if (config.hidden % config.heads != 0) {
      return settings.invalid("num_attention_heads",
                              fmt::format("{} heads do not divide a width of {} evenly", config.heads, config.hidden));
    }
  }
  if (config.head_dim % 2 != 0 || config.head_dim > kHeadDimMax) {
    return settings.invalid("head_dim",
                            fmt::format("a head dimension of {} is odd or above {}", config.head_dim, kHeadDimMax));
  }
  return ok_status();
}

Status read_experts(const Settings& settings, HyperParameters* parameters) {
  Experts& experts = parameters->experts;
  if (experts.count == 0) {
    experts = Experts();
    return ok_status();
  }
  if (experts.used == 0) return settings.invalid("num_experts_per_tok", "is missing");
  if (experts.used > experts.count) {
    return settings.invalid("num_experts_per_tok",
                            fmt::format("is {}, but there are {} experts", experts.used, experts.count));
  }
  if (experts.ffn == 0) experts.ffn = parameters->config.ffn;
  return ok_status();
}

// Which layers see a window. `parameters` holds what the architecture implies.
Status read_windows(const Settings& settings, HyperParameters* parameters) {
  const uint32_t layers = parameters->config.layers;
  ASSIGN_OR_RETURN(const auto window, settings.count("sliding_window", 0, kContextMax));
  ASSIGN_OR_RETURN(const auto in_use, settings.flag("use_sliding_window"));
  parameters->window = in_use.value_or(true) ? window.value_or(0) : 0;
  if (const JsonValue* types = settings.find("layer_types"); types != nullptr) {
    if (types->array() == nullptr || types->array()->size() != layers) {
      return settings.invalid("layer_types", fmt::format("is no list of {} texts, one for each layer", layers));
    }
    for (const JsonValue& type : *types->array()) {
      const std::string name = type.text() == nullptr ? std::string(type.kind_name()) : *type.text();
      const bool sliding = name == "sliding_attention";
      if (!sliding && name != "full_attention") {
        return settings.unbuilt("layer_types", fmt::format("layers of {}", in_quotes(name)));
      }
      if (sliding && parameters->window == 0) {
        return settings.invalid("layer_types", "has sliding layers, but 'sliding_window' gives them no window");
      }
      parameters->windows.push_back(sliding ? parameters->window : 0);
    }
    return ok_status();
  }
  const std::string_view pattern = settings.pick("sliding_window_pattern", "_sliding_window_pattern");
  ASSIGN_OR_RETURN(const auto period, settings.count(pattern, 1, kLayersMax));
  if (period) parameters->window_period = *period;
  ASSIGN_OR_RETURN(const auto first, settings.count("max_window_layers", 0, kLayersMax));
  if (!first || parameters->window == 0) return ok_status();
  for (uint32_t layer = 0; layer < layers; ++layer) {
    parameters->windows.push_back(layer >= *first ? parameters->window : 0);
  }
  return ok_status();
}

Status check_activation(const Settings& settings, std::string_view built) {
  const std::string_view key = settings.pick("hidden_activation", "hidden_act");
  ASSIGN_OR_RETURN(const auto name, settings.text(key));
  if (!name || *name == built || (*name == "swish" && built == "silu")) return ok_status();
  return settings.unbuilt(key, fmt::format("activation {}", in_quotes(*name)));
}

// Here a file that is silent means none, whatever the architecture implies of other files.
Status read_numbers(const Settings& settings, HyperParameters* parameters) {
  ASSIGN_OR_RETURN(parameters->config.norm_eps, settings.required_positive("rms_norm_eps", 1.0));
  ASSIGN_OR_RETURN(const auto scalar, settings.positive("query_pre_attn_scalar", kScaleMax));
  parameters->attention_scale = scalar ? 1.0f / std::sqrt(*scalar) : 0;
  ASSIGN_OR_RETURN(const auto attention_cap, settings.positive("attn_logit_softcapping", kScaleMax));
  parameters->attention_softcap = attention_cap.value_or(0);
  ASSIGN_OR_RETURN(const auto logit_cap, settings.positive("final_logit_softcapping", kScaleMax));
  parameters->logit_softcap = logit_cap.value_or(0);
  ASSIGN_OR_RETURN(const auto limit, settings.positive("swiglu_limit", kScaleMax));
  if (limit) parameters->glu_limit = *limit;
  ASSIGN_OR_RETURN(const auto alpha, settings.positive("swiglu_alpha", kScaleMax));
  if (alpha) parameters->glu_alpha = *alpha;
  ASSIGN_OR_RETURN(const auto normalise, settings.flag("norm_topk_prob"));
  if (normalise) parameters->experts.normalise = *normalise;
  return ok_status();
}

}  // namespace

Result<std::vector<int32_t>> read_end_tokens(const JsonValue& values, uint32_t vocab_size) {
  constexpr std::string_view kKey = "eos_token_id";
  const Settings settings(values);
  std::vector<int32_t> ids;
  const JsonValue* found = settings.find(kKey);
  if (found == nullptr) return ids;
  const JsonValue::Array one = {*found};
  const JsonValue::Array& list = found->array() == nullptr ? one : *found->array();
  if (list.size() > kEndTokensMax) return settings.invalid(kKey, fmt::format("has more than {} ids", kEndTokensMax));
  for (const JsonValue& id : list) {
    const int64_t number = id.integer().value_or(-1);
    if (number < 0 || number >= vocab_size) {
      return settings.invalid(kKey, fmt::format("is no id, or not below the {} of the vocabulary", vocab_size));
    }
    ids.push_back(static_cast<int32_t>(number));
  }
  return ids;
}

Result<ModelDescription> parse_config(std::string_view text, const LoadOptions& options) {
  ASSIGN_OR_RETURN(const JsonValue root, parse_json(text));
  if (root.object() == nullptr) return invalid_argument("is no JSON object; get the model again");
  ModelDescription model;
  ASSIGN_OR_RETURN(model.architecture, choose_architecture(Settings(root)));
  const HuggingFaceTraits& traits = model.architecture->hugging_face;
  ASSIGN_OR_RETURN(const JsonValue defaults, parse_json(traits.defaults));
  // A model for several kinds of input keeps its language model's keys apart.
  const JsonValue* language = root.find("text_config");
  const JsonValue& values = language != nullptr && language->object() != nullptr ? *language : root;
  const Settings settings(values, &defaults);

  HyperParameters& parameters = model.parameters;
  parameters.config.architecture = std::string(model.architecture->name);
  RETURN_IF_ERROR(refuse_unbuilt(settings));
  RETURN_IF_ERROR(check_activation(settings, traits.activation));
  RETURN_IF_ERROR(read_counts(settings, &parameters));
  RETURN_IF_ERROR(read_experts(settings, &parameters));
  if (model.architecture->needs_experts && parameters.experts.count == 0) {
    return settings.invalid("num_experts", "is missing or 0, but the model's class has experts");
  }
  if (model.architecture->imply != nullptr) model.architecture->imply(parameters);
  parameters.rope.style = MOTLEY_ROPE_NEOX;
  RETURN_IF_ERROR(read_numbers(settings, &parameters));
  RETURN_IF_ERROR(read_windows(settings, &parameters));
  RETURN_IF_ERROR(read_rope(settings, options, &parameters, &model.rope_divisors));
  if (!model.rope_divisors.empty()) parameters.rope.divisors = kRopeDivisorsName;
  ASSIGN_OR_RETURN(model.quantization, read_quantization(root));
  ASSIGN_OR_RETURN(model.tied_head, settings.flag("tie_word_embeddings"));
  if (!model.tied_head) {
    ASSIGN_OR_RETURN(model.tied_head, Settings(root).flag("tie_word_embeddings"));
  }
  ASSIGN_OR_RETURN(model.end_tokens,
                   read_end_tokens(root.find("eos_token_id") != nullptr ? root : values, parameters.config.vocab_size));
  return model;
}

}  // namespace motley::hf
