// TokenTable: the tokens of a vocabulary by id, whatever its algorithm: spelling, kind, and the bytes each stands for.
//
// Filled once by its owner, then only read (safe from any thread). Neither copied nor moved: views into it are handed
// out.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.hpp"
#include "base/status.hpp"
#include "text/flat_tables.hpp"

namespace motley {

enum class TokenType : uint8_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };  // GGUF's numbers

class TokenTable {
 public:
  struct Entry {
    std::string_view piece;  // the spelling in the file
    std::string_view bytes;  // what it stands for in text
    TokenType type = TokenType::kNormal;
    bool spelled = false;  // `bytes` was made from the spelling: false where it is the spelling itself
  };
  // Appends the bytes that a spelling stands for; false (nothing appended): the spelling itself.
  using Speller = std::function<bool(std::string_view piece, TokenType type, std::string& out)>;

  TokenTable() = default;
  TokenTable(const TokenTable&) = delete;
  TokenTable& operator=(const TokenTable&) = delete;

  // Copies the tokens. `types` is empty (all normal) or one of TokenType for each. Tokens of type byte are spelled
  // <0xHH>. Empty spellings may repeat; INVALID_ARGUMENT (which) for others that do.
  Status fill(std::span<const std::string_view> pieces, std::span<const int32_t> types, const Speller& spell);
  // A user-defined token becomes a control token: what begins or ends an answer is one, whatever the file declares.
  void promote(TokenId id);

  // A known token stands for `bytes`, which outlive the table.
  void respell(TokenId id, std::string_view bytes) { entries_[static_cast<size_t>(id)].bytes = bytes; }

  uint32_t size() const { return static_cast<uint32_t>(entries_.size()); }
  bool known(TokenId id) const { return id >= 0 && static_cast<size_t>(id) < entries_.size(); }
  const Entry& operator[](TokenId id) const { return entries_[static_cast<size_t>(id)]; }  // of a known id
  std::optional<TokenId> find(std::string_view piece) const;

  // The answers of Tokenizer's methods of these names; false for unknown ids.
  bool is_control(TokenId id) const;
  bool is_marker(TokenId id) const;
  bool is_literal(TokenId id) const;

  // By byte: the token of type byte that stands for it, else -1.
  std::array<TokenId, 256> byte_tokens() const;

 private:
  std::string pieces_, bytes_;
  std::vector<Entry> entries_;
  StringTable by_piece_;
};

// "<0x0A>" is the byte 10.
std::optional<char> byte_token_value(std::string_view piece);

// A Speller for GPT-2's byte-to-unicode alphabet: normal tokens only.
bool spell_byte_alphabet(std::string_view piece, TokenType type, std::string& out);
// A Speller for SentencePiece: in normal tokens U+2581 is a space.
bool spell_spaces(std::string_view piece, TokenType type, std::string& out);

inline constexpr std::string_view kSpaceMark = "\u2581";

}  // namespace motley
