#include "engine/block_pool.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>

namespace motley {
namespace {

using ::testing::ElementsAre;

std::vector<TokenId> text(TokenId first) { return {first, first + 1}; }

TEST(BlockPool, FreshPool_HandsOutInOrder) {
  BlockPool pool(3, 2, true);
  EXPECT_EQ(pool.allocate(), 0);
  EXPECT_EQ(pool.allocate(), 1);
  EXPECT_EQ(pool.free_count(), 1u);
  EXPECT_THAT(pool.free_order(), ElementsAre(2));
}

TEST(BlockPool, Release_PlainBlocksComeBackFirstAndCachedOnesLast) {
  BlockPool pool(4, 2, true);
  for (int i = 0; i < 4; ++i) pool.allocate();
  const ChainId chain = pool.publish(0, kChainRoot, text(1));
  pool.publish(1, chain, text(3));
  for (const BlockId id : {3, 2, 1, 0}) pool.release(id);  // the last of a sequence first
  EXPECT_THAT(pool.free_order(), ElementsAre(2, 3, 1, 0));
}

TEST(BlockPool, Find_SurvivesReleaseUntilTheBlockIsReused) {
  BlockPool pool(2, 2, true);
  const BlockId block = pool.allocate();
  const ChainId chain = pool.publish(block, kChainRoot, text(1));
  pool.release(block);
  const auto hit = pool.find(kChainRoot, text(1));
  ASSERT_TRUE(hit.has_value());
  EXPECT_EQ(hit->block, block);
  EXPECT_EQ(hit->chain, chain);
  EXPECT_EQ(pool.allocate(), 1);
  EXPECT_TRUE(pool.find(kChainRoot, text(1)).has_value());
  EXPECT_EQ(pool.allocate(), block);
  EXPECT_FALSE(pool.find(kChainRoot, text(1)).has_value());
}

TEST(BlockPool, Publish_SecondCopyOfATextStaysPlainButContinuesTheSameChain) {
  BlockPool pool(4, 2, true);
  const BlockId a = pool.allocate(), b = pool.allocate();
  const ChainId chain = pool.publish(a, kChainRoot, text(1));
  EXPECT_EQ(pool.publish(b, kChainRoot, text(1)), chain);
  EXPECT_TRUE(pool.cached(a));
  EXPECT_FALSE(pool.cached(b));
}

TEST(BlockPool, Find_EqualHashesAreToldApartByTokensAndParent) {
  BlockPool pool(4, 2, true, [](ChainId, std::span<const TokenId>) { return uint64_t{7}; });
  const BlockId a = pool.allocate(), b = pool.allocate();
  const ChainId first = pool.publish(a, kChainRoot, text(1));
  pool.publish(b, first, text(1));
  EXPECT_EQ(pool.find(kChainRoot, text(1))->block, a);
  EXPECT_EQ(pool.find(first, text(1))->block, b);
  EXPECT_FALSE(pool.find(kChainRoot, text(2)).has_value());
  EXPECT_FALSE(pool.find(kChainRoot, std::vector<TokenId>{1}).has_value());
}

TEST(BlockPool, WithoutCaching_NothingIsFound) {
  BlockPool pool(2, 2, false);
  const BlockId a = pool.allocate();
  EXPECT_EQ(pool.publish(a, kChainRoot, text(1)), kChainRoot);
  EXPECT_FALSE(pool.find(kChainRoot, text(1)).has_value());
  pool.release(a);
  EXPECT_EQ(pool.allocate(), a);
}

TEST(BlockPoolDeathTest, ReleaseOfAFreeBlock_Aborts) {
  BlockPool pool(2, 2, true);
  EXPECT_DEATH(pool.release(0), "released more often than held");
}

// A further section is used where those before it are full, what is cached there included.
TEST(BlockPool, Sections_AreUsedInTheirOrder) {
  BlockPool pool(5, 2, true, BlockPool::default_hash, {2});
  const BlockId a = pool.allocate(), b = pool.allocate(), c = pool.allocate();
  EXPECT_EQ((std::vector{a, b, c}), (std::vector<BlockId>{0, 1, 2}));
  pool.publish(b, kChainRoot, text(1));
  pool.publish(c, kChainRoot, text(3));
  pool.release(c);
  pool.release(b);
  pool.release(a);
  EXPECT_THAT(pool.free_order(), ElementsAre(0, 1, 3, 4, 2));
  EXPECT_THAT(pool.free_cached(), ElementsAre(1, 2));
  pool.retain(b);
  pool.release(b);
  pool.retain(c);
  pool.release(c);
  EXPECT_THAT(pool.free_cached(), ElementsAre(2, 1));
  EXPECT_THAT(pool.most_held(), ElementsAre(2, 1));
  EXPECT_EQ(pool.allocate(), a);
  EXPECT_EQ(pool.allocate(), b);
  EXPECT_FALSE(pool.find(kChainRoot, text(1)).has_value());
  EXPECT_EQ(pool.allocate(), 3);
  EXPECT_EQ(pool.allocate(), 4);
  EXPECT_THAT(pool.most_held(), ElementsAre(2, 2));
}

// The obvious pool: a deque for each section as the order of reuse, a map as the cache.
struct NaivePool {
  explicit NaivePool(const std::vector<uint32_t>& ends) : free(ends.size()), section_ends(ends) {
    for (uint32_t i = 0; i < ends.back(); ++i) of(static_cast<BlockId>(i)).push_back(static_cast<BlockId>(i));
  }
  std::vector<std::deque<BlockId>> free;
  std::vector<uint32_t> section_ends;
  std::map<BlockId, uint32_t> references;
  std::map<BlockId, std::pair<ChainId, std::vector<TokenId>>> texts;

  std::deque<BlockId>& of(BlockId id) {
    size_t section = 0;
    while (static_cast<uint32_t>(id) >= section_ends[section]) ++section;
    return free[section];
  }
  BlockId allocate() {
    size_t section = 0;
    while (free[section].empty()) ++section;
    const BlockId id = free[section].front();
    free[section].pop_front();
    texts.erase(id);
    references[id] = 1;
    return id;
  }
  void retain(BlockId id) {
    if (references[id]++ == 0) of(id).erase(std::find(of(id).begin(), of(id).end(), id));
  }
  void release(BlockId id) {
    if (--references[id] > 0) return;
    if (texts.contains(id))
      of(id).push_back(id);
    else
      of(id).push_front(id);
  }
  std::vector<BlockId> free_order() const {
    std::vector<BlockId> order;
    for (const std::deque<BlockId>& section : free) order.insert(order.end(), section.begin(), section.end());
    return order;
  }
  std::optional<BlockId> find(ChainId parent, const std::vector<TokenId>& tokens) const {
    for (const auto& [id, held] : texts)
      if (held == std::pair(parent, tokens)) return id;
    return std::nullopt;
  }
};

TEST(BlockPool, RandomUse_AgreesWithTheObviousPool) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    std::mt19937 random(seed);
    const uint32_t size = 1 + random() % 8;
    std::vector<uint32_t> ends;
    for (uint32_t end = 1; end < size; ++end)
      if (random() % 4 == 0) ends.push_back(end);
    // A poor hash, so that buckets hold several blocks.
    BlockPool pool(
        size, 2, true, [](ChainId parent, std::span<const TokenId> t) { return parent + static_cast<uint64_t>(t[0]); },
        ends);
    ends.push_back(size);
    NaivePool naive(ends);
    std::vector<BlockId> held;  // once per reference
    for (int step = 0; step < 300; ++step) {
      const uint32_t what = random() % 4;
      const std::vector<TokenId> tokens = text(static_cast<TokenId>(random() % 5));
      const ChainId parent = random() % 3;
      if (what == 0 && pool.free_count() > 0) {
        const BlockId id = pool.allocate();
        ASSERT_EQ(id, naive.allocate()) << "seed " << seed;
        held.push_back(id);
      } else if (what == 1 && !held.empty()) {
        const size_t which = random() % held.size();
        pool.release(held[which]);
        naive.release(held[which]);
        held.erase(held.begin() + static_cast<ptrdiff_t>(which));
      } else if (what == 2 && !held.empty()) {
        const BlockId id = held[random() % held.size()];
        if (pool.cached(id)) continue;
        pool.publish(id, parent, tokens);
        if (!naive.find(parent, tokens)) naive.texts[id] = {parent, tokens};
      } else if (what == 3) {
        const auto hit = pool.find(parent, tokens);
        const auto expected = naive.find(parent, tokens);
        ASSERT_EQ(hit.has_value(), expected.has_value()) << "seed " << seed;
        if (!hit) continue;
        ASSERT_EQ(hit->block, *expected);
        pool.retain(hit->block);
        naive.retain(hit->block);
        held.push_back(hit->block);
      }
      ASSERT_EQ(pool.free_order(), naive.free_order()) << "seed " << seed;
      ASSERT_EQ(pool.free_count(), naive.free_order().size());
    }
  }
}

}  // namespace
}  // namespace motley
