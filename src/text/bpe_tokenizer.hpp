// Byte-level byte-pair encoding, the tokenizer.ggml.model `gpt2`.
//
// Text is cut at literal tokens (control, user-defined), then into words by the pre-tokeniser; each word's bytes merge
// by rank. Vocabularies write bytes as the printable characters of GPT-2's byte-to-unicode alphabet.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "text/bpe_model.hpp"
#include "text/pre_tokenize_steps.hpp"
#include "text/pre_tokenizer.hpp"
#include "text/vocabulary_tokenizer.hpp"

namespace motley {

// A byte that has no token in the vocabulary (SmolLM2 lacks 21, most of them in no valid UTF-8) gives nothing.
class BpeTokenizer final : public VocabularyTokenizer {
 public:
  static Status check(const VocabularyData& data);                               // as Tokenizer::check()
  static Result<std::unique_ptr<Tokenizer>> create(const VocabularyData& data);  // of data that passed it

 private:
  struct Working;
  BpeTokenizer() = default;
  std::unique_ptr<Scratch> make_scratch() const override;
  void encode_text(std::string_view text, Place place, Scratch& scratch, std::vector<TokenId>& out) const override;
  void encode_words(std::string_view text, Working& working, std::vector<TokenId>& out) const;

  const PreTokenizer* pre_ = nullptr;
  PreTokenizeSteps steps_;  // where pre_ is not written by hand
  std::unique_ptr<BpeModel> model_;
};

}  // namespace motley
