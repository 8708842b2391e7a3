#include "text/normalize.hpp"

#include <utf8proc.h>

#include <cstdlib>

#include "base/utf8.hpp"
#include "text/unicode_properties.hpp"

namespace motley {
namespace {

// Below the combining marks; Hiragana and Katakana, CJK ideographs, Hangul syllables: none of these changes unless a
// character of another range follows.
bool stable_alone(char32_t c) {
  return c < 0x300 || (c >= 0x3041 && c <= 0x3096) || (c >= 0x30A1 && c <= 0x30FA) || (c >= 0x4E00 && c <= 0x9FFF) ||
         (c >= 0xAC00 && c <= 0xD7A3);
}

void append_normalized(std::string_view valid, int form, std::string& out) {
  utf8proc_uint8_t* normalized = nullptr;
  const auto options = static_cast<utf8proc_option_t>(form | UTF8PROC_STABLE);
  const utf8proc_ssize_t bytes = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(valid.data()),
                                              static_cast<utf8proc_ssize_t>(valid.size()), &normalized, options);
  if (bytes < 0) {  // only for want of memory: the text itself is the best that is left
    out.append(valid);
    return;
  }
  out.append(reinterpret_cast<const char*>(normalized), static_cast<size_t>(bytes));
  std::free(normalized);
}

}  // namespace

bool surely_nfc(std::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    if (step.kind == Utf8Step::kCharacter && !stable_alone(step.code_point)) return false;
    text.remove_prefix(step.bytes);
  }
  return true;
}

std::string to_nfc(std::string_view text) { return to_form(text, UTF8PROC_COMPOSE); }

std::string to_form(std::string_view text, int options) {
  std::string out;
  out.reserve(text.size());
  size_t start = 0;
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text.substr(at));
    if (step.kind != Utf8Step::kCharacter || is_newer_than_normalization(step.code_point)) {
      append_normalized(text.substr(start, at - start), options, out);
      out.append(text.substr(at, step.bytes));
      start = at + step.bytes;
    }
    at += step.bytes;
  }
  append_normalized(text.substr(start), options, out);
  return out;
}

}  // namespace motley
