#include "text/bpe_tokenizer.hpp"

#include <algorithm>

#include "text/bpe_merger.hpp"
#include "text/normalize.hpp"
#include "text/unicode_class.hpp"
#include "text/utf8.hpp"
#include "text/vocabulary.hpp"

namespace motley {
namespace {

// Longer words are cut into pieces of this, each merged alone: merging takes about 24 bytes of memory for each byte of
// the word. Ids may then differ from those of the word as a whole, at the cuts.
constexpr size_t kWordBytesMax = size_t{1} << 20;
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

// Appends the bytes that `piece` spells. False (nothing appended): it holds a character outside the alphabet.
bool append_spelled_bytes(std::string_view piece, std::string& out) {
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

// "<0x0A>" is the byte 10.
std::optional<char> byte_token_value(std::string_view piece) {
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return std::nullopt;
  const int high = digit(piece[3]), low = digit(piece[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<char>(high * 16 + low);
}

}  // namespace

struct BpeTokenizer::Scratch {
  std::string normalized;
  std::vector<TokenId> symbols;
};

Result<std::unique_ptr<Tokenizer>> BpeTokenizer::create(const VocabularyData& data) {
  RETURN_IF_ERROR(check_vocabulary(data));
  const PreTokenizer* pre = find_pre_tokenizer(data.pre);
  if (pre == nullptr) {
    return error(MOTLEY_UNIMPLEMENTED,
                 "pre-tokeniser {} (tokenizer.ggml.pre) is not known; known are {}: choose another model or convert it "
                 "again with one of these",
                 quoted(data.pre), known_pre_tokenizers());
  }
  std::unique_ptr<BpeTokenizer> made(new BpeTokenizer());
  made->pre_ = pre;
  RETURN_IF_ERROR(made->copy_tokens(data));
  made->promote_roles(data);
  RETURN_IF_ERROR(made->index_tokens());
  RETURN_IF_ERROR(made->index_merges(data.merges));
  RETURN_IF_ERROR(made->set_roles(data));
  made->find_end_tokens(data);
  return std::unique_ptr<Tokenizer>(std::move(made));
}

Status BpeTokenizer::copy_tokens(const VocabularyData& data) {
  size_t total = 0;
  for (const std::string_view token : data.tokens) total += token.size();
  pieces_.reserve(total);
  bytes_.reserve(total);  // no spelling is shorter than its bytes: the views below stay valid
  entries_.resize(data.tokens.size());
  for (size_t id = 0; id < entries_.size(); ++id) {
    Entry& entry = entries_[id];
    entry.type = data.types.empty() ? Type::kNormal : static_cast<Type>(data.types[id]);
    entry.piece = std::string_view(pieces_.data() + pieces_.size(), data.tokens[id].size());
    pieces_.append(data.tokens[id]);
    entry.bytes = entry.piece;
    const char* start = bytes_.data() + bytes_.size();
    const size_t before = bytes_.size();
    if (entry.type == Type::kByte) {
      const auto value = byte_token_value(entry.piece);
      if (!value)
        return invalid_argument("token {} has type byte but the spelling {}, not <0xHH>", id, quoted(entry.piece));
      bytes_.push_back(*value);
      entry.bytes = std::string_view(start, 1);
    } else if (entry.type == Type::kNormal && append_spelled_bytes(entry.piece, bytes_)) {
      entry.bytes = std::string_view(start, bytes_.size() - before);
    }
  }
  return ok_status();
}

// Many files declare <|im_end|> and its like user-defined. What begins or ends an answer is a control token all the
// same: users neither write nor see it.
void BpeTokenizer::promote_roles(const VocabularyData& data) {
  const auto promote = [](Entry& entry) {
    if (entry.type == Type::kUserDefined) entry.type = Type::kControl;
  };
  for (const auto& role : {data.bos, data.eos, data.eot, data.eom}) {
    if (role) promote(entries_[static_cast<size_t>(*role)]);
  }
  const auto names = end_token_names();
  for (Entry& entry : entries_) {
    if (entry.type == Type::kUserDefined && std::find(names.begin(), names.end(), entry.piece) != names.end()) {
      promote(entry);
    }
  }
}

Status BpeTokenizer::index_tokens() {
  by_piece_ = StringTable(entries_.size());
  by_bytes_ = StringTable(entries_.size());
  std::vector<std::pair<std::string_view, TokenId>> anyones, special;
  for (size_t id = 0; id < entries_.size(); ++id) {
    const Entry& entry = entries_[id];
    if (entry.piece.empty()) continue;  // it can neither be written nor be matched
    const auto inserted = by_piece_.insert(entry.piece, static_cast<uint32_t>(id));
    if (inserted == StringTable::Insert::kDuplicate) {
      return invalid_argument("tokens {} and {} are both {}; the vocabulary is damaged", *by_piece_.find(entry.piece),
                              id, quoted(entry.piece));
    }
    bool collides = inserted == StringTable::Insert::kCollisions;
    // A normal token whose spelling leaves the alphabet keeps its text as its bytes, and no word ever becomes it.
    const bool spelled = entry.bytes.data() != entry.piece.data();
    if (spelled && by_bytes_.insert(entry.bytes, static_cast<uint32_t>(id)) == StringTable::Insert::kCollisions) {
      collides = true;
    }
    if (collides)
      return invalid_argument("token {}: more than {} tokens fall into one place of a table", id, kProbesMax);
    if (!is_literal(static_cast<TokenId>(id))) continue;
    special.emplace_back(entry.piece, static_cast<TokenId>(id));
    if (!is_marker(entry)) anyones.emplace_back(entry.piece, static_cast<TokenId>(id));
  }
  anyones_ = SpecialMatcher(std::move(anyones));
  all_special_ = SpecialMatcher(std::move(special));
  for (size_t byte = 0; byte < 256; ++byte) {
    const char spelled = static_cast<char>(byte);
    byte_tokens_[byte] = static_cast<TokenId>(by_bytes_.find({&spelled, 1}).value_or(static_cast<uint32_t>(-1)));
  }
  whole_ = std::make_unique<std::atomic<uint8_t>[]>(entries_.size());
  return ok_status();
}

Status BpeTokenizer::index_merges(std::span<const std::string_view> merges) {
  merges_ = MergeTable(merges.size());
  std::string joined;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string_view merge = merges[rank];
    const size_t space = merge.find(' ', 1);
    if (merge.empty() || space == std::string_view::npos || space + 1 == merge.size()) {
      return invalid_argument("merge {} is {}, not two tokens with a space between", rank, quoted(merge));
    }
    const std::string_view parts[2] = {merge.substr(0, space), merge.substr(space + 1)};
    joined.assign(parts[0]).append(parts[1]);
    const auto left = by_piece_.find(parts[0]), right = by_piece_.find(parts[1]), result = by_piece_.find(joined);
    if (!left || !right || !result) {
      return invalid_argument("merge {} names {}, which is not in the vocabulary", rank,
                              quoted(!left    ? parts[0]
                                     : !right ? parts[1]
                                              : std::string_view(joined)));
    }
    if (is_marker(entries_[*result])) continue;  // plain text never becomes one
    switch (merges_.insert(*left, *right, {static_cast<uint32_t>(rank), *result})) {
      case MergeTable::Insert::kDone: break;
      case MergeTable::Insert::kDuplicate:
        return invalid_argument("merge {} ({}) stands twice in the vocabulary", rank, quoted(merge));
      case MergeTable::Insert::kCollisions:
        return invalid_argument("merge {}: more than {} merges fall into one place of a table", rank, kProbesMax);
    }
  }
  return ok_status();
}

Status BpeTokenizer::set_roles(const VocabularyData& data) {
  bos_ = data.bos;
  eos_ = data.eos;
  if (data.add_bos.value_or(false) && !bos_) {
    return invalid_argument("tokenizer.ggml.add_bos_token is set but there is no tokenizer.ggml.bos_token_id");
  }
  if (data.add_eos.value_or(false) && !eos_) {
    return invalid_argument("tokenizer.ggml.add_eos_token is set but there is no tokenizer.ggml.eos_token_id");
  }
  add_bos_ = data.add_bos.value_or(pre_->add_bos) && bos_.has_value();
  add_eos_ = data.add_eos.value_or(false);
  return ok_status();
}

void BpeTokenizer::find_end_tokens(const VocabularyData& data) {
  for (const auto& role : {data.eos, data.eot, data.eom}) {
    if (role) end_tokens_.push_back(*role);
  }
  for (const std::string_view name : end_token_names()) {
    const auto id = find(name);
    if (!id) continue;
    if (is_literal(*id)) end_tokens_.push_back(*id);
  }
  std::sort(end_tokens_.begin(), end_tokens_.end());
  end_tokens_.erase(std::unique(end_tokens_.begin(), end_tokens_.end()), end_tokens_.end());
}

std::vector<TokenId> BpeTokenizer::encode(std::string_view text, bool add_special, bool parse_special) const {
  std::vector<TokenId> out;
  Scratch scratch;
  if (add_special && add_bos_) out.push_back(*bos_);
  const SpecialMatcher& matcher = parse_special ? all_special_ : anyones_;
  for (size_t at = 0; at < text.size();) {
    const auto match = matcher.find(text, at);
    encode_plain(text.substr(at, (match ? match->begin : text.size()) - at), scratch, out);
    if (!match) break;
    out.push_back(match->id);
    at = match->end;
  }
  if (add_special && add_eos_) out.push_back(*eos_);
  return out;
}

void BpeTokenizer::encode_plain(std::string_view text, Scratch& scratch, std::vector<TokenId>& out) const {
  if (pre_->nfc && !surely_nfc(text)) {
    scratch.normalized = to_nfc(text);
    text = scratch.normalized;
  }
  if (!pre_->digits_apart) return encode_words(text, scratch, out);
  const UnicodeClasses& classes = UnicodeClasses::instance();
  size_t start = 0;
  for (size_t at = 0; at < text.size();) {
    const auto byte = static_cast<uint8_t>(text[at]);
    const Utf8Step step = byte < 0x80 ? Utf8Step{Utf8Step::kCharacter, 1, byte} : utf8_step(text.substr(at));
    const size_t next = at + step.bytes;
    if (step.kind == Utf8Step::kCharacter && classes.of(step.code_point) == CharClass::kNumber) {
      encode_words(text.substr(start, at - start), scratch, out);
      encode_words(text.substr(at, next - at), scratch, out);
      start = next;
    }
    at = next;
  }
  encode_words(text.substr(start), scratch, out);
}

void BpeTokenizer::encode_words(std::string_view text, Scratch& scratch, std::vector<TokenId>& out) const {
  for (size_t at = 0; at < text.size();) {
    const size_t end = pre_->word_end(text, at);
    for (; at < end; at += std::min(end - at, kWordBytesMax)) {
      encode_word(text.substr(at, std::min(end - at, kWordBytesMax)), scratch, out);
    }
  }
}

void BpeTokenizer::encode_word(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const {
  const auto whole = by_bytes_.find(word);
  if (whole) {
    const uint8_t state = pre_->ignore_merges ? uint8_t{kYes} : whole_[*whole].load(std::memory_order_relaxed);
    if (state == kYes) {
      out.push_back(static_cast<TokenId>(*whole));
      return;
    }
  }
  std::vector<TokenId>& symbols = scratch.symbols;
  symbols.clear();
  for (const char byte : word) {
    const TokenId token = byte_tokens_[static_cast<uint8_t>(byte)];
    if (token >= 0) symbols.push_back(token);
  }
  merge_word(merges_, symbols);
  if (whole) {
    const bool itself = symbols.size() == 1 && symbols[0] == static_cast<TokenId>(*whole);
    whole_[*whole].store(itself ? kYes : kNo, std::memory_order_relaxed);
  }
  out.insert(out.end(), symbols.begin(), symbols.end());
}

std::string BpeTokenizer::token_bytes(TokenId id, bool special) const {
  if (!known(id)) return {};
  const Entry& entry = entries_[static_cast<size_t>(id)];
  if (entry.type == Type::kUnused || (is_special(entry.type) && !special)) return {};
  return std::string(entry.bytes);
}

std::string_view BpeTokenizer::piece(TokenId id) const {
  return known(id) ? entries_[static_cast<size_t>(id)].piece : std::string_view();
}

std::optional<TokenId> BpeTokenizer::find(std::string_view piece) const {
  const auto id = by_piece_.find(piece);
  return id ? std::optional(static_cast<TokenId>(*id)) : std::nullopt;
}

bool BpeTokenizer::is_control(TokenId id) const {
  return known(id) && is_special(entries_[static_cast<size_t>(id)].type);
}

bool BpeTokenizer::is_marker(const Entry& entry) {
  if (is_special(entry.type)) return true;
  const std::string_view piece = entry.piece;
  return entry.type == Type::kUserDefined &&
         ((piece.starts_with("<|") && piece.ends_with("|>")) || (piece.starts_with("<｜") && piece.ends_with("｜>")));
}

bool BpeTokenizer::is_marker(TokenId id) const { return known(id) && is_marker(entries_[static_cast<size_t>(id)]); }

bool BpeTokenizer::is_literal(TokenId id) const {
  return is_control(id) || (known(id) && entries_[static_cast<size_t>(id)].type == Type::kUserDefined);
}

}  // namespace motley
