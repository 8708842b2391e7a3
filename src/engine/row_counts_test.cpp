#include "engine/row_counts.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace motley {
namespace {

using Rows = std::vector<uint32_t>;

TEST(RowCounts, PowersOfTwo_AndWhatTheLoadDecodes) {
  EXPECT_EQ(row_counts(2048), (Rows{4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048}));
  EXPECT_EQ(row_counts(100, {.concurrency = 24}), (Rows{4, 6, 8, 12, 16, 24, 32, 64, 100}));
  EXPECT_EQ(row_counts(16, {.concurrency = 1}), (Rows{1, 4, 8, 16}));
  EXPECT_EQ(row_counts(16, {.concurrency = 64}), (Rows{4, 8, 16}));  // no more than a step has
  EXPECT_EQ(row_counts(3), Rows{3});
  EXPECT_EQ(row_counts(3, {.concurrency = 0}), (Rows{1, 3}));
}

TEST(RowCounts, Fewer_AreThoseThatTheLoadMissesMost) {
  const auto few = [](size_t most, const ExpectedLoad& load = {}) {
    return fewer_row_counts(row_counts(2048, load), most, load);
  };
  EXPECT_EQ(few(10), row_counts(2048));
  EXPECT_EQ(few(5), (Rows{8, 16, 128, 256, 2048}));
  EXPECT_EQ(few(4), (Rows{8, 16, 128, 2048}));  // what decodes, in two steps or one, and a prompt's part
  EXPECT_EQ(few(1), Rows{2048});
  EXPECT_EQ(few(0), Rows{2048});
  EXPECT_EQ(few(4, {24, 512, 128}), (Rows{12, 24, 128, 2048}));
  EXPECT_EQ(few(4, {1, 512, 128}), (Rows{1, 128, 256, 2048}));
  EXPECT_EQ(few(4, {8, 128, 64}), (Rows{4, 8, 64, 2048}));
  EXPECT_EQ(few(3, {16, 512, 1}), (Rows{8, 128, 2048}));  // prompts alone, nearly
  EXPECT_EQ(few(3, {UINT32_MAX, UINT32_MAX, UINT32_MAX}).size(), 3u);
}

// So that a plan whose programs are many keeps some of what was measured.
TEST(RowCounts, Fewer_AreSomeOfMore) {
  const ExpectedLoad load{20, 300, 200};
  Rows more = row_counts(2048, load);
  for (size_t most = more.size(); most-- > 1;) {
    const Rows fewer = fewer_row_counts(row_counts(2048, load), most, load);
    EXPECT_EQ(fewer.size(), most);
    EXPECT_TRUE(std::includes(more.begin(), more.end(), fewer.begin(), fewer.end()));
    EXPECT_EQ(fewer_row_counts(more, most, load), fewer);
    more = fewer;
  }
}

}  // namespace
}  // namespace motley
