#include "text/token_table.hpp"

#include "base/quote.hpp"
#include "text/vocabulary.hpp"

namespace motley {
namespace {

constexpr uint32_t kAlphabetEnd = 0x144;  // one past the last character of the byte alphabet

// GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes are U+0100, U+0101, ... in order.
const std::array<int16_t, kAlphabetEnd>& byte_of_character() {
  static const auto table = [] {
    std::array<int16_t, kAlphabetEnd> bytes;
    bytes.fill(-1);
    size_t next = 0x100;
    for (int16_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      bytes[printable ? static_cast<size_t>(byte) : next++] = byte;
    }
    return bytes;
  }();
  return table;
}

// Types that stand for themselves alone and are not shown to users.
bool is_special(TokenType type) { return type == TokenType::kControl || type == TokenType::kUnknown; }

bool is_marker_spelling(std::string_view piece) {
  return (piece.starts_with("<|") && piece.ends_with("|>")) || (piece.starts_with("<｜") && piece.ends_with("｜>"));
}

}  // namespace

std::optional<char> byte_token_value(std::string_view piece) {
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return std::nullopt;
  const int high = digit(piece[3]), low = digit(piece[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<char>(high * 16 + low);
}

bool spell_byte_alphabet(std::string_view piece, TokenType type, std::string& out) {
  if (type != TokenType::kNormal) return false;
  const auto& alphabet = byte_of_character();
  const size_t before = out.size();
  for (size_t at = 0; at < piece.size();) {
    uint32_t character = static_cast<uint8_t>(piece[at++]);
    if (character >= 0xC2 && character < 0xE0 && at < piece.size()) {
      character = (character & 0x1F) << 6 | (static_cast<uint8_t>(piece[at++]) & 0x3F);
    } else if (character >= 0x80) {
      character = kAlphabetEnd;
    }
    if (character >= kAlphabetEnd || alphabet[character] < 0) {
      out.resize(before);
      return false;
    }
    out.push_back(static_cast<char>(alphabet[character]));
  }
  return true;
}

bool spell_spaces(std::string_view piece, TokenType type, std::string& out) {
  if (type != TokenType::kNormal || piece.find(kSpaceMark) == piece.npos) return false;
  for (size_t at = 0; at < piece.size();) {
    const bool mark = piece.substr(at).starts_with(kSpaceMark);
    out.push_back(mark ? ' ' : piece[at]);
    at += mark ? kSpaceMark.size() : 1;
  }
  return true;
}

Status TokenTable::fill(std::span<const std::string_view> pieces, std::span<const int32_t> types,
                        const Speller& spell) {
  size_t total = 0;
  for (const std::string_view piece : pieces) total += piece.size();
  pieces_.reserve(total);  // the views below stay valid
  entries_.resize(pieces.size());
  by_piece_ = StringTable(entries_.size());
  std::vector<size_t> bytes_begin(entries_.size() + 1);
  for (size_t id = 0; id < entries_.size(); ++id) {
    Entry& entry = entries_[id];
    entry.type = types.empty() ? TokenType::kNormal : static_cast<TokenType>(types[id]);
    entry.piece = std::string_view(pieces_.data() + pieces_.size(), pieces[id].size());
    pieces_.append(pieces[id]);
    bytes_begin[id] = bytes_.size();
    if (entry.type == TokenType::kByte) {
      const auto value = byte_token_value(entry.piece);
      if (!value)
        return invalid_argument("token {} has type byte but the spelling {}, not <0xHH>", id, in_quotes(entry.piece));
      bytes_.push_back(*value);
      entry.spelled = true;
    } else {
      entry.spelled = spell(entry.piece, entry.type, bytes_);
    }
    if (entry.piece.empty()) continue;  // it can neither be written nor be matched
    switch (by_piece_.insert(entry.piece, static_cast<uint32_t>(id))) {
      case StringTable::Insert::kDone: break;
      case StringTable::Insert::kDuplicate:
        return invalid_argument("tokens {} and {} are both {}; the vocabulary is damaged", *by_piece_.find(entry.piece),
                                id, in_quotes(entry.piece));
      case StringTable::Insert::kCollisions:
        return invalid_argument("token {}: more than {} tokens fall into one place of a table", id, kProbesMax);
    }
  }
  bytes_begin.back() = bytes_.size();
  const std::string_view bytes = bytes_;
  for (size_t id = 0; id < entries_.size(); ++id) {
    Entry& entry = entries_[id];
    entry.bytes = entry.spelled ? bytes.substr(bytes_begin[id], bytes_begin[id + 1] - bytes_begin[id]) : entry.piece;
  }
  return ok_status();
}

void TokenTable::promote(TokenId id) {
  TokenType& type = entries_[static_cast<size_t>(id)].type;
  if (type == TokenType::kUserDefined) type = TokenType::kControl;
}

std::optional<TokenId> TokenTable::find(std::string_view piece) const {
  const auto id = by_piece_.find(piece);
  return id ? std::optional(static_cast<TokenId>(*id)) : std::nullopt;
}

bool TokenTable::is_control(TokenId id) const { return known(id) && is_special((*this)[id].type); }

bool TokenTable::is_marker(TokenId id) const {
  if (!known(id)) return false;
  const Entry& entry = (*this)[id];
  return is_special(entry.type) || (entry.type == TokenType::kUserDefined && is_marker_spelling(entry.piece));
}

bool TokenTable::is_literal(TokenId id) const {
  return known(id) && (is_special((*this)[id].type) || (*this)[id].type == TokenType::kUserDefined);
}

std::array<TokenId, 256> TokenTable::byte_tokens() const {
  std::array<TokenId, 256> tokens;
  tokens.fill(-1);
  for (size_t id = 0; id < entries_.size(); ++id) {
    if (entries_[id].type != TokenType::kByte) continue;
    tokens[static_cast<uint8_t>(entries_[id].bytes[0])] = static_cast<TokenId>(id);
  }
  return tokens;
}

}  // namespace motley
