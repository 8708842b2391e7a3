// UnigramModel: the cut of a word into tokens whose scores have the greatest sum (Kudo, "Subword Regularization",
// 2018), found by Viterbi's algorithm.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "text/flat_tables.hpp"
#include "text/token_table.hpp"
#include "text/word_model.hpp"

namespace motley {

class UnigramModel final : public WordModel {
 public:
  struct Rules {
    std::optional<TokenId> unknown;  // for characters that no token covers; one for all that follow one another
    bool byte_fallback = false;      // the byte tokens of its bytes in its place, if there are all
    bool single_precision =
        false;  // sums are float's, as SentencePiece's: which of two equal ways is taken hangs on it
  };
  // By id: scores of the normal and user-defined tokens. Time of encode(): bytes x kSearchedTokenBytesMax at worst.
  // INVALID_ARGUMENT for a longer normal token or a score that is not finite.
  static Result<std::unique_ptr<UnigramModel>> create(const TokenTable& tokens, std::span<const double> scores,
                                                      Rules rules);

  void encode(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const override;

 private:
  explicit UnigramModel(Rules rules) : rules_(rules) {}
  Status add(TokenId id, std::string_view piece);
  double rounded(double score) const { return rules_.single_precision ? double{static_cast<float>(score)} : score; }
  void encode_part(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const;
  void append_unknown(std::string_view text, std::vector<TokenId>& out) const;

  const Rules rules_;
  PairTable<uint32_t> children_;   // (node of the prefix tree, byte) to node; 0 is the root
  std::vector<TokenId> token_at_;  // by node: the token that ends there; -1: none
  std::vector<double> scores_;     // by id
  double unknown_score_ = 0;
  std::array<TokenId, 256> byte_tokens_{};
};

}  // namespace motley
