#include "engine/bucket_rounding.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "engine/step_budget.hpp"

namespace motley {
namespace {

const std::vector<uint32_t> kFours = {16, 64, 256, 1024};

TEST(BucketRounding, PaddedRows_AreTheLeastBucketThatHoldsThem) {
  EXPECT_EQ(padded_rows(kFours, 1), 16u);
  EXPECT_EQ(padded_rows(kFours, 16), 16u);
  EXPECT_EQ(padded_rows(kFours, 17), 64u);
  EXPECT_EQ(padded_rows(kFours, 2000), 2000u);
  EXPECT_EQ(padded_rows({}, 17), 17u);
}

TEST(BucketRounding, MoreOfThePromptLeft_RoundsDown) {
  EXPECT_EQ(rounded_rows(kFours, {.begun = 0, .limit = 300, .wanted = 5000}), 256u);
  EXPECT_EQ(rounded_rows(kFours, {.begun = 3, .limit = 300, .wanted = 5000}), 256u);
  EXPECT_EQ(rounded_rows(kFours, {.begun = 0, .limit = 1024, .wanted = 5000}), 1024u);
}

TEST(BucketRounding, AlmostAWholeBucketInTime_IsFilled) {
  EXPECT_EQ(rounded_rows(kFours, {.begun = 0, .limit = 240, .wanted = 5000}), 256u);
  EXPECT_EQ(rounded_rows(kFours, {.begun = 0, .limit = 240, .wanted = 5000, .strict = true}), 240u);
}

TEST(BucketRounding, EndOfThePrompt_IsCutOffWhereThatWastesLess) {
  EXPECT_EQ(rounded_rows(kFours, {.begun = 0, .limit = 1024, .wanted = 80}), 64u);    // 64, 16: not 256
  EXPECT_EQ(rounded_rows(kFours, {.begun = 0, .limit = 1024, .wanted = 129}), 64u);   // 64, 64, 1
  EXPECT_EQ(rounded_rows(kFours, {.begun = 0, .limit = 1024, .wanted = 240}), 240u);  // and 16 of padding
  EXPECT_EQ(rounded_rows(kFours, {.begun = 0, .limit = 1024, .wanted = 5}), 5u);      // there is no smaller one
}

TEST(BucketRounding, PaddingThatRunsAnyway_IsFilledWithPrompts) {
  EXPECT_EQ(rounded_rows(kFours, {.begun = 20, .limit = 24, .wanted = 5000}), 64u);
  EXPECT_EQ(rounded_rows(kFours, {.begun = 20, .limit = 24, .wanted = 40}), 40u);
  EXPECT_EQ(rounded_rows(kFours, {.begun = 20, .limit = 24, .wanted = 5000, .strict = true}), 24u);
}

// Decodes that fill a bucket almost leave prompts a row; they get their part in the next one.
TEST(BucketRounding, DecodesJustBelowABucket_DoNotStarvePrompts) {
  EXPECT_EQ(rounded_rows(kFours, {.begun = 63, .limit = 79, .wanted = 5000}), 256u);
  EXPECT_EQ(rounded_rows(kFours, {.begun = 63, .limit = 79, .wanted = 5000, .strict = true}), 79u);
}

TEST(BucketRounding, AnyCase_KeepsTheLimitsAndMovesPromptsOn) {
  std::mt19937 random(7);
  const auto pick = [&](uint32_t low, uint32_t high) {
    return low + static_cast<uint32_t>(random() % (high - low + 1));
  };
  for (int round = 0; round < 20000; ++round) {
    std::vector<uint32_t> buckets;
    for (uint32_t rows = pick(1, 40); rows < 600; rows += pick(1, 300)) buckets.push_back(rows);
    const uint32_t last = buckets.back();
    RowsAsked asked;
    asked.begun = pick(0, last - 1);
    asked.limit = pick(asked.begun + 1, last);
    asked.wanted = asked.begun + pick(1, 2 * last);
    asked.strict = pick(0, 1) == 1;
    const uint32_t rows = rounded_rows(buckets, asked);
    ASSERT_GT(rows, asked.begun);
    ASSERT_LE(rows, std::min(asked.wanted, last));
    if (asked.strict) {
      ASSERT_LE(rows, asked.limit);
    }
    const uint32_t fair = std::min({asked.limit, asked.wanted, asked.begun + kBudgetRowsMin});
    ASSERT_GE(rows, fair);
    ASSERT_LE(padded_rows(buckets, rows), padded_rows(buckets, std::min(asked.limit, asked.wanted)));
  }
}

}  // namespace
}  // namespace motley
