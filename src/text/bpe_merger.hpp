// Byte-pair merging of one word: the pair of lowest rank goes first, the leftmost where ranks are equal.
#pragma once

#include <cstdint>
#include <vector>

#include "base/ids.hpp"
#include "text/flat_tables.hpp"

namespace motley {

// Merges `symbols` (the word's bytes as symbol ids; at most 2^32 - 2) in place.
// Words of up to kShortWord symbols: quadratic scan without memory of its own. Longer ones: O(n log n).
void merge_word(const MergeTable& merges, std::vector<TokenId>& symbols);

inline constexpr size_t kShortWord = 32;  // symbols

}  // namespace motley
