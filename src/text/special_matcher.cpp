#include "text/special_matcher.hpp"

#include <algorithm>

namespace motley {

SpecialMatcher::SpecialMatcher(std::vector<std::pair<std::string_view, TokenId>> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end());
  for (uint32_t i = 0; i < tokens_.size(); ++i) {
    auto& [begin, end] = starts_[static_cast<uint8_t>(tokens_[i].first[0])];
    if (begin == end) begin = i;
    end = i + 1;
  }
}

std::optional<SpecialMatcher::Match> SpecialMatcher::find(std::string_view text, size_t from) const {
  if (tokens_.empty()) return std::nullopt;
  for (size_t at = from; at < text.size(); ++at) {
    const auto& [begin, end] = starts_[static_cast<uint8_t>(text[at])];
    if (begin == end) continue;
    if (const auto match = longest_at(text, at)) return match;
  }
  return std::nullopt;
}

std::optional<SpecialMatcher::Match> SpecialMatcher::longest_at(std::string_view text, size_t at) const {
  const auto& [begin, end] = starts_[static_cast<uint8_t>(text[at])];
  auto low = tokens_.begin() + begin, high = tokens_.begin() + end;
  std::optional<Match> best;
  // All of [low, high) share their first `depth` bytes with the text; a token of just that length sorts first.
  for (size_t depth = 1;; ++depth) {
    if (low->first.size() == depth) {
      best = Match{at, at + depth, low->second};
      ++low;
    }
    if (low == high || at + depth == text.size()) return best;
    const auto byte = static_cast<uint8_t>(text[at + depth]);
    low = std::partition_point(low, high, [&](const auto& t) { return static_cast<uint8_t>(t.first[depth]) < byte; });
    high = std::partition_point(low, high, [&](const auto& t) { return static_cast<uint8_t>(t.first[depth]) == byte; });
    if (low == high) return best;
  }
}

}  // namespace motley
