// BpeModel: byte-pair encoding of a word, whose first symbols are its bytes (GPT-2's way) or its characters
// (SentencePiece's).
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "text/flat_tables.hpp"
#include "text/token_table.hpp"
#include "text/word_model.hpp"

namespace motley {

struct MergePair {
  std::string_view left, right;  // spellings
};

// "left right" of GGUF. INVALID_ARGUMENT (which): not two tokens with a space between.
Result<std::vector<MergePair>> split_merges(std::span<const std::string_view> merges);
// Rank = index. INVALID_ARGUMENT (which) for a merge of unknown tokens or one that stands twice. Merges that would make
// a marker are left out: plain text never becomes one.
Result<MergeTable> merges_of_pairs(const TokenTable& tokens, std::span<const MergePair> pairs);
// SentencePiece's way: two neighbours merge if they spell a normal or user-defined token, the best score first.
// RESOURCE_EXHAUSTED for more merges than kMergesMax, INVALID_ARGUMENT for a normal token above kSearchedTokenBytesMax
// or a score that is no number.
Result<MergeTable> merges_of_scores(const TokenTable& tokens, std::span<const float> scores);

class BpeModel final : public WordModel {
 public:
  struct Rules {
    bool of_bytes = true;        // else of characters
    bool ignore_merges = false;  // a word that is in the vocabulary is taken whole
    bool byte_fallback = false;  // a character without a token becomes the byte tokens of its bytes, if there are all
    std::optional<TokenId> unknown;  // else this; else nothing
    bool fuse_unknown = false;       // one for all unknown characters that follow one another
  };
  // `tokens` outlives the model. INVALID_ARGUMENT if too many tokens fall into one place of a table.
  static Result<std::unique_ptr<BpeModel>> create(const TokenTable& tokens, MergeTable merges, Rules rules);

  void encode(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const override;

 private:
  BpeModel(MergeTable merges, Rules rules) : rules_(rules), merges_(std::move(merges)) {}
  Status index(const TokenTable& tokens);
  // Where `word` may be cut before `end` at a space without changing its ids: no token holds a space behind the byte
  // that stands before it.
  size_t part_end(std::string_view word) const;
  void encode_part(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const;
  void first_symbols(std::string_view word, std::vector<TokenId>& symbols) const;

  const Rules rules_;
  StringTable by_text_;  // tokens that words are made of: by bytes, or by spelling
  MergeTable merges_;
  std::array<TokenId, 256> byte_tokens_{};  // -1: none
  bool cuts_ = false;                       // part_end() cuts
  std::array<bool, 256> before_space_{};    // by byte: some token holds it with a space mark right behind

  // By id: whether merging the token's own text gives that one token. Found at the first use; every thread finds the
  // same, so relaxed order is enough.
  enum Whole : uint8_t { kNotTried, kYes, kNo };
  std::unique_ptr<std::atomic<uint8_t>[]> whole_;
};

}  // namespace motley
