// Reading UTF-8 that may be broken.
#pragma once

#include <cstdint>
#include <string_view>

namespace motley {

struct Utf8Step {
  enum Kind : uint8_t {
    kCharacter,  // `bytes` bytes make `code_point`
    kBroken,     // `bytes` bytes (1 to 3) can never begin or become a character: one U+FFFD stands for them
    kUnfinished  // the text ends inside a character that further bytes may complete; `bytes` = all that is left
  };
  Kind kind;
  uint8_t bytes;
  char32_t code_point;
};

// The first step of `text`, which is not empty. A broken stretch is the longest beginning of a character found there
// (The Unicode Standard 3.9, "U+FFFD Substitution of Maximal Subparts"), which is also what Python's decoder replaces.
Utf8Step utf8_step(std::string_view text);

bool utf8_valid(std::string_view text);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

}  // namespace motley
