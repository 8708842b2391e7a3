// SentencePiece's byte-pair merging by score, as GGUF files hold its vocabularies (tokenizer.cpp has their name).
//
// Text is cut at literal tokens; in each stretch between them spaces become U+2581, one more before it where the
// vocabulary asks (add_space_prefix, true unless the file says otherwise). Characters without a token become byte
// tokens <0xXX>, or the unknown token where there are none.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "text/vocabulary_tokenizer.hpp"
#include "text/word_model.hpp"

namespace motley {

class SentencePieceTokenizer final : public VocabularyTokenizer {
 public:
  static Status check(const VocabularyData& data);                               // as Tokenizer::check()
  static Result<std::unique_ptr<Tokenizer>> create(const VocabularyData& data);  // of data that passed it

 private:
  struct Working;
  SentencePieceTokenizer() = default;
  std::unique_ptr<Scratch> make_scratch() const override;
  void encode_text(std::string_view text, Place place, Scratch& scratch, std::vector<TokenId>& out) const override;

  bool space_prefix_ = true;
  std::unique_ptr<WordModel> model_;
};

}  // namespace motley
