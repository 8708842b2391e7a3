// Finds tokens that stand literally in text (control and user-defined ones): leftmost first, longest where several
// start at one place. Immutable after creation. Time: text length x the longest token at worst.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/ids.hpp"

namespace motley {

class SpecialMatcher {
 public:
  struct Match {
    size_t begin, end;
    TokenId id;
  };
  SpecialMatcher() = default;
  // Spellings are not empty, differ from one another and outlive the matcher.
  explicit SpecialMatcher(std::vector<std::pair<std::string_view, TokenId>> tokens);

  // The first match at or after `from`.
  std::optional<Match> find(std::string_view text, size_t from) const;

 private:
  std::optional<Match> longest_at(std::string_view text, size_t at) const;

  std::vector<std::pair<std::string_view, TokenId>> tokens_;  // sorted by spelling
  // By first byte: the stretch of tokens_ that begins with it.
  std::array<std::pair<uint32_t, uint32_t>, 256> starts_{};
};

}  // namespace motley
