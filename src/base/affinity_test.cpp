#include "base/affinity.hpp"

#include <gtest/gtest.h>

#include <array>
#include <vector>

namespace motley {
namespace {

TEST(DistinctCores, EachHasSomeAndNoTwoTheSame) {
  const std::vector<int> a = {0, 1}, b = {2}, c = {1, 3}, none;
  const auto distinct = [](std::vector<std::span<const int>> all) { return distinct_cores(all); };
  EXPECT_TRUE(distinct({a, b}));
  EXPECT_TRUE(distinct({b, c}));
  EXPECT_FALSE(distinct({a, b, c})) << "core 1 is of two";
  EXPECT_FALSE(distinct({a, none}));
  EXPECT_TRUE(distinct({}));
}

}  // namespace
}  // namespace motley
