// What a GGUF file says about itself. Format: docs/formats/gguf.md.
#include <algorithm>
#include <array>
#include <map>
#include <span>

#include "llm/inspect.hpp"
#include "model/dtype.hpp"
#include "model/gguf.hpp"
#include "model/mapped_file.hpp"

namespace motley {
namespace {

struct Named {
  std::string_view what, key;
};
// Behind "<architecture>.".
constexpr std::array kSizes = {Named{"layers", "block_count"},
                               Named{"hidden", "embedding_length"},
                               Named{"heads", "attention.head_count"},
                               Named{"kv_heads", "attention.head_count_kv"},
                               Named{"head_dim", "attention.key_length"},
                               Named{"ffn", "feed_forward_length"},
                               Named{"experts", "expert_count"},
                               Named{"experts_used", "expert_used_count"},
                               Named{"expert_ffn", "expert_feed_forward_length"},
                               Named{"context", "context_length"},
                               Named{"window", "attention.sliding_window"}};
// Behind "tokenizer.ggml." and before "_token_id".
constexpr std::array kRoles = {Named{"bos", "bos"}, Named{"eos", "eos"},         Named{"eot", "eot"},
                               Named{"eom", "eom"}, Named{"unknown", "unknown"}, Named{"padding", "padding"}};

// A whole number, or the least and the most of an array with one for each layer. nullopt for anything else.
std::optional<ModelFacts::Size> size_of(const GgufFile& file, const std::string& key, std::string_view what) {
  const GgufEntry* entry = file.find(key);
  if (entry == nullptr || entry->count == 0) return std::nullopt;
  ModelFacts::Size size{what, UINT64_MAX, 0};
  for (uint64_t i = 0; i < entry->count; ++i) {
    const std::optional<int64_t> value = gguf_integer(*entry, i);
    if (!value || *value < 0) return std::nullopt;
    size.least = std::min(size.least, static_cast<uint64_t>(*value));
    size.most = std::max(size.most, static_cast<uint64_t>(*value));
  }
  return size;
}

void add_sizes(const GgufFile& file, ModelFacts& facts) {
  const auto known = [&](std::string_view what) {
    return std::find_if(facts.sizes.begin(), facts.sizes.end(), [&](const auto& size) { return size.what == what; });
  };
  for (const Named& row : kSizes) {
    const auto size = size_of(file, facts.architecture + "." + std::string(row.key), row.what);
    if (size) facts.sizes.push_back(*size);
    const auto heads = known("heads"), hidden = known("hidden");
    if (size || heads == facts.sizes.end() || hidden == facts.sizes.end() || heads->most == 0) continue;
    // What the format says of keys that are left out.
    if (row.what == "kv_heads") facts.sizes.push_back({row.what, heads->least, heads->most});
    if (row.what == "head_dim")
      facts.sizes.push_back({row.what, hidden->most / heads->most, hidden->most / heads->most});
  }
  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr) return;
  const auto rows = static_cast<uint64_t>(embedding->ne[1]);
  facts.sizes.push_back({"vocabulary", rows, rows});
}

void add_weights(const GgufFile& file, ModelFacts& facts) {
  std::map<int32_t, ModelFacts::WeightType> types;
  for (const GgufTensor& tensor : file.tensors()) {
    const DtypeInfo& dtype = *find_dtype(tensor.dtype);
    ModelFacts::WeightType& type = types[tensor.dtype];
    type.name = dtype.name;
    type.built = dtype.is_weight;
    const auto elements = static_cast<uint64_t>(tensor.ne[0] * tensor.ne[1] * tensor.ne[2] * tensor.ne[3]);
    ++type.tensors;
    type.elements += elements;
    type.bytes += tensor.data.size();
    facts.parameters += elements;
  }
  for (const auto& [id, type] : types) facts.weights.push_back(type);
  std::stable_sort(facts.weights.begin(), facts.weights.end(),
                   [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
}

Status add_text(const GgufFile& file, ModelFacts& facts) {
  constexpr std::string_view kTemplate = "tokenizer.chat_template";
  ASSIGN_OR_RETURN(const auto model, file.read_string("tokenizer.ggml.model"));
  ASSIGN_OR_RETURN(const auto pre, file.read_string("tokenizer.ggml.pre"));
  ASSIGN_OR_RETURN(const auto chat, file.read_string(kTemplate));
  ASSIGN_OR_RETURN(const auto tokens, file.read_strings("tokenizer.ggml.tokens"));
  facts.tokenizer_model = model.value_or("");
  facts.tokenizer_pre = pre.value_or("");
  facts.tokens = tokens.size();
  facts.chat_template = chat.value_or("");
  if (!facts.chat_template.empty()) facts.chat_template_place = kTemplate;
  for (const Named& role : kRoles) {
    const auto id = size_of(file, fmt::format("tokenizer.ggml.{}_token_id", role.key), role.what);
    if (!id || id->most >= tokens.size()) continue;
    facts.special_tokens.push_back({role.what, id->most, std::string(tokens[id->most])});
  }
  return ok_status();
}

Result<ModelFacts> facts_of(std::span<const std::byte> bytes) {
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::parse(bytes));
  ModelFacts facts;
  facts.format = fmt::format("GGUF {}", file.version());
  facts.file_bytes = bytes.size();
  ASSIGN_OR_RETURN(const auto architecture, file.read_string("general.architecture"));
  ASSIGN_OR_RETURN(const auto name, file.read_string("general.name"));
  facts.architecture = architecture.value_or("");
  facts.name = name.value_or("");
  add_sizes(file, facts);
  add_weights(file, facts);
  RETURN_IF_ERROR(add_text(file, facts));
  return facts;
}

}  // namespace

Result<ModelFacts> read_gguf_facts(const std::filesystem::path& path) {
  auto file = MappedFile::open(path);
  if (!file.ok()) return file.error().annotate(path.string());
  auto facts = facts_of(file->bytes());
  if (!facts.ok()) return facts.error().annotate(path.string());
  return facts;
}

}  // namespace motley
