// What a Hugging Face directory says about itself. Its files are read as a model is loaded: headers, no weights.
#include <algorithm>
#include <map>

#include "llm/inspect.hpp"
#include "llm/instance.hpp"
#include "model/dtype.hpp"
#include "text/chat_template_sources.hpp"

namespace motley {
namespace {

void add_sizes(const ModelConfig& config, ModelFacts& facts) {
  const std::pair<std::string_view, uint32_t> sizes[] = {
      {"layers", config.layers},          {"hidden", config.hidden},        {"heads", config.heads},
      {"kv_heads", config.kv_heads},      {"head_dim", config.head_dim},    {"ffn", config.ffn},
      {"context", config.context_length}, {"vocabulary", config.vocab_size}};
  for (const auto& [what, value] : sizes) facts.sizes.push_back({what, value, value});
}

// As they are packed: what a conversion makes of the tensors (docs/formats/safetensors.md).
void add_weights(const Model& model, ModelFacts& facts) {
  std::map<int32_t, ModelFacts::WeightType> types;
  for (size_t i = 0; i < model.graph().weights.size(); ++i) {
    const WeightSource& weight = model.weight(i);
    const auto elements = static_cast<uint64_t>(weight.experts * weight.rows * weight.cols);
    ModelFacts::WeightType& type = types[weight.dtype];
    type.name = find_dtype(weight.dtype)->name;
    type.built = true;
    ++type.tensors;
    type.elements += elements;
    type.bytes += weight.bytes;
    facts.parameters += elements;
  }
  for (const auto& [id, type] : types) facts.weights.push_back(type);
  std::stable_sort(facts.weights.begin(), facts.weights.end(),
                   [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
}

void add_tokenizer(const Tokenizer& tokenizer, ModelFacts& facts) {
  facts.tokenizer_model = "tokenizer.json";
  facts.tokens = tokenizer.size();
  const std::pair<std::string_view, std::optional<TokenId>> roles[] = {{"bos", tokenizer.bos()},
                                                                       {"eos", tokenizer.eos()}};
  for (const auto& [role, id] : roles) {
    if (id) facts.special_tokens.push_back({role, static_cast<uint64_t>(*id), std::string(tokenizer.piece(*id))});
  }
}

void add_template(const TokenizerData& data, ModelFacts& facts) {
  const auto sources = template_sources(data);
  const std::string* source = sources.ok() ? sources->find(kDefaultTemplateName) : nullptr;
  if (source == nullptr) return;
  facts.chat_template = *source;
  facts.chat_template_place = !data.chat_template.empty()        ? "chat_template.jinja"
                              : !data.chat_template_json.empty() ? "chat_template.json"
                                                                 : "tokenizer_config.json";
}

}  // namespace

Status add_directory_facts(const Model& model, ModelFacts& facts) {
  facts.file_bytes = model.file_bytes();
  facts.architecture = model.config().architecture;
  facts.name = model.config().name;
  add_sizes(model.config(), facts);
  add_weights(model, facts);
  add_template(model.tokenizer(), facts);
  ASSIGN_OR_RETURN(const auto tokenizer, make_tokenizer(model));
  add_tokenizer(*tokenizer, facts);
  return ok_status();
}

}  // namespace motley
