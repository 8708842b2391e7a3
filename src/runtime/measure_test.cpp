#include "runtime/measure.hpp"

#include <gtest/gtest.h>

namespace motley {
namespace {

TEST(Cheapest, LeastTimeOfARowAndAChunk_OfEqualsSharedMemory) {
  const auto of = [](double memory_row, double memory_chunk, double gloo_row, double gloo_chunk) {
    const RouteTimes memory{Route::kSharedMemory, memory_row, memory_chunk}, gloo{Route::kGloo, gloo_row, gloo_chunk};
    const std::vector<RouteTimes> one = {memory, gloo}, other = {gloo, memory};
    EXPECT_EQ(cheapest(one).route, cheapest(other).route);
    return cheapest(one).route;
  };
  EXPECT_EQ(of(5, 100, 50, 900), Route::kSharedMemory);
  EXPECT_EQ(of(50, 900, 5, 100), Route::kGloo);
  EXPECT_EQ(of(50, 100, 5, 140), Route::kGloo);          // 150 and 145
  EXPECT_EQ(of(50, 100, 5, 160), Route::kSharedMemory);  // 150 and 165
  EXPECT_EQ(of(50, 100, 5, 145), Route::kSharedMemory);
  EXPECT_EQ(of(0, 0, 0, 0), Route::kSharedMemory);
}

TEST(Cheapest, OfOne_IsThatOne) {
  const RouteTimes gloo{Route::kGloo, 3, 4};
  EXPECT_EQ(cheapest(std::span(&gloo, 1)).route, Route::kGloo);
  EXPECT_EQ(cheapest(std::span(&gloo, 1)).chunk_ns, 4);
}

}  // namespace
}  // namespace motley
