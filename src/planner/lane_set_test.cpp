// Several lanes: KV over owners, and roles.
#include "planner/lane_set.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "planner/bound.hpp"
#include "planner/lane_search.hpp"
#include "planner/plan_json.hpp"
#include "planner/plan_picture.hpp"
#include "planner/planner_test_fleet.hpp"
#include "planner/search.hpp"

namespace motley {
namespace {

using testing::make_device;
using testing::make_shape;
using testing::Speed;

constexpr double kGiB = 1 << 30;

// A GPU of whose memory the weights take `filled`, and a processor with much memory.
struct FullGpu {
  ModelShape shape =
      make_shape({.layers = 16, .hidden = 2048, .heads = 16, .kv_heads = 4, .head_dim = 128, .ffn = 8192});
  PlanInput input;
  PlanRequest request;

  explicit FullGpu(double filled = 0.9, double cpu_gb_per_s = 100, double gpu_gb_per_s = 1000) {
    const double gib = static_cast<double>(shape.weight_bytes()) / kGiB / filled;
    input.devices = {make_device("GPU:0", "gpu", {.gb_per_s = gpu_gb_per_s, .gflops = 200'000, .gib = gib}, shape),
                     make_device("CPU:0", "cpu", {.gb_per_s = cpu_gb_per_s, .gflops = 1000, .gib = 64}, shape)};
    for (DeviceProfile& device : input.devices) device.own_memory = true;
    request.concurrency = 512, request.prompt_len = 128, request.output_len = 512;
    request.step_bytes = 1 << 20;
  }
  Candidate alone(size_t device) const {
    Predictor predictor(shape, input, request);
    return predictor.evaluate({{whole_stage(shape, device, 0, shape.layers.size())}});
  }
};

std::vector<std::string> owners(const Lane& lane) { return lane.stages.at(0).kv_owners; }

TEST(KvLanes, AFullGpu_LeavesTheKvThatItCannotHoldToTheProcessor) {
  const FullGpu world;
  const auto report = plan(world.shape, world.input, world.request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  ASSERT_EQ(report->placement.lanes.size(), 2u) << plan_text(*report, world.shape);
  const std::vector<Lane>& lanes = report->placement.lanes;
  EXPECT_EQ(owners(lanes[0]), std::vector<std::string>{"GPU:0"});
  EXPECT_EQ(owners(lanes[1]), std::vector<std::string>{"CPU:0"});
  EXPECT_EQ(lanes[1].stages[0].shards[0].device, "GPU:0");
  EXPECT_NE(lanes[0].pool, lanes[1].pool);
  EXPECT_EQ(report->kv_capacity_tokens, kv_tokens(report->placement));
  EXPECT_EQ(report->kv_capacity_tokens, report->lanes[0].kv_tokens + report->lanes[1].kv_tokens);
  Predictor predictor(world.shape, world.input, world.request);
  EXPECT_LE(report->predicted.tokens_per_s, tokens_per_s_bound(&predictor, 0, true));
  EXPECT_TRUE(report->left_out.empty());
  for (const DeviceShare& share : report->devices)
    EXPECT_LE(share.weight_bytes + share.step_bytes + share.kv_bytes, share.usable_bytes) << share.device;
}

// The ceiling: a GPU that reads its full memory each step, while the processor reads KV all the time.
TEST(KvLanes, Gain_IsMostOfTheCeiling) {
  for (const double cpu_gb_per_s : {50.0, 100.0, 200.0}) {
    FullGpu world(0.9, cpu_gb_per_s);
    world.request.concurrency = 4096;
    const double alone = world.alone(0).predicted.tokens_per_s;
    const auto report = plan(world.shape, world.input, world.request);
    ASSERT_TRUE(report.ok()) << report.error().message();
    const double ceiling = cpu_gb_per_s / 1000 * 1 / (1 - 0.9);  // of the gain
    const double gain = report->predicted.tokens_per_s / alone - 1;
    EXPECT_GE(gain, 0.7 * ceiling) << plan_text(*report, world.shape);
  }
}

TEST(KvLanes, WhatDoesNotPay_IsLeftAlone) {
  FullGpu fits;
  fits.request.concurrency = 2;
  FullGpu slow(0.9, 1);
  slow.input.host_memory = {"", "", 1e7, 1};
  for (const FullGpu* world : {&fits, &slow}) {
    const auto report = plan(world->shape, world->input, world->request);
    ASSERT_TRUE(report.ok()) << report.error().message();
    EXPECT_EQ(report->placement.lanes.size(), 1u) << plan_text(*report, world->shape);
    EXPECT_GE(report->predicted.tokens_per_s, world->alone(0).predicted.tokens_per_s);
    ASSERT_EQ(report->left_out.size(), 1u);
    EXPECT_EQ(report->left_out[0].device, "CPU:0");
  }
}

// Owners with 1, 4 and 16 parts of memory for KV: pools that all had the size of the least would hold three parts.
TEST(KvLanes, UnevenMemories_HoldTheSumOfWhatEachHolds) {
  FullGpu world;
  const double weights = static_cast<double>(world.shape.weight_bytes()) / kGiB;
  const auto device = [&](const char* name, double gb_per_s, double gflops, double gib) {
    world.input.devices.push_back(
        make_device(name, "gpu", {.gb_per_s = gb_per_s, .gflops = gflops, .gib = gib}, world.shape));
    world.input.devices.back().own_memory = true;
  };
  world.input.devices.clear();
  device("GPU:0", 2000, 300'000, weights + 1);
  device("GPU:1", 300, 500, 4);
  device("CPU:0", 200, 500, 16);
  world.request.concurrency = 1024, world.request.prompt_len = 256, world.request.output_len = 1024;
  const auto report = plan(world.shape, world.input, world.request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  ASSERT_EQ(report->placement.lanes.size(), 3u) << plan_text(*report, world.shape);
  uint64_t least = UINT64_MAX, sum = 0;
  for (const LaneReport& lane : report->lanes) least = std::min(least, lane.kv_tokens), sum += lane.kv_tokens;
  EXPECT_EQ(sum, report->kv_capacity_tokens);
  EXPECT_GE(static_cast<double>(sum), 6 * 3 * static_cast<double>(least)) << plan_text(*report, world.shape);
  const double held = 21 * kGiB / (kv_head_bytes(world.shape, world.request) * 4 * 16);
  EXPECT_NEAR(static_cast<double>(sum), held, 0.15 * held);
}

TEST(KvLanes, PlanFile_ComesBackEqual_AndIsReadStrictly) {
  const FullGpu world;
  const auto report = plan(world.shape, world.input, world.request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  const std::string text = to_json(*report, world.shape, {});
  const auto placement = read_plan(text, world.shape, world.input, world.request, {});
  ASSERT_TRUE(placement.ok()) << placement.error().message();
  const auto again = report_on(world.shape, world.input, world.request, *placement);
  ASSERT_TRUE(again.ok()) << again.error().message();
  EXPECT_DOUBLE_EQ(again->predicted.tokens_per_s, report->predicted.tokens_per_s);
  EXPECT_EQ(again->kv_capacity_tokens, report->kv_capacity_tokens);
  PlanReport same = *report;
  same.placement = *placement;
  EXPECT_EQ(to_json(same, world.shape, {}), text);
  const std::string sum = fmt::format("\n  \"kv_capacity_tokens\": {}", kv_tokens(*placement));
  const size_t at = text.find(sum);
  ASSERT_NE(at, std::string::npos) << text;
  const auto wrong = read_plan(std::string(text).replace(at, sum.size(), "\n  \"kv_capacity_tokens\": 4711"),
                               world.shape, world.input, world.request, {});
  EXPECT_EQ(wrong.error().code(), MOTLEY_INVALID_ARGUMENT);
  EXPECT_NE(wrong.error().message().find("is 4711, and the pools of the lanes come to"), std::string::npos)
      << wrong.error().message();
}

const std::string kOnGpu = R"("stages": [{"layers": [0, 16], "shards": [{"device": "GPU:0"}]}])";
const std::string kAttended = R"("stages": [{"layers": [0, 16], "shards": [{"device": "GPU:0", "partner": "CPU:0"}]}])";
const std::string kOnCpu = R"("stages": [{"layers": [0, 16], "shards": [{"device": "CPU:0"}]}])";

std::string refusal(const std::string& lanes) {
  const FullGpu world;
  const auto read = read_plan("{\"lanes\": [" + lanes + "]}", world.shape, world.input, world.request, {});
  return read.ok() ? "" : read.error().message();
}

TEST(KvLanes, LanesByHand_AreReadOrRefusedWithTheirPlace) {
  EXPECT_EQ(refusal("{" + kOnGpu + "}, {" + kAttended + "}"), "");
  EXPECT_EQ(refusal(R"({"role": "prefill", )" + kAttended + R"(}, {"pool": 0, "role": "decode", )" + kOnCpu + "}"), "");
  EXPECT_NE(refusal("").find("lanes"), std::string::npos);
  EXPECT_NE(refusal("5").find("lanes[0] is"), std::string::npos);
  EXPECT_NE(refusal(R"({"kv_capacity_tokens": 5, )" + kOnGpu + "}").find("less than a block"), std::string::npos);
  EXPECT_EQ(refusal(R"({"role": "prefill", )" + kAttended +
                    R"(}, {"kv_capacity_tokens": 1024, "pool": 0, "role": "decode", )" + kOnCpu + "}"),
            "");
  EXPECT_NE(refusal("{" + kOnGpu + R"(}, {"pool": 0, )" + kAttended + "}").find("shares a pool"), std::string::npos);
  EXPECT_NE(refusal(R"({"role": "decode", )" + kOnCpu + R"(}, {"pool": 0, "role": "decode", )" + kOnCpu + "}")
                .find("one lane that"),
            std::string::npos);
  EXPECT_NE(refusal("{" + kOnGpu + R"(}, {"pool": 2, )" + kAttended + "}").find("lanes[1]"), std::string::npos);
  EXPECT_NE(refusal(R"({"role": "prefill", )" + kOnGpu + "}").find("decodes"), std::string::npos);
  EXPECT_NE(refusal(R"({"role": "both ways", )" + kOnGpu + "}").find("role"), std::string::npos);
  EXPECT_NE(refusal(R"({"role": "decode", )" + kOnCpu + R"(}, {"pool": 0, )" + kOnCpu + "}").find("no role"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"kv_capacity_tokens": 64, "role": "prefill", )" + kAttended +
                    R"(}, {"kv_capacity_tokens": 32, "pool": 0, "role": "decode", )" + kOnCpu + "}")
                .find("kv_capacity_tokens"),
            std::string::npos);
}

// Devices that each hold the whole model.
struct Replicas {
  ModelShape shape =
      make_shape({.layers = 16, .hidden = 2048, .heads = 16, .kv_heads = 4, .head_dim = 128, .ffn = 8192});
  PlanInput input;
  PlanRequest request;
  explicit Replicas(const std::vector<double>& gb_per_s, double gib = 64) {
    for (const double speed : gb_per_s) {
      const std::string name = fmt::format("GPU:{}", input.devices.size());
      input.devices.push_back(make_device(name, "gpu", {.gb_per_s = speed, .gflops = 20 * speed, .gib = gib}, shape));
    }
    request.concurrency = 16, request.prompt_len = 64, request.output_len = 256;
    input.host_memory = {"", "", 1e8, 1};  // so slow that nobody shares a layer, or passes one on
  }
};

TEST(Replicas, DevicesThatHoldTheModel_ServeSideBySide) {
  const Replicas world({400, 400});
  const auto report = plan(world.shape, world.input, world.request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  ASSERT_EQ(report->placement.lanes.size(), 2u) << plan_text(*report, world.shape);
  std::set<std::string> devices;
  for (const Lane& lane : report->placement.lanes) {
    EXPECT_EQ(lane.share, 0.5);
    ASSERT_EQ(lane.stages.size(), 1u);
    devices.insert(lane.stages[0].shards.at(0).device);
  }
  EXPECT_EQ(devices, (std::set<std::string>{"GPU:0", "GPU:1"}));
  EXPECT_EQ(report->predicted.concurrency, 16u);
  PlanRequest half = world.request;
  half.concurrency = 8;
  Predictor predictor(world.shape, world.input, half);
  const auto alone = predictor.evaluate({{whole_stage(world.shape, 0, 0, world.shape.layers.size())}});
  EXPECT_NEAR(report->predicted.tokens_per_s, 2 * alone.predicted.tokens_per_s, 1e-6 * report->predicted.tokens_per_s);
  EXPECT_NEAR(report->predicted.tpot_ms, alone.predicted.tpot_ms, 1e-9);
  Predictor whole(world.shape, world.input, world.request);
  EXPECT_LE(report->predicted.tokens_per_s, tokens_per_s_bound(&whole, 0, true));
}

TEST(Replicas, ThreeDevices_ServeSideBySide) {
  Replicas world({400, 400, 400});
  world.request.concurrency = 18;
  const auto report = plan(world.shape, world.input, world.request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  ASSERT_EQ(report->placement.lanes.size(), 3u) << plan_text(*report, world.shape);
  for (const LaneReport& lane : report->lanes) EXPECT_EQ(lane.predicted.concurrency, 6u);
}

// Two alike devices of `gib` with a link of `latency_ns`: replicas beside the one lane of so many stages of so many
// devices.
struct WaysToUseTwo {
  double one_lane = 0, replicas = 0;
  PlanReport taken;

  WaysToUseTwo(double latency_ns, double gib, uint32_t stages, uint32_t devices) {
    Replicas world({400, 400}, gib);
    world.input.host_memory = {"", "", latency_ns, 0.001};
    world.request.concurrency = 64;
    PlanRequest forced = world.request;
    forced.pipeline_parallel_size = stages, forced.tensor_parallel_size = devices;
    const auto sole = plan(world.shape, world.input, forced), best = plan(world.shape, world.input, world.request);
    EXPECT_TRUE(sole.ok() && best.ok());
    if (!sole.ok() || !best.ok()) return;
    one_lane = sole->predicted.tokens_per_s;
    taken = *best;
    Predictor predictor(world.shape, world.input, world.request);
    std::vector<LaneOfSet> halves;
    for (const uint32_t device : {0u, 1u})
      halves.push_back({{{whole_stage(world.shape, device, 0, world.shape.layers.size())}}, device, true, true, 0.5});
    replicas = evaluate_lanes(&predictor, halves).predicted.tokens_per_s;
  }
  double gain() const { return replicas / one_lane; }
  bool takes_replicas() const { return taken.placement.lanes.size() == 2; }
  void expect_taken_as_counted() const {
    EXPECT_DOUBLE_EQ(taken.predicted.tokens_per_s, takes_replicas() ? replicas : one_lane);
  }
};

// The less memory, the fewer sequences replicas hold, since each has all weights: they are worse than the pipeline,
// then a little better.
TEST(Replicas, AreTakenOverAPipeline_IfBetterAtAll) {
  const double weights = static_cast<double>(Replicas({}).shape.weight_bytes()) / kGiB;
  int a_little_worse = 0, a_little_better = 0;
  for (double for_kv = 0.2; for_kv < 0.235; for_kv += 0.01) {
    const WaysToUseTwo ways(200'000, weights + for_kv, 2, 1);
    ways.expect_taken_as_counted();
    EXPECT_EQ(ways.takes_replicas(), ways.gain() > 1) << ways.gain();
    a_little_worse += ways.gain() > 0.95 && ways.gain() < 1 ? 1 : 0;
    a_little_better += ways.gain() > 1 && ways.gain() < 1.05 ? 1 : 0;
  }
  EXPECT_GE(a_little_worse, 2);
  EXPECT_GE(a_little_better, 2);
}

// The slower the link, the less shared layers give.
TEST(Replicas, AreTakenOverSharedLayers_From5PercentOn) {
  int less = 0, more = 0;
  for (double latency_ns = 6000; latency_ns < 13000; latency_ns += 2000) {
    const WaysToUseTwo ways(latency_ns, 64, 1, 2);
    ways.expect_taken_as_counted();
    EXPECT_EQ(ways.takes_replicas(), ways.gain() > 1.05) << ways.gain();
    (ways.gain() > 1.05 ? more : less) += 1;
  }
  EXPECT_GE(less, 2);
  EXPECT_GE(more, 2);
}

// The slower the memory of one of two devices, the better are roles, for which they meet at every layer.
TEST(Replicas, AreTakenOverRoles_UpTo5Percent) {
  int though_worse = 0, roles_taken = 0;
  for (double gb_per_s = 140; gb_per_s > 20; gb_per_s -= 10) {
    Replicas world({400, 400});
    world.input.devices[1] =
        make_device("GPU:1", "gpu", {.gb_per_s = gb_per_s, .gflops = 8000, .gib = 64}, world.shape);
    world.input.host_memory = {"", "", 3000, 0.02};
    world.request.concurrency = 64, world.request.prompt_len = 256;
    const size_t layers = world.shape.layers.size();
    LanePlan prompts{{whole_stage(world.shape, 1, 0, layers)}};
    prompts.stages[0].shards[0].partner = 0;
    Predictor predictor(world.shape, world.input, world.request);
    const LanePlan tokens{{whole_stage(world.shape, 0, 0, layers)}};
    const double roles =
        evaluate_lanes(&predictor, {{prompts, 0, true, false}, {tokens, 0, false, true}}).predicted.tokens_per_s;
    const auto taken = plan(world.shape, world.input, world.request);
    ASSERT_TRUE(taken.ok()) << taken.error().message();
    const auto& lanes = taken->placement.lanes;
    if (lanes.size() == 2 && lanes[0].share == 0) {
      EXPECT_DOUBLE_EQ(taken->predicted.tokens_per_s, roles);
      ++roles_taken;
    } else {
      EXPECT_LE(roles, 1.05 * taken->predicted.tokens_per_s);
      though_worse += lanes[0].share > 0 && roles > taken->predicted.tokens_per_s ? 1 : 0;
    }
  }
  EXPECT_GE(though_worse, 1);
  EXPECT_GE(roles_taken, 1);
}

// The shares give everybody a token about as often; one whose share is less than a sequence is left out.
TEST(Replicas, UnlikeDevices_GetWhatTheyAreWorth) {
  Replicas world({900, 300, 3});
  world.request.concurrency = 256;
  const auto report = plan(world.shape, world.input, world.request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  ASSERT_EQ(report->placement.lanes.size(), 2u) << plan_text(*report, world.shape);
  EXPECT_GT(report->placement.lanes[0].share, 0.6);
  EXPECT_DOUBLE_EQ(report->placement.lanes[0].share + report->placement.lanes[1].share, 1);
  EXPECT_LT(report->lanes[1].predicted.tpot_ms, 3 * report->lanes[0].predicted.tpot_ms);
  ASSERT_EQ(report->left_out.size(), 1u);
  EXPECT_EQ(report->left_out[0].device, "GPU:2");
}

TEST(Replicas, WhereNoDeviceHoldsTheModel_OneLaneServes) {
  const double weights = static_cast<double>(Replicas({}).shape.weight_bytes()) / kGiB;
  const Replicas world({400, 400}, 0.8 * weights);
  const auto report = plan(world.shape, world.input, world.request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  EXPECT_EQ(report->placement.lanes.size(), 1u) << plan_text(*report, world.shape);
  EXPECT_EQ(report->placement.lanes[0].share, 0);
}

TEST(Replicas, BytesOfKvThatAreAskedFor_AreOfAllTogether) {
  Replicas world({400, 400});
  world.request.kv.bytes = uint64_t{1} << 30;
  const auto report = plan(world.shape, world.input, world.request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  ASSERT_EQ(report->placement.lanes.size(), 2u) << plan_text(*report, world.shape);
  uint64_t bytes = 0;
  for (const DeviceShare& share : report->devices) bytes += share.kv_bytes;
  EXPECT_LE(bytes, world.request.kv.bytes);
  EXPECT_GE(bytes, world.request.kv.bytes * 99 / 100);
}

TEST(Replicas, PlanFile_ComesBackEqual_AndIsReadStrictly) {
  Replicas world({900, 300});
  world.request.concurrency = 256;
  const auto report = plan(world.shape, world.input, world.request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  const std::string text = to_json(*report, world.shape, {});
  const auto placement = read_plan(text, world.shape, world.input, world.request, {});
  ASSERT_TRUE(placement.ok()) << placement.error().message();
  ASSERT_EQ(placement->lanes.size(), 2u);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(placement->lanes[i].share, report->placement.lanes[i].share);
  const auto again = report_on(world.shape, world.input, world.request, *placement);
  ASSERT_TRUE(again.ok()) << again.error().message();
  EXPECT_DOUBLE_EQ(again->predicted.tokens_per_s, report->predicted.tokens_per_s);
  EXPECT_NE(refusal(R"({"share": 0.5, )" + kOnGpu + "}, {" + kOnCpu + "}").find("a share of 0"), std::string::npos);
  EXPECT_NE(refusal(R"({"share": 1.5, )" + kOnGpu + "}").find("share"), std::string::npos);
  EXPECT_EQ(refusal(R"({"share": 0.5, )" + kOnGpu + R"(}, {"share": 0.5, )" + kOnCpu + "}"), "");
}

// Long prompts, few tokens: an NPU computes prompts, the processor keeps their KV and generates.
struct NpuWorld {
  ModelShape shape =
      make_shape({.layers = 16, .hidden = 2048, .heads = 16, .kv_heads = 4, .head_dim = 128, .ffn = 8192});
  PlanInput input;
  PlanRequest request;
  explicit NpuWorld(const Speed& speed = {.gb_per_s = 60, .gflops = 8000, .overhead_ns = 200'000}) {
    input.devices = {make_device("CPU:0", "cpu", {.gb_per_s = 80, .gflops = 1000}, shape),
                     testing::with_fixed_rows(make_device("NPU:0", "npu", speed, shape), speed, shape)};
    input.devices[0].chunk_context_ns = input.devices[0].context.values[0] / 32;
    request.concurrency = 16, request.prompt_len = 2048, request.output_len = 128;
  }
};

TEST(Roles, AnNpuComputesPrompts_AndTheProcessorGenerates) {
  const NpuWorld world;
  const auto report = plan(world.shape, world.input, world.request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  ASSERT_EQ(report->placement.lanes.size(), 2u) << plan_text(*report, world.shape);
  const Lane &prompts = report->placement.lanes[0], &tokens = report->placement.lanes[1];
  EXPECT_EQ(prompts.pool, tokens.pool);
  EXPECT_EQ(prompts.kv_blocks, tokens.kv_blocks);
  EXPECT_TRUE(prompts.prefills && !prompts.decodes && tokens.decodes);
  EXPECT_EQ(prompts.stages[0].shards[0].device, "NPU:0");
  EXPECT_EQ(tokens.stages[0].shards[0].device, "CPU:0");
  Predictor predictor(world.shape, world.input, world.request);
  EXPECT_LE(report->predicted.tokens_per_s, tokens_per_s_bound(&predictor, 0, true));
  EXPECT_EQ(report->kv_capacity_tokens, report->lanes[0].kv_tokens);
  // What is shown of a lane is of the steps that it runs.
  EXPECT_LE(report->lanes[1].stages[0].step_ns, 1e6 * report->predicted.tpot_ms);
  EXPECT_GT(report->lanes[0].stages[0].step_ns, report->lanes[1].stages[0].step_ns);
  // Weights that both lanes have are there once.
  EXPECT_EQ(report->devices[0].device, "CPU:0");
  EXPECT_EQ(report->devices[0].weight_bytes, tokens.stages[0].shards[0].weight_bytes);
}

// An NPU with a faster memory than the processor's decodes, too, unless each program costs it 1.4 ms.
TEST(Roles, ADearDispatch_StaysOffTheTokens) {
  for (const double dispatch_ns : {0.0, 1'400'000.0}) {
    NpuWorld world({.gb_per_s = 800, .gflops = 8000, .overhead_ns = 5000 + dispatch_ns});
    world.request.concurrency = 4, world.request.prompt_len = 64, world.request.output_len = 512;
    const auto report = plan(world.shape, world.input, world.request);
    ASSERT_TRUE(report.ok()) << report.error().message();
    bool decodes = false;
    for (const Lane& lane : report->placement.lanes) {
      for (const Shard& shard : lane.stages[0].shards) decodes = decodes || (lane.decodes && shard.device == "NPU:0");
    }
    EXPECT_EQ(decodes, dispatch_ns == 0) << plan_text(*report, world.shape);
  }
}

// Greedy by the decoding device's time is the linear program's optimum: no other order of filling gives more.
TEST(Roles, SharePrompts_IsTheBestOfAllOrders) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 300; ++round) {
    const size_t lanes = 1 + random() % 4;
    std::vector<PrefillCost> costs;
    for (size_t i = 0; i < lanes; ++i)
      costs.push_back({static_cast<double>(random() % 50), static_cast<double>(1 + random() % 20)});
    const double decode = static_cast<double>(random() % 30);
    const std::vector<double> rates = share_prompts(costs, decode);
    double taken = 0;
    for (size_t i = 0; i < lanes; ++i) {
      EXPECT_LE(rates[i] * costs[i].own_ns, 1 + 1e-9);
      taken += rates[i] * (costs[i].decoder_ns + decode);
    }
    EXPECT_LE(taken, 1 + 1e-9);
    std::vector<size_t> order(lanes);
    std::iota(order.begin(), order.end(), size_t{0});
    double best = 0;
    do {
      double left = 1, all = 0;
      for (const size_t i : order) {
        double rate = left / (costs[i].decoder_ns + decode);
        if (costs[i].own_ns > 0) rate = std::min(rate, 1 / costs[i].own_ns);
        all += rate;
        left = std::max(0.0, left - rate * (costs[i].decoder_ns + decode));
      }
      best = std::max(best, all);
    } while (std::next_permutation(order.begin(), order.end()));
    EXPECT_NEAR(std::accumulate(rates.begin(), rates.end(), 0.0), best, 1e-9 * best);
  }
}

}  // namespace
}  // namespace motley
