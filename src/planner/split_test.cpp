#include "planner/split.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace motley {
namespace {

SplitDevice steady(int64_t fixed_ns, int64_t unit_ns, int64_t capacity) {
  SplitDevice device{{0}, 0};
  for (int64_t u = 1; u <= capacity; ++u) device.time_ns.push_back(fixed_ns + u * unit_ns);
  return device;
}

int64_t slowest(const std::vector<SplitDevice>& devices, const std::vector<int64_t>& units) {
  int64_t time = devices.empty() ? 0 : std::numeric_limits<int64_t>::min();
  for (size_t d = 0; d < devices.size(); ++d) time = std::max(time, devices[d].time_ns[static_cast<size_t>(units[d])]);
  return time;
}

// The best time over every way to give `left` units to the devices from `d` on; max if there is none. Devices of the
// pool come first.
int64_t brute_force(const std::vector<SplitDevice>& devices, const SplitPool& pool, size_t d, int64_t left,
                    int64_t pool_left, int64_t so_far) {
  if (d == devices.size()) return left == 0 ? so_far : std::numeric_limits<int64_t>::max();
  int64_t best = std::numeric_limits<int64_t>::max();
  const bool pooled = d < pool.devices.size();
  const int64_t most = std::min(
      {left, devices[d].units_max, static_cast<int64_t>(devices[d].time_ns.size()) - 1, pooled ? pool_left : left});
  for (int64_t u = devices[d].units_min; u <= most; ++u) {
    best = std::min(best, brute_force(devices, pool, d + 1, left - u, pooled ? pool_left - u : pool_left,
                                      std::max(so_far, devices[d].time_ns[static_cast<size_t>(u)])));
  }
  return best;
}

TEST(Split, TwoSpeeds_GetSharesAsTheirSpeeds) {
  const std::vector<SplitDevice> devices = {steady(0, 100, 100), steady(0, 400, 100)};
  const auto split = split_units(10, devices);
  ASSERT_TRUE(split.ok());
  EXPECT_EQ(split->units, (std::vector<int64_t>{8, 2}));
  EXPECT_EQ(split->time_ns, 800);
}

TEST(Split, DeviceTooSlowToHelp_GetsNothingUnlessItMust) {
  std::vector<SplitDevice> devices = {steady(10, 10, 20), steady(5000, 10, 20)};
  EXPECT_EQ(split_units(12, devices)->units, (std::vector<int64_t>{12, 0}));
  devices[1].units_min = 1;
  EXPECT_EQ(split_units(12, devices)->units, (std::vector<int64_t>{11, 1}));
  EXPECT_EQ(split_units(12, devices)->time_ns, 5010);
}

TEST(Split, FewerUnitsThanDevices_LeavesSomeIdle) {
  const std::vector<SplitDevice> devices(5, steady(0, 7, 3));
  const auto split = split_units(3, devices);
  ASSERT_TRUE(split.ok());
  EXPECT_EQ(std::count(split->units.begin(), split->units.end(), 0), 2);
  EXPECT_EQ(split->time_ns, 7);
}

TEST(Split, WhatCannotBe_IsRefused) {
  const auto code = [](int64_t units, const std::vector<SplitDevice>& devices) {
    return split_units(units, devices).error().code();
  };
  EXPECT_EQ(code(-1, {steady(0, 1, 4)}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(1, {SplitDevice{}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(1, {SplitDevice{{0, 5, 4}, 0}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(3, {SplitDevice{{0, 1, 2}, 3}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(1, {SplitDevice{{0, 1}, 1}, SplitDevice{{0, 1}, 1}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(1, {}), MOTLEY_RESOURCE_EXHAUSTED);
  const auto split = split_units(10, std::vector<SplitDevice>{steady(0, 1, 4), steady(0, 1, 3)});
  EXPECT_NE(split.error().message().find("3 missing"), std::string::npos) << split.error().message();
  EXPECT_EQ(split_units(0, {})->units.size(), 0u);
}

// Tables of any shape: plateaus, jumps, idle costs, things that a device must take.
TEST(Split, RandomCases_EqualBruteForce) {
  std::mt19937_64 random(20261126);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  int possible = 0;
  for (int round = 0; round < 4000; ++round) {
    const int64_t units = below(9);
    std::vector<SplitDevice> devices(static_cast<size_t>(1 + below(4)));
    for (SplitDevice& device : devices) {
      int64_t time = below(3) == 0 ? below(20) - 10 : 0;
      for (int64_t u = 0, most = below(8); u <= most; ++u, time += below(2) == 0 ? 0 : below(30)) {
        device.time_ns.push_back(time);
      }
      if (below(4) == 0) device.units_min = below(static_cast<int64_t>(device.time_ns.size()));
      if (below(4) == 0) device.units_max = device.units_min + below(4);
    }
    SplitPool pool{{}, below(8)};
    if (below(2) == 0) pool.devices.resize(static_cast<size_t>(below(static_cast<int64_t>(devices.size()) + 1)));
    std::iota(pool.devices.begin(), pool.devices.end(), size_t{0});
    const int64_t best = brute_force(devices, pool, 0, units, pool.units_max, std::numeric_limits<int64_t>::min());
    const auto split = split_units(units, devices, {&pool, 1});
    ASSERT_EQ(split.ok(), best != std::numeric_limits<int64_t>::max()) << "round " << round;
    if (!split.ok()) continue;
    ++possible;
    ASSERT_EQ(split->time_ns, best) << "round " << round;
    ASSERT_EQ(slowest(devices, split->units), best) << "round " << round;
    int64_t sum = 0;
    for (size_t d = 0; d < devices.size(); ++d) {
      ASSERT_GE(split->units[d], devices[d].units_min);
      sum += split->units[d];
    }
    ASSERT_EQ(sum, units);
    int64_t pooled = 0;
    for (const size_t d : pool.devices) pooled += split->units[d];
    ASSERT_LE(pooled, pool.units_max);
  }
  EXPECT_GE(possible, 1000);
}

}  // namespace
}  // namespace motley
