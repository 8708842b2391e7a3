// SentencePiece's unigram model, as GGUF files hold its vocabularies (tokenizer.cpp has their name).
//
// Text is cut at literal tokens; each stretch between them is normalised as SentencePiece does: by the charsmap
// (longest sequence first), with runs of spaces as one and none at the ends where the vocabulary asks
// (remove_extra_whitespaces), with U+2581 for spaces and one more before it (add_space_prefix, true unless the file
// says otherwise).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "text/charsmap.hpp"
#include "text/unigram_model.hpp"
#include "text/vocabulary_tokenizer.hpp"

namespace motley {

class UnigramTokenizer final : public VocabularyTokenizer {
 public:
  static Status check(const VocabularyData& data);                               // as Tokenizer::check()
  static Result<std::unique_ptr<Tokenizer>> create(const VocabularyData& data);  // of checked data

 private:
  struct Working;
  UnigramTokenizer() = default;
  std::unique_ptr<Scratch> make_scratch() const override;
  void encode_text(std::string_view text, Place place, Scratch& scratch, std::vector<TokenId>& out) const override;
  void normalize(std::string_view text, Place place, std::string& out) const;

  bool space_prefix_ = true, removes_spaces_ = false;
  std::optional<Charsmap> charsmap_;
  std::unique_ptr<UnigramModel> model_;
};

}  // namespace motley
