#include "text/unicode_properties.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <span>

namespace motley {
namespace {

struct Span {
  char32_t first, last;
};
struct SmallLetters {
  char32_t first, last;  // every `step`-th of them is a capital
  uint8_t step;
  int32_t distance;  // to its small form
};
#include "text/unicode_properties.inc"

// The row that holds `c`, or null.
template <typename Row>
const Row* row_of(std::span<const Row> rows, char32_t c) {
  const auto row = std::partition_point(rows.begin(), rows.end(), [&](const Row& r) { return r.last < c; });
  return row != rows.end() && row->first <= c ? &*row : nullptr;
}

bool in(std::span<const Span> rows, char32_t c) { return row_of(rows, c) != nullptr; }

}  // namespace

bool is_mark(char32_t c) { return c >= kMarks[0].first && in(kMarks, c); }
bool is_punctuation(char32_t c) { return in(kPunctuation, c); }
bool is_word(char32_t c) { return in(kWords, c); }
bool is_newer_than_normalization(char32_t c) { return c >= kNewer[0].first && in(kNewer, c); }

void append_code_point(char32_t c, std::string& out) {
  if (c < 0x80) {
    out.push_back(static_cast<char>(c));
    return;
  }
  utf8proc_uint8_t bytes[4];
  const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size));
}

void append_small(char32_t c, std::string& out) {
  constexpr char32_t kCapitalDottedI = 0x130;  // the only letter whose small form is two characters
  if (c == kCapitalDottedI) {
    out += "i\u0307";
    return;
  }
  const auto* row = row_of(std::span<const SmallLetters>(kSmallLetters), c);
  const bool capital = row != nullptr && (c - row->first) % row->step == 0;
  append_code_point(capital ? static_cast<char32_t>(static_cast<int32_t>(c) + row->distance) : c, out);
}

}  // namespace motley
