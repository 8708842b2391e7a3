#include "text/tokenizer.hpp"

#include "text/bpe_tokenizer.hpp"
#include "text/vocabulary.hpp"

namespace motley {
namespace {

struct Family {
  std::string_view model;  // tokenizer.ggml.model
  Result<std::unique_ptr<Tokenizer>> (*create)(const VocabularyData& data);
};
constexpr Family kFamilies[] = {{"gpt2", BpeTokenizer::create}};

}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::create(const VocabularyData& data) {
  for (const Family& family : kFamilies) {
    if (family.model == data.model) return family.create(data);
  }
  return error(
      MOTLEY_UNIMPLEMENTED,
      "tokenizer {} (tokenizer.ggml.model) is not supported; choose a model with a gpt2 (byte-level BPE) vocabulary",
      quoted(data.model));
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool special) const {
  std::string bytes;
  for (const TokenId id : ids) bytes += token_bytes(id, special);
  return bytes;
}

}  // namespace motley
