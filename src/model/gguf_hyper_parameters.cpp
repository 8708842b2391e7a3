#include "model/gguf_hyper_parameters.hpp"

#include <array>
#include <cmath>
#include <utility>

#include "base/quote.hpp"

namespace motley {
namespace {

constexpr uint64_t kLayersMax = 1024;
constexpr uint64_t kHiddenMax = 1u << 17;
constexpr uint64_t kHeadsMax = 4096;
constexpr uint64_t kHeadDimMax = 4096;
constexpr uint64_t kFfnMax = 1u << 20;
constexpr uint64_t kContextMax = 1u << 28;
constexpr uint64_t kVocabularyMax = 1u << 24;
constexpr uint64_t kExpertsMax = 4096;
constexpr double kRopeBaseMax = 1e12;
constexpr double kRopeFactorMax = 1e6;
constexpr double kScaleMax = 1e6;

// Keys that change the computation and are not built. A value of `neutral` or 0 asks for nothing.
struct UnbuiltKey {
  std::string_view suffix;
  double neutral;
  std::string_view meaning;
};
constexpr std::array kUnbuiltKeys = {
    UnbuiltKey{"attention.clamp_kqv", 0, "clamped queries, keys and values"},
    UnbuiltKey{"attention.max_alibi_bias", 0, "ALiBi"},
    UnbuiltKey{"logit_scale", 1, "scaled logits"},
    UnbuiltKey{"embedding_scale", 1, "scaled embeddings"},
    UnbuiltKey{"residual_scale", 1, "scaled residuals"},
    UnbuiltKey{"rope.scaling.yarn_ext_factor", 1, "YaRN of another strength"},
    UnbuiltKey{"leading_dense_block_count", 0, "dense layers before those with experts"},
    UnbuiltKey{"interleave_moe_layer_step", 1, "dense layers between those with experts"},
    UnbuiltKey{"expert_group_count", 1, "experts in groups"},
    UnbuiltKey{"nextn_predict_layers", 0, "layers that predict later tokens"},
};

// Weights that divide the frequencies of rope: one for all lengths, or two of which the served length chooses.
constexpr std::string_view kDivisors = "rope_freqs.weight";
constexpr std::string_view kLongDivisors = "rope_factors_long.weight";
constexpr std::string_view kShortDivisors = "rope_factors_short.weight";

// The keys of one architecture: each read names its full key in errors.
class Reader {
 public:
  Reader(const GgufFile& file, const WeightStore& weights, std::string_view architecture)
      : file_(file), weights_(weights), prefix_(std::string(architecture) + ".") {}

  std::string key(std::string_view suffix) const { return prefix_ + std::string(suffix); }

  Result<uint64_t> count(std::string_view suffix, uint64_t least, uint64_t most) const {
    ASSIGN_OR_RETURN(const auto value, optional_count(suffix, least, most));
    if (!value) return missing(suffix);
    return *value;
  }

  Result<std::optional<uint64_t>> optional_count(std::string_view suffix, uint64_t least, uint64_t most) const {
    ASSIGN_OR_RETURN(auto value, file_.read_count(key(suffix)));
    if (value && (*value < least || *value > most)) return out_of_range(suffix, *value, least, most);
    return value;
  }

  // A scalar, or an array with the same value for each of `layers` layers.
  Result<std::optional<uint64_t>> layer_count(std::string_view suffix, uint64_t layers, uint64_t most) const {
    const GgufEntry* entry = file_.find(key(suffix));
    if (entry == nullptr || entry->type != GgufType::kArray) return optional_count(suffix, 1, most);
    if (entry->count != layers) {
      return gguf_key_error(*entry,
                            fmt::format("has {} elements for {} layers; {}", entry->count, layers, kConvertAgain));
    }
    const std::optional<int64_t> first = gguf_integer(*entry, 0);
    if (!first) return gguf_key_error(*entry, fmt::format("is not an array of whole numbers; {}", kConvertAgain));
    for (uint64_t i = 1; i < entry->count; ++i) {
      if (gguf_integer(*entry, i) == first) continue;
      return error(MOTLEY_UNIMPLEMENTED,
                   "key {} (byte {}): differs between layers, which is not built; use another model",
                   in_quotes(entry->key), entry->offset);
    }
    if (*first < 1 || static_cast<uint64_t>(*first) > most) return out_of_range(suffix, *first, 1, most);
    return std::optional<uint64_t>(static_cast<uint64_t>(*first));
  }

  // In (0, most].
  Result<std::optional<double>> positive(std::string_view suffix, double most) const {
    ASSIGN_OR_RETURN(auto value, file_.read_number(key(suffix)));
    if (value && (*value <= 0 || *value > most)) return out_of_range(suffix, *value, "above 0", most);
    return value;
  }

  Status missing(std::string_view suffix) const {
    return invalid_argument("key {}: is missing; {}", in_quotes(key(suffix)), kConvertAgain);
  }

  Status refuse(std::string_view suffix, std::string_view meaning) const {
    const GgufEntry* entry = file_.find(key(suffix));
    return error(MOTLEY_UNIMPLEMENTED, "key {} (byte {}): asks for {}, which is not built; use another model",
                 in_quotes(key(suffix)), entry == nullptr ? 0 : entry->offset, meaning);
  }

  Status contradiction(std::string_view suffix, std::string_view what) const {
    const GgufEntry* entry = file_.find(key(suffix));
    return invalid_argument("key {} (byte {}): {}; {}", in_quotes(key(suffix)), entry == nullptr ? 0 : entry->offset,
                            what, kConvertAgain);
  }

  // Sets *value where the key is there: a number in (0, most].
  Status overwrite(std::string_view suffix, double most, float* value) const {
    ASSIGN_OR_RETURN(const auto found, positive(suffix, most));
    if (found) *value = static_cast<float>(*found);
    return ok_status();
  }
  Status overwrite(std::string_view suffix, uint64_t least, uint64_t most, uint32_t* value) const {
    ASSIGN_OR_RETURN(const auto found, optional_count(suffix, least, most));
    if (found) *value = static_cast<uint32_t>(*found);
    return ok_status();
  }

  const GgufFile& file() const { return file_; }
  const WeightStore& weights() const { return weights_; }

 private:
  template <typename Value, typename Least, typename Most>
  Status out_of_range(std::string_view suffix, Value value, Least least, Most most) const {
    const GgufEntry* entry = file_.find(key(suffix));
    return gguf_key_error(*entry, fmt::format("is {}, not from {} to {}; {}", value, least, most, kConvertAgain));
  }

  const GgufFile& file_;
  const WeightStore& weights_;
  std::string prefix_;
};

Status read_sizes(const Reader& reader, ModelConfig* config) {
  ASSIGN_OR_RETURN(const uint64_t layers, reader.count("block_count", 1, kLayersMax));
  if (layers > reader.weights().size()) {
    return reader.contradiction("block_count",
                                fmt::format("{} layers, but the file has {} tensors", layers, reader.weights().size()));
  }
  ASSIGN_OR_RETURN(const uint64_t hidden, reader.count("embedding_length", 1, kHiddenMax));
  ASSIGN_OR_RETURN(const uint64_t context, reader.count("context_length", 2, kContextMax));
  ASSIGN_OR_RETURN(const auto ffn, reader.layer_count("feed_forward_length", layers, kFfnMax));
  if (!ffn) return reader.missing("feed_forward_length");
  config->layers = static_cast<uint32_t>(layers);
  config->hidden = static_cast<uint32_t>(hidden);
  config->context_length = static_cast<uint32_t>(context);
  config->ffn = static_cast<uint32_t>(*ffn);
  return ok_status();
}

Status read_attention(const Reader& reader, ModelConfig* config) {
  ASSIGN_OR_RETURN(const auto heads, reader.layer_count("attention.head_count", config->layers, kHeadsMax));
  if (!heads) return reader.missing("attention.head_count");
  ASSIGN_OR_RETURN(const auto kv_heads, reader.layer_count("attention.head_count_kv", config->layers, kHeadsMax));
  config->heads = static_cast<uint32_t>(*heads);
  config->kv_heads = static_cast<uint32_t>(kv_heads.value_or(*heads));
  if (config->heads % config->kv_heads != 0) {
    return reader.contradiction("attention.head_count_kv", fmt::format("{} heads cannot share {} KV heads evenly",
                                                                       config->heads, config->kv_heads));
  }
  ASSIGN_OR_RETURN(const auto key_length, reader.optional_count("attention.key_length", 1, kHeadDimMax));
  ASSIGN_OR_RETURN(const auto value_length, reader.optional_count("attention.value_length", 1, kHeadDimMax));
  const uint64_t default_length = config->hidden / config->heads;
  if ((!key_length || !value_length) && config->hidden % config->heads != 0) {
    return reader.contradiction("attention.head_count", fmt::format("{} heads do not divide a width of {} evenly",
                                                                    config->heads, config->hidden));
  }
  config->head_dim = static_cast<uint32_t>(key_length.value_or(default_length));
  if (value_length.value_or(default_length) != config->head_dim) {
    return reader.refuse(value_length ? "attention.value_length" : "attention.key_length",
                         "values of another length than the keys");
  }
  if (config->head_dim % 2 != 0 || config->head_dim > kHeadDimMax) {
    return reader.contradiction(
        key_length ? "attention.key_length" : "attention.head_count",
        fmt::format("a head dimension of {} is odd or above {}", config->head_dim, kHeadDimMax));
  }
  ASSIGN_OR_RETURN(const auto eps, reader.positive("attention.layer_norm_rms_epsilon", 1.0));
  if (!eps) return reader.missing("attention.layer_norm_rms_epsilon");
  config->norm_eps = static_cast<float>(*eps);
  return ok_status();
}

Status read_experts(const Reader& reader, HyperParameters* parameters) {
  Experts& experts = parameters->experts;
  RETURN_IF_ERROR(reader.overwrite("expert_count", 0, kExpertsMax, &experts.count));
  if (experts.count == 0) return ok_status();
  ASSIGN_OR_RETURN(const uint64_t used, reader.count("expert_used_count", 1, experts.count));
  experts.used = static_cast<uint32_t>(used);
  experts.ffn = parameters->config.ffn;
  RETURN_IF_ERROR(reader.overwrite("expert_feed_forward_length", 1, kFfnMax, &experts.ffn));
  return reader.overwrite("expert_shared_feed_forward_length", 0, kFfnMax, &experts.shared_ffn);
}

Status read_routing(const Reader& reader, Experts* experts) {
  ASSIGN_OR_RETURN(const auto gating, reader.optional_count("expert_gating_func", 0, INT32_MAX));
  if (gating.value_or(0) > 3) {
    return reader.refuse("expert_gating_func", fmt::format("gating function {} of the router", *gating));
  }
  if (gating.value_or(0) > 0) experts->gating = static_cast<int32_t>(*gating);
  ASSIGN_OR_RETURN(const auto normalise, reader.file().read_bool(reader.key("expert_weights_norm")));
  experts->normalise = normalise.value_or(experts->normalise);
  return reader.overwrite("expert_weights_scale", kScaleMax, &experts->scale);
}

// Which layers see a window: a period, or a flag for each layer.
Status read_windows(const Reader& reader, HyperParameters* parameters) {
  constexpr std::string_view kPattern = "attention.sliding_window_pattern";
  const uint32_t layers = parameters->config.layers;
  RETURN_IF_ERROR(reader.overwrite("attention.sliding_window", 0, kContextMax, &parameters->window));
  const GgufEntry* pattern = reader.file().find(reader.key(kPattern));
  if (pattern == nullptr || pattern->type != GgufType::kArray) {
    return reader.overwrite(kPattern, 1, kLayersMax, &parameters->window_period);
  }
  if (pattern->element != GgufType::kBool || pattern->count != layers) {
    return reader.contradiction(kPattern, fmt::format("is not an array of {} bools, one for each layer", layers));
  }
  for (const std::byte flag : pattern->payload) {
    parameters->windows.push_back(std::to_integer<int>(flag) != 0 ? parameters->window : 0);
  }
  return ok_status();
}

// The magnitude that cosine and sine get: arXiv:2309.00071, section 3.4, and DeepSeek's form of it with a second term.
Status read_yarn(const Reader& reader, float attention_factor, HyperParameters* parameters) {
  Rope& rope = parameters->rope;
  ASSIGN_OR_RETURN(const auto factor, reader.positive("rope.scaling.factor", kRopeFactorMax));
  if (!factor) return reader.missing("rope.scaling.factor");
  rope.yarn_factor = std::max(1.0f, static_cast<float>(*factor));
  RETURN_IF_ERROR(reader.overwrite("rope.scaling.yarn_beta_fast", kRopeFactorMax, &rope.yarn_beta_fast));
  RETURN_IF_ERROR(reader.overwrite("rope.scaling.yarn_beta_slow", kRopeFactorMax, &rope.yarn_beta_slow));
  if (parameters->config.rope_base <= 1) {
    return reader.contradiction("rope.freq_base", "is not above 1, as YaRN needs it");
  }
  ASSIGN_OR_RETURN(const auto multiplier, reader.file().read_number(reader.key("rope.scaling.yarn_log_multiplier")));
  const auto magnitude = [&](double weight) { return 1 + 0.1 * weight * std::log(rope.yarn_factor); };
  rope.magnitude = static_cast<float>(attention_factor * magnitude(1) / magnitude(multiplier.value_or(0)));
  if (std::isfinite(rope.magnitude) && rope.magnitude > 0) return ok_status();
  return reader.contradiction("rope.scaling.yarn_log_multiplier", "gives no magnitude above 0");
}

Status read_rope_scaling(const Reader& reader, const LoadOptions& options, HyperParameters* parameters) {
  Rope& rope = parameters->rope;
  ASSIGN_OR_RETURN(const auto type, reader.file().read_string(reader.key("rope.scaling.type")));
  ASSIGN_OR_RETURN(const auto factor, reader.positive("rope.scaling.factor", kRopeFactorMax));
  ASSIGN_OR_RETURN(const auto old_factor, reader.positive("rope.scale_linear", kRopeFactorMax));
  rope.original_context = parameters->config.context_length;
  RETURN_IF_ERROR(reader.overwrite("rope.scaling.original_context_length", 1, kContextMax, &rope.original_context));
  float attention_factor = 1;
  RETURN_IF_ERROR(reader.overwrite("rope.scaling.attn_factor", kScaleMax, &attention_factor));
  RETURN_IF_ERROR(reader.overwrite("rope.scaling.yarn_attn_factor", kScaleMax, &attention_factor));
  rope.magnitude = attention_factor;
  if (reader.weights().has(kDivisors)) rope.divisors = kDivisors;
  const bool by_length = reader.weights().has(kLongDivisors) && reader.weights().has(kShortDivisors);
  if (by_length || type == "longrope") {
    const uint32_t served = options.max_model_len > 0 ? options.max_model_len : parameters->config.context_length;
    rope.divisors = served > rope.original_context ? kLongDivisors : kShortDivisors;
    return ok_status();
  }
  if (type == "yarn") return read_yarn(reader, attention_factor, parameters);
  if (type == "none") return ok_status();
  if (type && *type != "linear") {
    return reader.refuse("rope.scaling.type", fmt::format("rope scaling {}", in_quotes(*type)));
  }
  // The format's default type is linear, and its factor once had another key.
  rope.linear_factor = static_cast<float>(factor.value_or(old_factor.value_or(1.0)));
  return ok_status();
}

// Queries that grow with the position beyond the original context are not built; up to there they are plain.
Status check_temperature(const Reader& reader, const LoadOptions& options, const HyperParameters& parameters) {
  ASSIGN_OR_RETURN(const auto scale, reader.file().read_number(reader.key("attention.temperature_scale")));
  const uint32_t plain = parameters.rope.original_context;
  const uint32_t served = options.max_model_len > 0 ? options.max_model_len : parameters.config.context_length;
  if (scale.value_or(0) == 0 || served <= plain) return ok_status();
  return error(MOTLEY_UNIMPLEMENTED,
               "key {} (byte {}): asks for attention temperature beyond position {}, which is not built; give the "
               "model a length of at most {} (--max-model-len)",
               in_quotes(reader.key("attention.temperature_scale")),
               reader.file().find(reader.key("attention.temperature_scale"))->offset, plain, plain);
}

Status read_rope(const Reader& reader, const LoadOptions& options, HyperParameters* parameters) {
  ModelConfig& config = parameters->config;
  RETURN_IF_ERROR(reader.overwrite("rope.freq_base", kRopeBaseMax, &config.rope_base));
  RETURN_IF_ERROR(reader.overwrite("rope.freq_base_swa", kRopeBaseMax, &parameters->rope.window_base));
  config.rope_dims = config.head_dim;
  RETURN_IF_ERROR(reader.overwrite("rope.dimension_count", 2, kHeadDimMax, &config.rope_dims));
  if (config.rope_dims > config.head_dim || config.rope_dims % 2 != 0) {
    return reader.contradiction("rope.dimension_count", fmt::format("{} is odd or above the head dimension {}",
                                                                    config.rope_dims, config.head_dim));
  }
  RETURN_IF_ERROR(read_rope_scaling(reader, options, parameters));
  return check_temperature(reader, options, *parameters);
}

// The vocabulary is as large as the embedding table; the tokenizer and the vocab_size key must agree with it.
Status read_vocabulary(const Reader& reader, ModelConfig* config) {
  const size_t embedding = reader.weights().find("token_embd.weight");
  if (embedding == reader.weights().size()) {
    return invalid_argument("tensor 'token_embd.weight': is missing; {}", kGetFileAgain);
  }
  const auto rows = static_cast<uint64_t>(reader.weights().at(embedding).ne[1]);
  if (rows > kVocabularyMax) {
    return invalid_argument("{}: {} tokens are more than {}; {}", reader.weights().place(embedding), rows,
                            kVocabularyMax, kConvertAgain);
  }
  ASSIGN_OR_RETURN(const auto declared, reader.optional_count("vocab_size", 1, kVocabularyMax));
  if (declared && *declared != rows) {
    return reader.contradiction("vocab_size",
                                fmt::format("is {}, but 'token_embd.weight' has {} rows", *declared, rows));
  }
  const GgufEntry* tokens = reader.file().find("tokenizer.ggml.tokens");
  if (tokens != nullptr && tokens->type == GgufType::kArray && tokens->count != rows) {
    return gguf_key_error(*tokens, fmt::format("has {} tokens, but 'token_embd.weight' has {} rows; {}", tokens->count,
                                               rows, kConvertAgain));
  }
  config->vocab_size = static_cast<uint32_t>(rows);
  return ok_status();
}

Status refuse_unbuilt(const Reader& reader) {
  for (const UnbuiltKey& unbuilt : kUnbuiltKeys) {
    ASSIGN_OR_RETURN(const auto value, reader.file().read_number(reader.key(unbuilt.suffix)));
    if (value && *value != 0 && *value != unbuilt.neutral) return reader.refuse(unbuilt.suffix, unbuilt.meaning);
  }
  ASSIGN_OR_RETURN(const auto parallel, reader.file().read_bool(reader.key("use_parallel_residual")));
  if (parallel.value_or(false)) return reader.refuse("use_parallel_residual", "parallel residuals");
  ASSIGN_OR_RETURN(const auto causal, reader.file().read_bool(reader.key("attention.causal")));
  if (!causal.value_or(true)) return reader.refuse("attention.causal", "attention that is not causal");
  return ok_status();
}

}  // namespace

Result<HyperParameters> read_hyper_parameters(const GgufFile& file, const WeightStore& weights,
                                              const Architecture& architecture, const LoadOptions& options) {
  const Reader reader(file, weights, architecture.name);
  HyperParameters parameters;
  ModelConfig& config = parameters.config;
  config.architecture = std::string(architecture.name);
  ASSIGN_OR_RETURN(const auto name, file.read_string("general.name"));
  config.name = std::string(name.value_or(""));
  RETURN_IF_ERROR(refuse_unbuilt(reader));
  RETURN_IF_ERROR(read_sizes(reader, &config));
  RETURN_IF_ERROR(read_attention(reader, &config));
  RETURN_IF_ERROR(read_experts(reader, &parameters));
  if (architecture.imply != nullptr) architecture.imply(parameters);
  RETURN_IF_ERROR(read_routing(reader, &parameters.experts));
  RETURN_IF_ERROR(read_windows(reader, &parameters));
  RETURN_IF_ERROR(reader.overwrite("attention.scale", kScaleMax, &parameters.attention_scale));
  RETURN_IF_ERROR(reader.overwrite("attn_logit_softcapping", kScaleMax, &parameters.attention_softcap));
  RETURN_IF_ERROR(reader.overwrite("final_logit_softcapping", kScaleMax, &parameters.logit_softcap));
  RETURN_IF_ERROR(read_rope(reader, options, &parameters));
  RETURN_IF_ERROR(read_vocabulary(reader, &config));
  return parameters;
}

}  // namespace motley
