#include "text/charsmap.hpp"

#include <utf8proc.h>

#include <algorithm>

#include "base/utf8.hpp"

namespace motley {
namespace {

constexpr size_t kHeadBytes = 4, kUnitBytes = 4;
constexpr size_t kGraphemeBytesMax = 5;  // that is looked for as a whole
constexpr size_t kSequenceBytesMax = 64;
constexpr size_t kGrowthMax = 64;

uint32_t read_u32(std::string_view bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < kUnitBytes; ++i) value |= uint32_t{static_cast<uint8_t>(bytes[at + i])} << (8 * i);
  return value;
}

// The bits of a unit of Darts-clone.
bool has_leaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t value_of(uint32_t unit) { return unit & 0x7FFFFFFF; }
uint32_t label_of(uint32_t unit) { return unit & 0x800000FF; }
size_t offset_of(uint32_t unit) { return size_t{unit >> 10} << ((unit & 0x200) >> 6); }

// Bytes of the first grapheme.
size_t grapheme_bytes(std::string_view text) {
  Utf8Step step = utf8_step(text);
  utf8proc_int32_t state = 0;
  size_t bytes = step.bytes;
  while (step.kind == Utf8Step::kCharacter && bytes < text.size()) {
    const Utf8Step next = utf8_step(text.substr(bytes));
    const bool surely_apart = step.code_point < 0x80 && next.code_point < 0x80 && step.code_point != '\r';
    if (next.kind != Utf8Step::kCharacter || surely_apart) break;
    if (utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(step.code_point),
                                         static_cast<utf8proc_int32_t>(next.code_point), &state)) {
      break;
    }
    bytes += next.bytes;
    step = next;
  }
  return bytes;
}

}  // namespace

Result<Charsmap> Charsmap::create(std::string_view blob) {
  if (blob.size() < kHeadBytes) return invalid_argument("is too short for a charsmap: {} bytes", blob.size());
  const size_t trie_bytes = read_u32(blob, 0);
  if (trie_bytes == 0 || trie_bytes % kUnitBytes != 0 || trie_bytes > blob.size() - kHeadBytes) {
    return invalid_argument("is no charsmap: its trie would have {} of {} bytes", trie_bytes, blob.size());
  }
  Charsmap made;
  made.trie_.resize(trie_bytes / kUnitBytes);
  for (size_t i = 0; i < made.trie_.size(); ++i) made.trie_[i] = read_u32(blob, kHeadBytes + i * kUnitBytes);
  made.texts_ = blob.substr(kHeadBytes + trie_bytes);
  if (!utf8_valid(made.texts_)) return invalid_argument("is no charsmap: its texts are not UTF-8");
  return made;
}

std::optional<Charsmap::Match> Charsmap::find(std::string_view text, bool longest) const {
  size_t bytes = 0, place = 0;  // of the best leaf so far
  size_t node = offset_of(trie_[0]);
  for (size_t at = 0; at < std::min(text.size(), kSequenceBytesMax); ++at) {
    const auto byte = static_cast<uint8_t>(text[at]);
    node ^= byte;
    if (byte == 0 || node >= trie_.size() || label_of(trie_[node]) != byte) break;
    const bool leaf = has_leaf(trie_[node]);
    node ^= offset_of(trie_[node]);
    if (!leaf || node >= trie_.size()) continue;
    if (value_of(trie_[node]) >= texts_.size()) continue;
    bytes = at + 1;
    place = value_of(trie_[node]);
    if (!longest) break;
  }
  if (bytes == 0) return std::nullopt;
  const std::string_view with = std::string_view(texts_).substr(place, bytes * kGrowthMax + 1);
  const size_t end = std::min(with.find('\0'), with.size());
  return end > bytes * kGrowthMax ? std::nullopt : std::optional(Match{bytes, with.substr(0, end)});
}

std::string Charsmap::replaced_by_graphemes(std::string_view text) const {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t bytes = grapheme_bytes(text);
    replace_grapheme(text.substr(0, bytes), out);
    text.remove_prefix(bytes);
  }
  return out;
}

void Charsmap::replace_grapheme(std::string_view grapheme, std::string& out) const {
  if (grapheme.size() <= kGraphemeBytesMax) {
    if (const auto match = shortest(grapheme)) {
      out += match->with;
      return;
    }
  }
  while (!grapheme.empty()) {
    const std::string_view character = grapheme.substr(0, utf8_step(grapheme).bytes);
    const auto match = shortest(character);
    out += match ? match->with : character;
    grapheme.remove_prefix(character.size());
  }
}

}  // namespace motley
