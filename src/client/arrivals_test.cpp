#include "client/arrivals.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace motley::client {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Variance of the gaps over the square of their mean: 1 / shape of a gamma distribution.
double dispersion(const std::vector<double>& times) {
  double previous = 0, sum = 0, squares = 0;
  for (const double time : times) {
    sum += time - previous;
    squares += (time - previous) * (time - previous);
    previous = time;
  }
  const auto count = static_cast<double>(times.size());
  const double mean = sum / count;
  return squares / count / (mean * mean) - 1;
}

TEST(Arrivals, InfiniteRate_IsAllAtOnce) {
  EXPECT_EQ(arrival_times({}, 5, 1), std::vector<double>(5, 0.0));
  EXPECT_TRUE(arrival_times({}, 0, 1).empty());
}

TEST(Arrivals, SameSeed_GivesTheSameTimes) {
  ArrivalOptions options;
  options.request_rate = 10;
  EXPECT_EQ(arrival_times(options, 100, 7), arrival_times(options, 100, 7));
  EXPECT_NE(arrival_times(options, 100, 7), arrival_times(options, 100, 8));
}

TEST(Arrivals, Rate_IsKeptExactlyAndTimesAscend) {
  for (const double burstiness : {0.25, 1.0, 4.0, kInfinity}) {
    ArrivalOptions options;
    options.request_rate = 20;
    options.burstiness = burstiness;
    const auto times = arrival_times(options, 20'000, 3);
    EXPECT_TRUE(std::is_sorted(times.begin(), times.end()));
    EXPECT_GE(times.front(), 0);
    EXPECT_NEAR(times.back(), 1000, 1e-6);
  }
}

// 20,000 draws of one seed: the same in every run, so the bounds are never met by chance.
TEST(Arrivals, Burstiness_IsTheShapeOfTheGaps) {
  for (const double burstiness : {0.25, 1.0, 4.0}) {
    ArrivalOptions options;
    options.request_rate = 20;
    options.burstiness = burstiness;
    const double seen = dispersion(arrival_times(options, 20'000, 3)) * burstiness;
    EXPECT_GT(seen, 0.8) << burstiness;
    EXPECT_LT(seen, 1.25) << burstiness;
  }
  ArrivalOptions even;
  even.request_rate = 20;
  even.burstiness = kInfinity;
  const auto times = arrival_times(even, 100, 3);
  EXPECT_NEAR(times[0], 0.05, 1e-9);
  EXPECT_NEAR(times[99], 5, 1e-9);
}

TEST(Arrivals, Ramps_GoFromTheFirstRateToTheLast) {
  ArrivalOptions options;
  options.ramp_up_start_rps = 10;
  options.ramp_up_end_rps = 1000;
  options.ramp_up = RampUp::kLinear;
  EXPECT_DOUBLE_EQ(rate_at(options, 0, 101), 10);
  EXPECT_DOUBLE_EQ(rate_at(options, 50, 101), 505);
  EXPECT_DOUBLE_EQ(rate_at(options, 100, 101), 1000);
  EXPECT_DOUBLE_EQ(rate_at(options, 0, 1), 10);
  options.ramp_up = RampUp::kExponential;
  EXPECT_DOUBLE_EQ(rate_at(options, 0, 101), 10);
  EXPECT_NEAR(rate_at(options, 50, 101), 100, 1e-9);
  EXPECT_NEAR(rate_at(options, 100, 101), 1000, 1e-9);
  const auto times = arrival_times(options, 10'001, 1);
  EXPECT_TRUE(std::is_sorted(times.begin(), times.end()));
  // The first half comes at a tenth of the second half's rate.
  EXPECT_GT(times[5000], 5 * (times[10'000] - times[5000]));
}

TEST(Arrivals, OptionsThatMakeNoSense_AreRefused) {
  const ArrivalOptions none;
  EXPECT_TRUE(check(none).ok());
  for (const double bad : {0.0, -1.0, std::nan("")}) {
    ArrivalOptions options;
    options.request_rate = bad;
    EXPECT_EQ(check(options).code(), MOTLEY_INVALID_ARGUMENT);
    options = none;
    options.burstiness = bad;
    EXPECT_EQ(check(options).code(), MOTLEY_INVALID_ARGUMENT);
  }
  ArrivalOptions ramp;
  ramp.ramp_up_end_rps = 5;
  EXPECT_FALSE(check(ramp).ok());  // no strategy
  ramp.ramp_up = RampUp::kLinear;
  EXPECT_FALSE(check(ramp).ok());  // begins with 0
  ramp.ramp_up_start_rps = 6;
  EXPECT_FALSE(check(ramp).ok());  // falls
  ramp.ramp_up_start_rps = 5;
  EXPECT_TRUE(check(ramp).ok());
  ramp.request_rate = 3;
  EXPECT_FALSE(check(ramp).ok());
}

}  // namespace
}  // namespace motley::client
