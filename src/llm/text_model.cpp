#include "llm/text_model.hpp"

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/quote.hpp"
#include "text/vocabulary.hpp"

namespace motley {
namespace {

std::string special_text(const Tokenizer& tokenizer, std::optional<TokenId> id) {
  return id ? std::string(tokenizer.piece(*id)) : std::string();
}

VocabularyData vocabulary_of(const TokenizerData& data) {
  VocabularyData vocabulary;
  vocabulary.model = data.model;
  vocabulary.pre = data.pre;
  vocabulary.tokens = data.tokens;
  vocabulary.types = data.types;
  vocabulary.scores = data.scores;
  vocabulary.merges = data.merges;
  vocabulary.bos = data.bos;
  vocabulary.eos = data.eos;
  vocabulary.eot = data.eot;
  vocabulary.eom = data.eom;
  vocabulary.unknown = data.unknown;
  vocabulary.padding = data.padding;
  vocabulary.add_bos = data.add_bos;
  vocabulary.add_eos = data.add_eos;
  vocabulary.add_space_prefix = data.add_space_prefix;
  vocabulary.remove_extra_whitespaces = data.remove_extra_whitespaces;
  vocabulary.precompiled_charsmap = data.precompiled_charsmap;
  return vocabulary;
}

Result<std::unique_ptr<Tokenizer>> create_tokenizer(const TokenizerData& data) {
  if (data.tokenizer_json.empty()) return Tokenizer::create(vocabulary_of(data));
  return Tokenizer::create_from_json(data.tokenizer_json, data.tokenizer_config_json, data.end_tokens);
}

// Ids that a text or an answer's end can give must have a row of the embedding. GGUF's readers have seen to it.
Status check_embedded(const Tokenizer& tokenizer, const ModelConfig& config) {
  std::vector<TokenId> needed = tokenizer.end_tokens();
  if (tokenizer.bos()) needed.push_back(*tokenizer.bos());
  for (uint32_t id = config.vocab_size; id < tokenizer.size(); ++id) {
    const auto token = static_cast<TokenId>(id);
    if (!tokenizer.piece(token).empty() && !tokenizer.is_literal(token)) needed.push_back(token);
  }
  for (const TokenId id : needed) {
    if (static_cast<uint32_t>(id) < config.vocab_size) continue;
    return invalid_argument("tokenizer.json: the token {} has the id {}, but 'vocab_size' of config.json is {}",
                            in_quotes(tokenizer.piece(id)), id, config.vocab_size);
  }
  return ok_status();
}

// src/text knows no files, and what it finds wrong with one has one remedy.
Status with_remedy(const Status& status) {
  if (status.code() != MOTLEY_INVALID_ARGUMENT && status.code() != MOTLEY_RESOURCE_EXHAUSTED) return status;
  return Status(status.code(), status.message() + "; get the model again");
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> make_tokenizer(const Model& model) {
  auto made = create_tokenizer(model.tokenizer());
  if (!made.ok()) return with_remedy(made.error());
  if (const Status fits = check_embedded(**made, model.config()); !fits.ok()) return with_remedy(fits);
  return made;
}

Status check_vocabulary_of(const TokenizerData& data) { return with_remedy(Tokenizer::check(vocabulary_of(data))); }

Result<ChatTemplateSources> template_sources(const TokenizerData& data) {
  ChatTemplateSources sources(data.chat_template);
  const std::pair<const char*, std::string_view> files[] = {{"chat_template.json", data.chat_template_json},
                                                            {"tokenizer_config.json", data.tokenizer_config_json}};
  for (const auto& [name, json] : files) {
    if (json.empty() || !sources.empty()) continue;
    auto parsed = parse_chat_template_sources(json);
    if (!parsed.ok()) return with_remedy(parsed.error().annotate(name));
    sources = *std::move(parsed);
  }
  for (const NamedTemplate& named : data.chat_templates) {
    RETURN_IF_ERROR(sources.add(named.name, std::string(named.source)));
  }
  return sources;
}

Result<std::unique_ptr<ChatTemplate>> make_chat_template(const ChatTemplateSources& sources,
                                                         const Tokenizer& tokenizer) {
  return ChatTemplate::create(sources, special_text(tokenizer, tokenizer.bos()),
                              special_text(tokenizer, tokenizer.eos()));
}

Result<TextModel> TextModel::load(const std::filesystem::path& path, const LoadOptions& options) {
  TextModel text;
  ASSIGN_OR_RETURN(text.model, Model::load(path, options));
  auto tokenizer = make_tokenizer(*text.model);
  if (!tokenizer.ok()) return tokenizer.error().annotate(path.string());
  text.tokenizer = *std::move(tokenizer);
  return text;
}

}  // namespace motley
