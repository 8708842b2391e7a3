#include "text/tokenizer.hpp"

#include "base/quote.hpp"
#include "text/bpe_tokenizer.hpp"
#include "text/json_tokenizer.hpp"
#include "text/sentencepiece_tokenizer.hpp"
#include "text/unigram_tokenizer.hpp"
#include "text/vocabulary.hpp"

namespace motley {
namespace {

struct Family {
  std::string_view model;  // tokenizer.ggml.model
  Result<std::unique_ptr<Tokenizer>> (*create)(const VocabularyData& data);
  Status (*check)(const VocabularyData& data);
};
constexpr Family kFamilies[] = {
    {"gpt2", BpeTokenizer::create, BpeTokenizer::check},
    {"llama", SentencePieceTokenizer::create, SentencePieceTokenizer::check},
    {"t5", UnigramTokenizer::create, UnigramTokenizer::check},
};

Result<const Family*> family_of(const VocabularyData& data) {
  for (const Family& family : kFamilies) {
    if (family.model == data.model) return &family;
  }
  if (data.model.empty()) {
    return invalid_argument(
        "the model has no tokenizer: a GGUF file needs the key tokenizer.ggml.model (convert it again with its "
        "tokenizer), a directory a tokenizer.json (AutoTokenizer.from_pretrained(...).save_pretrained(...) writes it)");
  }
  return error(MOTLEY_UNIMPLEMENTED,
               "tokenizer {} (tokenizer.ggml.model) is not supported; choose a model with a vocabulary of kind gpt2 "
               "(byte-level BPE), llama (SentencePiece's BPE) or t5 (its unigram model)",
               in_quotes(data.model));
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::create(const VocabularyData& data) {
  ASSIGN_OR_RETURN(const Family* family, family_of(data));
  RETURN_IF_ERROR(family->check(data));
  return family->create(data);
}

Status Tokenizer::check(const VocabularyData& data) {
  ASSIGN_OR_RETURN(const Family* family, family_of(data));
  return family->check(data);
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::create_from_json(std::string_view tokenizer_json,
                                                               std::string_view tokenizer_config_json,
                                                               std::span<const TokenId> end_tokens) {
  return JsonTokenizer::create(tokenizer_json, tokenizer_config_json, end_tokens);
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool special) const {
  std::string bytes;
  bool first = true;
  for (const TokenId id : ids) {
    const std::string more = token_bytes(id, special);
    bytes += first ? first_token_bytes(id, special) : more;
    first = first && more.empty();
  }
  return bytes;
}

std::string Tokenizer::first_token_bytes(TokenId id, bool special) const {
  std::string bytes = token_bytes(id, special);
  if (strips_leading_space() && bytes.starts_with(' ')) bytes.erase(0, 1);
  return bytes;
}

}  // namespace motley
