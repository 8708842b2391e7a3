#include "text/bpe_merger.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace motley {
namespace {

// The definition, word for word: again and again the leftmost pair of the lowest rank.
void merge_by_definition(const MergeTable& merges, std::vector<TokenId>& symbols) {
  for (;;) {
    const Merge* best = nullptr;
    size_t place = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const Merge* merge = merges.find(symbols[i], symbols[i + 1]);
      if (merge != nullptr && (best == nullptr || merge->rank < best->rank)) {
        best = merge;
        place = i;
      }
    }
    if (best == nullptr) return;
    symbols[place] = static_cast<TokenId>(best->result);
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(place) + 1);
  }
}

// Random merges over few letters: every later symbol is made of two earlier ones, in shuffled order of rank.
MergeTable random_merges(std::mt19937_64& random, uint32_t letters, uint32_t count) {
  std::vector<uint32_t> ranks(count);
  for (uint32_t i = 0; i < count; ++i) ranks[i] = i;
  std::shuffle(ranks.begin(), ranks.end(), random);
  MergeTable merges(count);
  for (uint32_t i = 0; i < count; ++i) {
    const auto left = static_cast<uint32_t>(random() % (letters + i)),
               right = static_cast<uint32_t>(random() % (letters + i));
    (void)merges.insert(left, right, {ranks[i], letters + i});
  }
  return merges;
}

TEST(BpeMerger, RandomMerges_ShortAndLongWordsFollowTheDefinition) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    std::mt19937_64 random(seed);
    const uint32_t letters = 1 + static_cast<uint32_t>(random() % 4);
    const MergeTable merges = random_merges(random, letters, static_cast<uint32_t>(random() % 40));
    std::vector<TokenId> word(random() % (3 * kShortWord));
    for (TokenId& symbol : word) symbol = static_cast<TokenId>(random() % letters);
    std::vector<TokenId> expected = word;
    merge_by_definition(merges, expected);
    merge_word(merges, word);
    ASSERT_EQ(word, expected) << "seed " << seed;
  }
}

TEST(BpeMerger, EmptyAndSingleSymbol_StayAsTheyAre) {
  const MergeTable merges(0);
  std::vector<TokenId> word;
  merge_word(merges, word);
  EXPECT_TRUE(word.empty());
  word = {7};
  merge_word(merges, word);
  EXPECT_EQ(word, std::vector<TokenId>{7});
}

TEST(MergeTable, SamePairTwice_IsADuplicate) {
  MergeTable merges(2);
  EXPECT_EQ(merges.insert(1, 2, {0, 3}), MergeTable::Insert::kDone);
  EXPECT_EQ(merges.insert(1, 2, {1, 4}), MergeTable::Insert::kDuplicate);
  EXPECT_EQ(merges.find(1, 2)->result, 3u);
  EXPECT_EQ(merges.find(2, 1), nullptr);
}

}  // namespace
}  // namespace motley
