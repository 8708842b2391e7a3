#include "model/hyper_parameters.hpp"

#include <array>
#include <utility>

namespace motley {
namespace {

constexpr uint64_t kLayersMax = 1024;
constexpr uint64_t kHiddenMax = 1u << 17;
constexpr uint64_t kHeadsMax = 4096;
constexpr uint64_t kHeadDimMax = 4096;
constexpr uint64_t kFfnMax = 1u << 20;
constexpr uint64_t kContextMax = 1u << 28;
constexpr uint64_t kVocabularyMax = 1u << 24;
constexpr double kRopeBaseMax = 1e12;
constexpr double kRopeFactorMax = 1e6;

// Keys that change the computation and are not built. A value of `neutral` or 0 asks for nothing.
struct UnbuiltKey {
  std::string_view suffix;
  double neutral;
  std::string_view meaning;
};
constexpr std::array kUnbuiltKeys = {
    UnbuiltKey{"expert_count", 0, "mixture of experts"},
    UnbuiltKey{"attention.sliding_window", 0, "sliding-window attention"},
    UnbuiltKey{"attention.scale", 0, "a scale of its own for attention"},
    UnbuiltKey{"attention.clamp_kqv", 0, "clamped queries, keys and values"},
    UnbuiltKey{"attention.max_alibi_bias", 0, "ALiBi"},
    UnbuiltKey{"attention.temperature_scale", 0, "attention temperature"},
    UnbuiltKey{"attn_logit_softcapping", 0, "capped attention logits"},
    UnbuiltKey{"final_logit_softcapping", 0, "capped logits"},
    UnbuiltKey{"logit_scale", 1, "scaled logits"},
    UnbuiltKey{"embedding_scale", 1, "scaled embeddings"},
    UnbuiltKey{"residual_scale", 1, "scaled residuals"},
};

// The keys of one architecture: each read names its full key in errors.
class Reader {
 public:
  Reader(const GgufFile& file, std::string_view architecture) : file_(file), prefix_(std::string(architecture) + ".") {}

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
                   gguf_quote(entry->key), entry->offset);
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
    return invalid_argument("key {}: is missing; {}", gguf_quote(key(suffix)), kConvertAgain);
  }

  Status refuse(std::string_view suffix, std::string_view meaning) const {
    const GgufEntry* entry = file_.find(key(suffix));
    return error(MOTLEY_UNIMPLEMENTED, "key {} (byte {}): asks for {}, which is not built; use another model",
                 gguf_quote(key(suffix)), entry == nullptr ? 0 : entry->offset, meaning);
  }

  Status contradiction(std::string_view suffix, std::string_view what) const {
    const GgufEntry* entry = file_.find(key(suffix));
    return invalid_argument("key {} (byte {}): {}; {}", gguf_quote(key(suffix)), entry == nullptr ? 0 : entry->offset,
                            what, kConvertAgain);
  }

  const GgufFile& file() const { return file_; }

 private:
  template <typename Value, typename Least, typename Most>
  Status out_of_range(std::string_view suffix, Value value, Least least, Most most) const {
    const GgufEntry* entry = file_.find(key(suffix));
    return gguf_key_error(*entry, fmt::format("is {}, not from {} to {}; {}", value, least, most, kConvertAgain));
  }

  const GgufFile& file_;
  std::string prefix_;
};

Status read_sizes(const Reader& reader, ModelConfig* config) {
  ASSIGN_OR_RETURN(const uint64_t layers, reader.count("block_count", 1, kLayersMax));
  if (layers > reader.file().tensors().size()) {
    return reader.contradiction(
        "block_count", fmt::format("{} layers, but the file has {} tensors", layers, reader.file().tensors().size()));
  }
  ASSIGN_OR_RETURN(const uint64_t hidden, reader.count("embedding_length", 1, kHiddenMax));
  ASSIGN_OR_RETURN(const uint64_t context, reader.count("context_length", 1, kContextMax));
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

Result<float> read_position_scale(const Reader& reader) {
  ASSIGN_OR_RETURN(const auto type, reader.file().read_string(reader.key("rope.scaling.type")));
  ASSIGN_OR_RETURN(const auto factor, reader.positive("rope.scaling.factor", kRopeFactorMax));
  ASSIGN_OR_RETURN(const auto old_factor, reader.positive("rope.scale_linear", kRopeFactorMax));
  if (type == "none") return 1.0f;
  if (type && *type != "linear") {
    return reader.refuse("rope.scaling.type", fmt::format("rope scaling {}", gguf_quote(*type)));
  }
  // The format's default type is linear, and its factor once had another key.
  return static_cast<float>(1.0 / factor.value_or(old_factor.value_or(1.0)));
}

Status read_rope(const Reader& reader, HyperParameters* parameters) {
  ModelConfig& config = parameters->config;
  ASSIGN_OR_RETURN(const auto base, reader.positive("rope.freq_base", kRopeBaseMax));
  ASSIGN_OR_RETURN(const auto dims, reader.optional_count("rope.dimension_count", 2, kHeadDimMax));
  config.rope_base = static_cast<float>(base.value_or(10000.0));
  config.rope_dims = static_cast<uint32_t>(dims.value_or(config.head_dim));
  if (config.rope_dims > config.head_dim || config.rope_dims % 2 != 0) {
    return reader.contradiction("rope.dimension_count", fmt::format("{} is odd or above the head dimension {}",
                                                                    config.rope_dims, config.head_dim));
  }
  ASSIGN_OR_RETURN(parameters->rope_position_scale, read_position_scale(reader));
  return ok_status();
}

// The vocabulary is as large as the embedding table; the tokenizer and the vocab_size key must agree with it.
Status read_vocabulary(const Reader& reader, ModelConfig* config) {
  const GgufTensor* embedding = reader.file().find_tensor("token_embd.weight");
  if (embedding == nullptr) {
    return invalid_argument("tensor 'token_embd.weight': is missing; {}", kGetFileAgain);
  }
  const auto rows = static_cast<uint64_t>(embedding->ne[1]);
  if (rows > kVocabularyMax) {
    return invalid_argument("tensor 'token_embd.weight' (byte {}): {} tokens are more than {}; {}", embedding->offset,
                            rows, kVocabularyMax, kConvertAgain);
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

Result<HyperParameters> read_hyper_parameters(const GgufFile& file) {
  ASSIGN_OR_RETURN(const auto architecture, file.read_string("general.architecture"));
  CHECK(architecture.has_value());
  const Reader reader(file, *architecture);
  HyperParameters parameters;
  ModelConfig& config = parameters.config;
  config.architecture = std::string(*architecture);
  ASSIGN_OR_RETURN(const auto name, file.read_string("general.name"));
  config.name = std::string(name.value_or(""));
  RETURN_IF_ERROR(refuse_unbuilt(reader));
  RETURN_IF_ERROR(read_sizes(reader, &config));
  RETURN_IF_ERROR(read_attention(reader, &config));
  RETURN_IF_ERROR(read_rope(reader, &parameters));
  RETURN_IF_ERROR(read_vocabulary(reader, &config));
  config.tied_head = file.find_tensor("output.weight") == nullptr;
  return parameters;
}

}  // namespace motley
