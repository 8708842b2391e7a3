#include "planner/step_costs.hpp"

#include <gtest/gtest.h>

#include "planner/planner_test_fleet.hpp"
#include "planner/prediction.hpp"
#include "planner/profile_json.hpp"

namespace motley {
namespace {

using testing::make_device;
using testing::make_shape;

// Two halves of one processor; a step of 16 sequences at position 2000.
class StepCostsTest : public ::testing::Test {
 protected:
  StepCostsTest() {
    input_.devices = {make_device("CPU:0", "cpu", {}, shape_), make_device("CPU:1", "cpu", {}, shape_)};
    for (DeviceProfile& device : input_.devices) device.memory_group = "host";
  }
  // Both in one stage, or one after the other.
  double step_ns(bool together, uint32_t rows = 16, uint32_t context = 2000) const {
    const auto half = [](int64_t units, bool second) {
      return std::vector<UnitRange>{second ? UnitRange{units / 2, units} : UnitRange{0, units / 2}};
    };
    const auto layers = static_cast<uint32_t>(shape_.layers.size());
    Placement placement;
    placement.lanes.emplace_back();
    std::vector<Stage>& stages = placement.lanes[0].stages;
    for (const bool second : {false, true}) {
      if (!second || !together) stages.emplace_back();
      Shard shard;
      shard.device = input_.devices[second ? 1 : 0].name;
      if (together) {
        stages[0].layer_end = layers;
        shard.kv_heads = half(shape_.kv_heads, second), shard.ffn_columns = half(shape_.ffn_columns, second);
        shard.vocab_rows = half(shape_.vocab, second);
      } else {
        stages.back().layer_begin = second ? layers / 2 : 0, stages.back().layer_end = second ? layers : layers / 2;
        shard.kv_heads = {{0, shape_.kv_heads}}, shard.ffn_columns = {{0, shape_.ffn_columns}};
        shard.vocab_rows = {{0, shape_.vocab}};
      }
      stages.back().shards.push_back(shard);
    }
    const Result<double> ns = predict_step_ns(shape_, input_, placement, rows, context);
    EXPECT_TRUE(ns.ok()) << ns.error().message();
    return ns.ok() ? *ns : 0;
  }

  const ModelShape shape_ = make_shape({});
  PlanInput input_;
};

TEST_F(StepCostsTest, WhatBothReadAtATime_TakesLonger_WhereBothRun) {
  const double together = step_ns(true), in_line = step_ns(false), near = step_ns(true, 16, 1);
  for (DeviceProfile& device : input_.devices) device.context_together = 2;
  EXPECT_NEAR(step_ns(true) - together, together - near, 0.01 * together) << "reading takes twice as long";
  EXPECT_EQ(step_ns(false), in_line) << "there one runs after the other";
}

TEST_F(StepCostsTest, Programs_SlowDownWithoutWhatTheyRead) {
  const double together = step_ns(true), near = step_ns(true, 16, 1);
  for (DeviceProfile& device : input_.devices) device.together = {{1}, {2}};
  EXPECT_NEAR(step_ns(true) - step_ns(true, 16, 1), together - near, 0.01 * together);
  EXPECT_GT(step_ns(true, 16, 1), 1.5 * near);
}

// Measured as nothing is not as not measured, which would be thousands of times as much for a long prompt.
TEST_F(StepCostsTest, AChunksReading_IsAsMeasured_OrAsOneRows) {
  const LinkTable links(input_);
  const std::vector<size_t> twins = find_twins(input_);
  const auto attention_ns = [&] {
    return StepCosts(shape_, input_, links, twins, {.chunk_rows = 4096, .chunk_context = 2048.5, .head_rows = 1})
        .attention_ns(0, 0, shape_.kv_heads * shape_.query_heads_per_kv(), shape_.kv_heads);
  };
  DeviceProfile& device = input_.devices[0];
  const double positions = 4096 * 2048.5 * static_cast<double>(shape_.kv_heads);
  device.chunk_context_ns = 0;
  const double nothing = attention_ns();
  device.chunk_context_ns = 0.5;
  EXPECT_NEAR(attention_ns() - nothing, 0.5 * positions, 1e-6 * positions);
  device.chunk_context_ns.reset();
  EXPECT_NEAR(attention_ns() - nothing, device.context.values[0] * positions, 1e-6 * positions);
  const Result<DeviceProfile> unmeasured = read_device_profile(to_json(device));
  device.chunk_context_ns = 0;
  const Result<DeviceProfile> measured = read_device_profile(to_json(device));
  ASSERT_TRUE(unmeasured.ok() && measured.ok());
  EXPECT_EQ(unmeasured->chunk_context_ns, std::nullopt);
  EXPECT_EQ(measured->chunk_context_ns, 0.0);
}

TEST_F(StepCostsTest, EmbeddingAndHeadOfASplitStage_AreWaitedFor) {
  const double together = step_ns(true), in_line = step_ns(false);
  for (DeviceProfile& device : input_.devices) device.wait_ns = 5000;
  EXPECT_NEAR(step_ns(true) - together, 2 * 5000, 1);
  EXPECT_EQ(step_ns(false), in_line);
}

TEST_F(StepCostsTest, RowsOfTwoKinds_CostTheirPartOfWhatDecodingTakesAlone) {
  DeviceProfile& device = input_.devices[0];
  device.layer = {{1, 16, 128}, {1}, {{1e5, 2e5, 1.3e6}}};
  const LinkTable links(input_);
  const std::vector<size_t> twins = find_twins(input_);
  const auto layer_ns = [&](double decoding, double chunk) {
    const StepLoad load{.decode_rows = decoding, .chunk_rows = chunk, .head_rows = decoding};
    return StepCosts(shape_, input_, links, twins, load).layer_ns(0, 0);
  };
  const double both = layer_ns(16, 112), prompt = layer_ns(0, 128), alone = layer_ns(16, 0);
  device.mixed = 0.75;
  EXPECT_NEAR(layer_ns(16, 112), both + 0.75 * 2e5, 1);
  EXPECT_EQ(layer_ns(0, 128), prompt);
  EXPECT_EQ(layer_ns(16, 0), alone);
}

}  // namespace
}  // namespace motley
