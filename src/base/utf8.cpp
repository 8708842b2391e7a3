#include "base/utf8.hpp"

#include "base/check.hpp"

namespace motley {

Utf8Step utf8_step(std::string_view text) {
  DCHECK(!text.empty());
  const auto byte = [&](size_t at) { return static_cast<uint8_t>(text[at]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return {Utf8Step::kCharacter, 1, first};
  if (first < 0xC2 || first > 0xF4) return {Utf8Step::kBroken, 1, 0};
  const uint8_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  // The second byte's range shuts out overlong forms, surrogates and what lies above U+10FFFF.
  uint8_t low = 0x80, high = 0xBF;
  if (first == 0xE0) low = 0xA0;
  if (first == 0xED) high = 0x9F;
  if (first == 0xF0) low = 0x90;
  if (first == 0xF4) high = 0x8F;
  char32_t code_point = first & (0x7F >> length);
  for (uint8_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Step::kUnfinished, i, 0};
    if (byte(i) < low || byte(i) > high) return {Utf8Step::kBroken, i, 0};
    code_point = code_point << 6 | (byte(i) & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Step::kCharacter, length, code_point};
}

bool utf8_valid(std::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    if (step.kind != Utf8Step::kCharacter) return false;
    text.remove_prefix(step.bytes);
  }
  return true;
}

}  // namespace motley
