#include "planner/pipeline.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>

namespace motley {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

StageType steady(uint32_t count, int64_t layer_ns, size_t layers, int64_t memory_bytes = 1 << 30) {
  return {count, 0, std::vector<int64_t>(layers, layer_ns), memory_bytes};
}

// The best bottleneck over every order of the devices that are left and every cut of the layers from `begin` on.
int64_t brute_force(const std::vector<int64_t>& bytes, std::vector<StageType>& left, size_t begin) {
  if (begin == bytes.size()) return 0;
  int64_t best = kNever;
  for (StageType& type : left) {
    if (type.count == 0) continue;
    --type.count;
    int64_t time = type.fixed_ns, held = 0;
    for (size_t end = begin + 1; end <= bytes.size(); ++end) {
      time += type.layer_ns[end - 1];
      held += bytes[end - 1];
      if (held > type.memory_bytes) break;
      best = std::min(best, std::max(time, brute_force(bytes, left, end)));
    }
    ++type.count;
  }
  return best;
}

// Covers each layer once, uses no device twice, holds what it says.
void expect_sound(const Pipeline& pipeline, const std::vector<int64_t>& bytes, const std::vector<StageType>& types) {
  std::vector<uint32_t> used(types.size(), 0);
  uint32_t next = 0;
  int64_t slowest = 0;
  for (const PipelineStage& stage : pipeline.stages) {
    ASSERT_EQ(stage.layer_begin, next);
    ASSERT_LT(stage.layer_begin, stage.layer_end);
    next = stage.layer_end;
    const StageType& type = types.at(stage.type);
    ASSERT_LE(++used[stage.type], type.count);
    ASSERT_LE(std::accumulate(bytes.begin() + stage.layer_begin, bytes.begin() + stage.layer_end, int64_t{0}),
              type.memory_bytes);
    slowest = std::max(slowest, std::accumulate(type.layer_ns.begin() + stage.layer_begin,
                                                type.layer_ns.begin() + stage.layer_end, type.fixed_ns));
  }
  ASSERT_EQ(next, bytes.size());
  ASSERT_EQ(slowest, pipeline.bottleneck_ns);
}

TEST(Pipeline, TwoSpeeds_GetLayersAsTheirSpeeds) {
  const std::vector<StageType> types = {steady(1, 100, 10), steady(1, 400, 10)};
  const auto pipeline = plan_pipeline(std::vector<int64_t>(10, 1), types);
  ASSERT_TRUE(pipeline.ok());
  EXPECT_EQ(pipeline->bottleneck_ns, 800);
  ASSERT_EQ(pipeline->stages.size(), 2u);
}

TEST(Pipeline, DeviceTooSlowToHelp_IsLeftOut) {
  std::vector<StageType> types = {steady(1, 10, 4), steady(3, 1000, 4)};
  const auto pipeline = plan_pipeline(std::vector<int64_t>(4, 1), types);
  ASSERT_TRUE(pipeline.ok());
  ASSERT_EQ(pipeline->stages.size(), 1u);
  EXPECT_EQ(pipeline->stages[0].type, 0u);
  EXPECT_EQ(pipeline->bottleneck_ns, 40);
}

TEST(Pipeline, MemoryAlone_CutsTheLayers) {
  const std::vector<StageType> types = {steady(1, 1, 6, 30), steady(2, 50, 6, 20)};
  const auto pipeline = plan_pipeline(std::vector<int64_t>(6, 10), types);
  ASSERT_TRUE(pipeline.ok());
  EXPECT_EQ(pipeline->stages.size(), 3u);
  EXPECT_EQ(pipeline->bottleneck_ns, 100);
}

TEST(Pipeline, WhatCannotBe_IsRefused) {
  const std::vector<int64_t> four(4, 10);
  const auto code = [&](const std::vector<int64_t>& bytes, const std::vector<StageType>& types) {
    return plan_pipeline(bytes, types).error().code();
  };
  EXPECT_EQ(code(four, {}), MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_EQ(code(four, {steady(3, 1, 4, 10)}), MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_EQ(code(four, {steady(1, 1, 3)}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(four, {steady(1, -1, 4)}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(four, {steady(1, kPipelineTimeMaxNs + 1, 4)}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(four, {steady(1, 1, 4, -1)}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code({-1}, {steady(1, 1, 1)}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(std::vector<int64_t>(kPipelineLayersMax + 1, 1), {}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(four, std::vector<StageType>(8, steady(8, 1, 4))), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(four, {steady(4'000'000'000, 1, 4), steady(4'000'000'000, 1, 4)}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_TRUE(plan_pipeline({}, {})->stages.empty());
}

TEST(Pipeline, RandomCases_EqualBruteForceOverOrdersAndCuts) {
  std::mt19937_64 random(20261126);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  int possible = 0;
  for (int round = 0; round < 2500; ++round) {
    const auto layers = static_cast<size_t>(1 + below(6));
    std::vector<int64_t> bytes(layers);
    for (int64_t& b : bytes) b = below(10);
    std::vector<StageType> types(static_cast<size_t>(1 + below(3)));
    for (StageType& type : types) {
      type.count = static_cast<uint32_t>(below(3));
      type.fixed_ns = below(5);
      type.memory_bytes = below(40);
      type.layer_ns.resize(layers);
      const int64_t speed = 1 + below(8);
      for (int64_t& t : type.layer_ns) t = speed * below(12);
    }
    std::vector<StageType> left = types;
    const int64_t best = brute_force(bytes, left, 0);
    const auto pipeline = plan_pipeline(bytes, types);
    ASSERT_EQ(pipeline.ok(), best != kNever) << "round " << round;
    if (!pipeline.ok()) continue;
    ++possible;
    ASSERT_EQ(pipeline->bottleneck_ns, best) << "round " << round;
    expect_sound(*pipeline, bytes, types);
  }
  EXPECT_GE(possible, 1000);
}

// 64 devices of 4 types and 96 layers: what a large fleet asks for, in a search that stays small.
TEST(Pipeline, LargeFleet_IsWithinTheContinuousBound) {
  constexpr size_t kLayers = 96;
  const std::vector<int64_t> bytes(kLayers, 100);
  std::vector<StageType> types;
  for (const int64_t layer_ns : {1000, 1700, 4100, 9000}) types.push_back(steady(16, layer_ns, kLayers, 1000));
  const auto pipeline = plan_pipeline(bytes, types);
  ASSERT_TRUE(pipeline.ok());
  expect_sound(*pipeline, bytes, types);
  double speed = 0;  // layers a nanosecond, if layers could be divided
  int64_t slowest_layer = 0;
  for (const StageType& type : types) {
    speed += type.count / static_cast<double>(type.layer_ns[0]);
    slowest_layer = std::max(slowest_layer, type.layer_ns[0]);
  }
  EXPECT_GE(static_cast<double>(pipeline->bottleneck_ns), kLayers / speed);
  EXPECT_LE(static_cast<double>(pipeline->bottleneck_ns), kLayers / speed + static_cast<double>(slowest_layer));
}

}  // namespace
}  // namespace motley
