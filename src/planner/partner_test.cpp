// Devices that cannot attend, that hold no vocabulary, and that compute fixed numbers of rows.
#include <gtest/gtest.h>

#include "planner/bound.hpp"
#include "planner/plan_json.hpp"
#include "planner/planner_test_fleet.hpp"
#include "planner/profile_json.hpp"
#include "planner/search.hpp"

namespace motley {
namespace {

using testing::make_device;
using testing::make_shape;
using testing::SizedShape;
using testing::Speed;

// A CPU, and an NPU in the manner of static devices.
struct World {
  ModelShape shape = make_shape({.layers = 8, .hidden = 1024, .heads = 16, .kv_heads = 4, .ffn = 4096});
  PlanInput input;
  explicit World(const Speed& npu, const Speed& cpu = {.gb_per_s = 60, .gflops = 400}) {
    input.devices = {make_device("CPU:0", "cpu", cpu, shape),
                     testing::with_fixed_rows(make_device("NPU:0", "npu", npu, shape), npu, shape)};
  }
  double alone(const PlanRequest& request) const {
    Predictor predictor(shape, input, request);
    return predictor.evaluate({{whole_stage(shape, 0, 0, 8)}}).predicted.tokens_per_s;
  }
};

constexpr Speed kFastNpu = {.gb_per_s = 60, .gflops = 10000, .overhead_ns = 100'000};

TEST(Partners, AFastNpu_ComputesAndTheCpuAttends) {
  const World world(kFastNpu);
  PlanRequest request;
  request.prompt_len = 2048, request.output_len = 16;
  const auto report = plan(world.shape, world.input, request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  EXPECT_GT(report->predicted.tokens_per_s, 1.5 * world.alone(request));
  bool partner = false;
  for (const Shard& shard : report->placement.lanes[0].stages[0].shards) partner = partner || shard.partner == "CPU:0";
  EXPECT_TRUE(partner);
  EXPECT_EQ(report->placement.lanes[0].stages[0].kv_owners, std::vector<std::string>{"CPU:0"});
  EXPECT_EQ(report->devices.size(), 2u);
  EXPECT_GE(report->bound_tokens_per_s, report->predicted.tokens_per_s);
}

TEST(Partners, ADearDispatch_KeepsTheNpuOutWithAReason) {
  const World world({.gb_per_s = 60, .gflops = 1000, .overhead_ns = 1'400'000});
  PlanRequest request;
  request.prompt_len = 16, request.output_len = 256;
  const auto report = plan(world.shape, world.input, request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  ASSERT_EQ(report->left_out.size(), 1u);
  EXPECT_EQ(report->left_out[0].device, "NPU:0");
  EXPECT_FALSE(report->left_out[0].reason.empty());
  EXPECT_DOUBLE_EQ(report->predicted.tokens_per_s, world.alone(request));
}

TEST(Partners, PlanFile_ComesBackEqual_AndIsReadStrictly) {
  const World world(kFastNpu);
  PlanRequest request;
  request.prompt_len = 2048, request.output_len = 16;
  const auto report = plan(world.shape, world.input, request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  const std::string text = to_json(*report, world.shape, {});
  const auto placement = read_plan(text, world.shape, world.input, request, {});
  ASSERT_TRUE(placement.ok()) << placement.error().message() << text;
  PlanReport again = *report;
  again.placement = *placement;
  EXPECT_EQ(to_json(again, world.shape, {}), text);

  const auto refusal = [&](const std::string& shards) {
    return read_plan(R"({"stages": [{"layers": [0, 8], "shards": [)" + shards + "]}]}", world.shape, world.input,
                     request, {})
        .error()
        .message();
  };
  const std::string cpu = R"(, {"device": "CPU:0", "vocab_rows": 32000})";
  const std::string npu = R"({"device": "NPU:0", "kv_heads": 4, "ffn_columns": 4096)";
  EXPECT_EQ(refusal(npu + R"(, "partner": "CPU:0"})" + cpu), "");
  EXPECT_NE(refusal(npu + "}" + cpu).find("cannot attend"), std::string::npos);
  EXPECT_NE(refusal(npu + R"(, "partner": "NPU:0"})" + cpu).find("cannot attend"), std::string::npos);
  EXPECT_NE(refusal(npu + R"(, "partner": "TPU:0"})" + cpu).find("not listed"), std::string::npos);
  EXPECT_NE(refusal(npu + R"(, "partner": "CPU:0", "vocab_rows": 32000})").find("vocabulary"), std::string::npos);
}

TEST(Partners, ForcedTensorParallelism_GivesTheNpuColumns) {
  const World world(kFastNpu);
  PlanRequest request;
  request.tensor_parallel_size = 2;
  const auto report = plan(world.shape, world.input, request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  EXPECT_EQ(report->devices.size(), 2u);
}

TEST(Partners, AnNpuAlone_IsRefused) {
  World world(kFastNpu);
  world.input.devices.erase(world.input.devices.begin());
  const auto report = plan(world.shape, world.input, {});
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.error().message().find("attend"), std::string::npos) << report.error().message();
}

TEST(Partners, RowsRun_AreThoseOfTheNextBucket) {
  DeviceProfile device;
  EXPECT_EQ(device.rows_run(17), 17);
  device.buckets = {16, 64};
  EXPECT_EQ(device.rows_run(1), 16);
  EXPECT_EQ(device.rows_run(16), 16);
  EXPECT_EQ(device.rows_run(16.5), 64);
  EXPECT_EQ(device.rows_run(65), 65);
}

TEST(Partners, WhatAProfileSaysOfItself_ComesBack) {
  World world(kFastNpu);
  world.input.devices[1].uncompiled = {8, 32};
  const auto read = read_plan_input(to_json(world.input));
  ASSERT_TRUE(read.ok()) << read.error().message();
  EXPECT_TRUE(read->devices[0].attends);
  EXPECT_FALSE(read->devices[1].attends);
  EXPECT_FALSE(read->devices[1].holds_vocabulary);
  EXPECT_EQ(read->devices[1].buckets, world.input.devices[1].buckets);
  EXPECT_EQ(read->devices[1].uncompiled, world.input.devices[1].uncompiled);
  EXPECT_FALSE(alike(world.input, LinkTable(world.input), 0, 1));
}

}  // namespace
}  // namespace motley
