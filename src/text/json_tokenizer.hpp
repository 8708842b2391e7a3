// JsonTokenizer: a tokenizer as Hugging Face's tokenizer.json describes it (docs/formats/tokenizer_json.md): literal
// tokens, normalizer, pre_tokenizer, model (BPE, Unigram), post_processor, decoder. What is not built is refused by
// name.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/normalize_steps.hpp"
#include "text/pre_tokenize_steps.hpp"
#include "text/vocabulary_tokenizer.hpp"
#include "text/word_model.hpp"

namespace motley {

struct TokenizerJson;

class JsonTokenizer final : public VocabularyTokenizer {
 public:
  // See Tokenizer::create_from_json.
  static Result<std::unique_ptr<Tokenizer>> create(std::string_view tokenizer_json,
                                                   std::string_view tokenizer_config_json,
                                                   std::span<const TokenId> end_tokens);

 private:
  struct Working;
  JsonTokenizer() = default;
  Status build(const TokenizerJson& file, const nlohmann::json& config, std::span<const TokenId> end_tokens);
  Status build_tokens(const TokenizerJson& file, const TokenTable::Speller& spell);
  Status build_model(const TokenizerJson& file);
  Status build_bpe(const TokenizerJson& file);
  Status build_unigram(const TokenizerJson& file);
  Status build_roles(const nlohmann::json& config, std::span<const TokenId> end_tokens);
  Status build_ends_of_text(const nlohmann::json& post_processor, int depth);
  Status apply_config(const nlohmann::json& config);
  void build_normalized_literals(const TokenTable::Speller& spell);
  std::string first_token_bytes(TokenId id, bool special) const override;
  std::unique_ptr<Scratch> make_scratch() const override;
  void encode_text(std::string_view text, Place place, Scratch& scratch, std::vector<TokenId>& out) const override;

  NormalizeSteps normalizer_;
  PreTokenizeSteps pre_tokenizer_;
  std::unique_ptr<WordModel> model_;
  std::vector<LiteralRule> rules_of_added_;
  struct NormalizedToken {
    std::string piece, bytes;  // what the normalizer makes of its spelling, and the text of that
  };
  std::unordered_map<TokenId, NormalizedToken> normalized_tokens_;  // added tokens found in normalised text
  LiteralSet normalized_literals_;
  TokenTable::Speller spell_first_;  // of a text's first token, if it differs
};

}  // namespace motley
