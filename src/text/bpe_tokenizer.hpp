// Byte-level byte-pair encoding, the tokenizer.ggml.model `gpt2`.
//
// Text is cut at literal tokens (control, user-defined), then into words by the pre-tokeniser; each word's bytes merge
// by rank. Vocabularies write bytes as the printable characters of GPT-2's byte-to-unicode alphabet.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "text/flat_tables.hpp"
#include "text/pre_tokenizer.hpp"
#include "text/special_matcher.hpp"
#include "text/tokenizer.hpp"

namespace motley {

class BpeTokenizer final : public Tokenizer {
 public:
  static Result<std::unique_ptr<Tokenizer>> create(const VocabularyData& data);

  // A byte that has no token in the vocabulary (SmolLM2 lacks 21, most of them in no valid UTF-8) gives nothing.
  std::vector<TokenId> encode(std::string_view text, bool add_special, bool parse_special) const override;
  // Ids outside the vocabulary, unused tokens: nothing.
  std::string token_bytes(TokenId id, bool special) const override;
  uint32_t size() const override { return static_cast<uint32_t>(entries_.size()); }
  std::optional<TokenId> bos() const override { return bos_; }
  std::optional<TokenId> eos() const override { return eos_; }
  // Empty for ids outside the vocabulary.
  std::string_view piece(TokenId id) const override;
  std::optional<TokenId> find(std::string_view piece) const override;
  bool is_control(TokenId id) const override;
  bool is_marker(TokenId id) const override;
  bool is_literal(TokenId id) const override;
  const std::vector<TokenId>& end_tokens() const override { return end_tokens_; }

 private:
  enum class Type : uint8_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };
  struct Entry {
    std::string_view piece;  // into pieces_
    std::string_view bytes;  // what it stands for in text: into bytes_, or = piece
    Type type = Type::kNormal;
  };
  BpeTokenizer() = default;

  Status copy_tokens(const VocabularyData& data);
  void promote_roles(const VocabularyData& data);
  Status index_tokens();
  Status index_merges(std::span<const std::string_view> merges);
  Status set_roles(const VocabularyData& data);
  void find_end_tokens(const VocabularyData& data);
  bool known(TokenId id) const { return id >= 0 && static_cast<size_t>(id) < entries_.size(); }
  // Types that stand for themselves alone and are not shown to users.
  static bool is_special(Type type) { return type == Type::kControl || type == Type::kUnknown; }

  static bool is_marker(const Entry& entry);

  struct Scratch;
  void encode_plain(std::string_view text, Scratch& scratch, std::vector<TokenId>& out) const;
  void encode_words(std::string_view text, Scratch& scratch, std::vector<TokenId>& out) const;
  void encode_word(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const;

  const PreTokenizer* pre_ = nullptr;
  std::string pieces_, bytes_;
  std::vector<Entry> entries_;  // by id
  StringTable by_piece_;        // every token
  StringTable by_bytes_;        // tokens that words are made of
  MergeTable merges_;
  std::array<TokenId, 256> byte_tokens_{};  // -1: none
  SpecialMatcher anyones_, all_special_;    // literal tokens but markers; all literal tokens
  std::optional<TokenId> bos_, eos_;
  bool add_bos_ = false, add_eos_ = false;
  std::vector<TokenId> end_tokens_;

  // By id: whether merging the token's own bytes gives that one token. Found at the first use; every thread finds the
  // same, so relaxed order is enough.
  enum Whole : uint8_t { kNotTried, kYes, kNo };
  std::unique_ptr<std::atomic<uint8_t>[]> whole_;
};

}  // namespace motley
