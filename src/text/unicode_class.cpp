#include "text/unicode_class.hpp"

#include <algorithm>
#include <map>
#include <span>

namespace motley {
namespace {

constexpr CharClass kLetter = CharClass::kLetter, kNumber = CharClass::kNumber, kSpace = CharClass::kSpace;
struct Range {
  char32_t first, last;
  CharClass char_class;
};
constexpr Range kRanges[] = {
#include "text/unicode_ranges.inc"
};
constexpr uint32_t kCodePoints = 0x110000;

}  // namespace

const UnicodeClasses& UnicodeClasses::instance() {
  static const UnicodeClasses classes;
  return classes;
}

UnicodeClasses::UnicodeClasses() {
  std::map<std::vector<CharClass>, uint16_t> known;
  size_t next = 0;  // the first range that may touch the page
  for (uint32_t start = 0; start < kCodePoints; start += kPage) {
    std::vector<CharClass> page(kPage, CharClass::kOther);
    while (next < std::size(kRanges) && kRanges[next].last < start) ++next;
    for (size_t i = next; i < std::size(kRanges) && kRanges[i].first < start + kPage; ++i) {
      const uint32_t first = std::max<uint32_t>(kRanges[i].first, start) - start;
      const uint32_t last = std::min<uint32_t>(kRanges[i].last, start + kPage - 1) - start;
      std::fill(page.begin() + first, page.begin() + last + 1, kRanges[i].char_class);
    }
    const auto [entry, fresh] = known.emplace(std::move(page), static_cast<uint16_t>(known.size()));
    if (fresh) classes_.insert(classes_.end(), entry->first.begin(), entry->first.end());
    pages_.push_back(entry->second);
  }
}

}  // namespace motley
