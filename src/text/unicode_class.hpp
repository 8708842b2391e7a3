// The three classes of characters that pre-tokenisers tell apart.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace motley {

enum class CharClass : uint8_t { kOther, kLetter, kNumber, kSpace };

// \p{L}, \p{N} and \s (White_Space) of Unicode 16.0. Immutable; one for the process.
class UnicodeClasses {
 public:
  static const UnicodeClasses& instance();
  CharClass of(char32_t code_point) const {
    const uint32_t page = code_point / kPage;
    return page < pages_.size() ? classes_[pages_[page] * kPage + code_point % kPage] : CharClass::kOther;
  }

 private:
  static constexpr uint32_t kPage = 256;  // code points
  UnicodeClasses();
  std::vector<uint16_t> pages_;  // by code point / kPage: which page of classes_; equal pages are shared
  std::vector<CharClass> classes_;
};

}  // namespace motley
