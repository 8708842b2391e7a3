#include "model/tokenizer_data.hpp"

#include <array>

namespace motley {
namespace {

constexpr int32_t kTokenTypeFirst = 1;
constexpr int32_t kTokenTypeLast = 6;
constexpr uint64_t kNoToken = 0xFFFFFFFF;  // how writers say "none" in an unsigned key

Status check_length(const GgufFile& file, std::string_view key, size_t length, size_t tokens) {
  const GgufEntry* entry = file.find(key);
  if (entry == nullptr || length == tokens) return ok_status();
  return gguf_key_error(*entry, fmt::format("has {} elements for {} tokens; {}", length, tokens, kConvertAgain));
}

Status check_types(const GgufFile& file, std::string_view key, const std::vector<int32_t>& types) {
  for (size_t i = 0; i < types.size(); ++i) {
    if (types[i] >= kTokenTypeFirst && types[i] <= kTokenTypeLast) continue;
    return gguf_key_error(*file.find(key), fmt::format("token {} has type {}, not {} to {}; {}", i, types[i],
                                                       kTokenTypeFirst, kTokenTypeLast, kConvertAgain));
  }
  return ok_status();
}

Result<std::optional<int32_t>> read_token_id(const GgufFile& file, std::string_view key, size_t tokens) {
  const GgufEntry* entry = file.find(key);
  if (entry != nullptr && entry->type == GgufType::kI32 && gguf_integer(*entry, 0) == -1)
    return std::optional<int32_t>();
  ASSIGN_OR_RETURN(const auto id, file.read_count(key));
  if (!id || *id == kNoToken) return std::optional<int32_t>();
  if (*id >= tokens) {
    return gguf_key_error(*entry, fmt::format("is {}, but there are {} tokens; {}", *id, tokens, kConvertAgain));
  }
  return std::optional<int32_t>(static_cast<int32_t>(*id));
}

struct IdKey {
  std::string_view key;
  std::optional<int32_t> TokenizerData::*field;
};
constexpr std::array kIdKeys = {
    IdKey{"tokenizer.ggml.bos_token_id", &TokenizerData::bos},
    IdKey{"tokenizer.ggml.eos_token_id", &TokenizerData::eos},
    IdKey{"tokenizer.ggml.eot_token_id", &TokenizerData::eot},
    IdKey{"tokenizer.ggml.eom_token_id", &TokenizerData::eom},
    IdKey{"tokenizer.ggml.unknown_token_id", &TokenizerData::unknown},
    IdKey{"tokenizer.ggml.padding_token_id", &TokenizerData::padding},
};

struct FlagKey {
  std::string_view key;
  std::optional<bool> TokenizerData::*field;
};
constexpr std::array kFlagKeys = {
    FlagKey{"tokenizer.ggml.add_bos_token", &TokenizerData::add_bos},
    FlagKey{"tokenizer.ggml.add_eos_token", &TokenizerData::add_eos},
    FlagKey{"tokenizer.ggml.add_space_prefix", &TokenizerData::add_space_prefix},
    FlagKey{"tokenizer.ggml.remove_extra_whitespaces", &TokenizerData::remove_extra_whitespaces},
};

struct TextKey {
  std::string_view key;
  std::string_view TokenizerData::*field;
};
constexpr std::array kTextKeys = {
    TextKey{"tokenizer.ggml.model", &TokenizerData::model},
    TextKey{"tokenizer.ggml.pre", &TokenizerData::pre},
    TextKey{"tokenizer.chat_template", &TokenizerData::chat_template},
};

Result<std::vector<NamedTemplate>> read_named_templates(const GgufFile& file) {
  constexpr std::string_view kPrefix = "tokenizer.chat_template.";
  std::vector<NamedTemplate> templates;
  for (const GgufEntry& entry : file.entries()) {
    if (!entry.key.starts_with(kPrefix)) continue;
    ASSIGN_OR_RETURN(const auto source, file.read_string(entry.key));
    templates.push_back({entry.key.substr(kPrefix.size()), source.value_or("")});
  }
  return templates;
}

}  // namespace

Result<TokenizerData> read_tokenizer_data(const GgufFile& file) {
  constexpr std::string_view kTypes = "tokenizer.ggml.token_type";
  constexpr std::string_view kScores = "tokenizer.ggml.scores";
  TokenizerData data;
  for (const TextKey& text : kTextKeys) {
    ASSIGN_OR_RETURN(const auto value, file.read_string(text.key));
    data.*text.field = value.value_or(std::string_view());
  }
  ASSIGN_OR_RETURN(data.chat_templates, read_named_templates(file));
  ASSIGN_OR_RETURN(data.tokens, file.read_strings("tokenizer.ggml.tokens"));
  ASSIGN_OR_RETURN(data.merges, file.read_strings("tokenizer.ggml.merges"));
  ASSIGN_OR_RETURN(data.types, file.read_i32s(kTypes));
  ASSIGN_OR_RETURN(data.scores, file.read_f32s(kScores));
  ASSIGN_OR_RETURN(data.precompiled_charsmap, file.read_bytes("tokenizer.ggml.precompiled_charsmap"));
  RETURN_IF_ERROR(check_length(file, kTypes, data.types.size(), data.tokens.size()));
  RETURN_IF_ERROR(check_length(file, kScores, data.scores.size(), data.tokens.size()));
  RETURN_IF_ERROR(check_types(file, kTypes, data.types));
  for (const IdKey& id : kIdKeys) {
    ASSIGN_OR_RETURN(data.*id.field, read_token_id(file, id.key, data.tokens.size()));
  }
  for (const FlagKey& flag : kFlagKeys) {
    ASSIGN_OR_RETURN(data.*flag.field, file.read_bool(flag.key));
  }
  return data;
}

}  // namespace motley
