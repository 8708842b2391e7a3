#include "planner/plan_json.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "planner/plan_picture.hpp"
#include "planner/planner_test_fleet.hpp"

namespace motley {
namespace {

using testing::make_device;
using testing::make_shape;

const PlanIdentity kIdentity = {"sha256:abc", "machine-1"};

struct World {
  ModelShape shape =
      make_shape({.layers = 4, .hidden = 256, .heads = 8, .kv_heads = 4, .head_dim = 32, .ffn = 256, .vocab = 256});
  PlanInput input;
  World() {
    for (const char* name : {"GPU:0", "GPU:1", "CPU:0"}) input.devices.push_back(make_device(name, "gpu", {}, shape));
  }
  Result<Placement> read(const std::string& text) const { return read_plan(text, shape, input, {}, kIdentity); }
  std::string refusal(const std::string& text) const {
    const Status status = read(text).error();
    EXPECT_EQ(status.code(), MOTLEY_INVALID_ARGUMENT) << text;
    EXPECT_EQ(status.message().find('\n'), std::string::npos);
    return status.message();
  }
};

TEST(PlanJson, EveryKindOfPlan_ComesBackEqual) {
  const World world;
  for (const auto& [tensor, pipeline] : {std::pair{2u, 1u}, {1u, 3u}, {3u, 1u}, {1u, 1u}}) {
    PlanRequest request;
    request.tensor_parallel_size = tensor, request.pipeline_parallel_size = pipeline;
    const auto report = plan(world.shape, world.input, request);
    ASSERT_TRUE(report.ok()) << report.error().message();
    const std::string text = to_json(*report, world.shape, kIdentity);
    const auto placement = world.read(text);
    ASSERT_TRUE(placement.ok()) << placement.error().message() << text;
    PlanReport again = *report;
    again.placement = *placement;
    EXPECT_EQ(to_json(again, world.shape, kIdentity), text);
    EXPECT_EQ(placement->lanes[0].kv_blocks, report->placement.lanes[0].kv_blocks);
    EXPECT_EQ(placement->lanes[0].micro_batches, report->placement.lanes[0].micro_batches);
    const auto json = nlohmann::json::parse(text);
    for (const char* key : {"model", "machine", "stages", "predicted", "bound_tokens_per_s", "gap",
                            "kv_capacity_tokens", "left_out", "alternatives"}) {
      EXPECT_TRUE(json.contains(key)) << key;
    }
    EXPECT_EQ(json.contains("micro_batches"), report->placement.lanes[0].stages.size() > 1);
    EXPECT_EQ(json.size(), 9u + json.contains("micro_batches") + json.contains("chunk_rows"));
  }
}

// What is made of the file runs as the plan that was printed.
TEST(PlanJson, MicroBatchesAndCapacity_AreThoseOfTheFile) {
  const World world;
  const auto report_of = [&](const std::string& more) {
    const auto placement = world.read(R"({"stages": [{"layers": [0, 1], "shards": [{"device": "CPU:0"}]},
      {"layers": [1, 3], "shards": [{"device": "GPU:1"}]}, {"layers": [3, 4], "shards": [{"device": "GPU:0"}]}])" +
                                      more + "}");
    EXPECT_TRUE(placement.ok()) << placement.error().message();
    const auto report = report_on(world.shape, world.input, {}, *placement);
    EXPECT_TRUE(report.ok()) << report.error().message();
    return *report;
  };
  const PlanReport free = report_of("");
  const uint32_t chosen = free.placement.lanes[0].micro_batches;
  ASSERT_GT(chosen, 0u);
  for (const uint32_t given : {1u, 2u, 5u}) {
    const PlanReport report = report_of(fmt::format(R"(, "micro_batches": {}, "kv_capacity_tokens": 3200)", given));
    EXPECT_EQ(report.placement.lanes[0].micro_batches, given);
    EXPECT_EQ(report.placement.lanes[0].kv_blocks, 200u);
    EXPECT_EQ(report.kv_capacity_tokens, 3200u);
    EXPECT_LE(report.predicted.tokens_per_s, free.predicted.tokens_per_s);
    const std::string text = to_json(report, world.shape, kIdentity);
    const auto again = report_on(world.shape, world.input, {}, *world.read(text));
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(to_json(*again, world.shape, kIdentity), text);
  }
  EXPECT_GE(report_of(R"(, "kv_capacity_tokens": 16)").kv_capacity_tokens, least_kv_tokens(world.shape, {}));
}

// The file's routes count, not the measured ones.
TEST(PlanJson, Routes_ComeBackEqualAndAreSharedMemoryWithoutThem) {
  World world;
  world.input.links = {{"GPU:1", "GPU:0", 1000, 0.1, Route::kGloo}};
  const std::string stages = R"({"stages": [{"layers": [0, 2], "shards": [{"device": "GPU:0"}]},
    {"layers": [2, 4], "shards": [{"device": "GPU:1"}]}])";
  const auto placement = world.read(stages + R"(, "routes": [{"a": "gpu:1", "b": "GPU:0", "route": "gloo"}]})");
  ASSERT_TRUE(placement.ok()) << placement.error().message();
  EXPECT_EQ(placement->lanes[0].routes, (std::vector<PairRoute>{{"GPU:1", "GPU:0", Route::kGloo}}));
  const auto report = report_on(world.shape, world.input, {}, *placement);
  ASSERT_TRUE(report.ok()) << report.error().message();
  const std::string text = to_json(*report, world.shape, kIdentity);
  EXPECT_EQ(world.read(text)->lanes[0].routes, placement->lanes[0].routes) << text;
  for (const char* none : {"}", R"(, "routes": []})"}) {
    const auto plain = world.read(stages + none);
    ASSERT_TRUE(plain.ok()) << plain.error().message();
    EXPECT_TRUE(report_on(world.shape, world.input, {}, *plain)->placement.lanes[0].routes.empty());
  }
}

TEST(PlanJson, BadRoutes_AreRefusedWithTheKey) {
  const World world;
  const auto expect = [&](const std::string& routes, const char* part) {
    const std::string refused =
        world.refusal(R"({"stages": [{"layers": [0, 4], "shards": [{"device": "GPU:0"}]}], "routes": )" + routes + "}");
    EXPECT_NE(refused.find(part), std::string::npos) << refused;
  };
  expect(R"({"a": "GPU:0"})", "routes is an object, not a list");
  expect(R"([{"a": "GPU:0", "b": "GPU:9", "route": "gloo"}])", "routes[0].b is 'GPU:9', which is not listed");
  expect(R"([{"b": "GPU:0"}])", "routes[0].a is missing");
  expect(R"([{"a": "GPU:0", "b": "gpu:0"}])", "routes[0].b is the same device");
  expect(R"([{"a": "GPU:0", "b": "GPU:1", "route": "tcp"}])", "routes[0].route must be");
  expect(R"([{"a": "GPU:0", "b": "GPU:1", "over": "gloo"}])", "'over' is no field");
  expect(R"([{"a": "GPU:0", "b": "GPU:1"}, {"a": "GPU:1", "b": "GPU:0"}])", "routes[1] is of 'GPU:1' and 'GPU:0'");
}

TEST(PlanJson, ReplicatedKvHeads_ComeBackEqual) {
  World world;
  world.shape =
      make_shape({.layers = 2, .hidden = 64, .heads = 4, .kv_heads = 1, .head_dim = 32, .ffn = 128, .vocab = 64});
  const auto placement = world.read(R"({"stages": [{"layers": [0, 2], "shards": [
    {"device": "gpu:1", "kv_heads": 1, "query_heads": 3, "ffn_columns": 64, "vocab_rows": 64},
    {"device": "CPU:0", "kv_heads": 1, "query_heads": 1, "ffn_columns": 64}]}]})");
  ASSERT_TRUE(placement.ok()) << placement.error().message();
  const std::vector<Shard>& shards = placement->lanes[0].stages[0].shards;
  EXPECT_EQ(shards[0].device, "GPU:1");
  EXPECT_EQ(shards[1].query_heads[0].begin, 3);
  EXPECT_EQ(shards[1].kv_heads[0].end, 1);
}

TEST(PlanJson, HandWritten_StagesAloneWillDo) {
  const World world;
  const auto placement = world.read(R"({"stages": [{"layers": [0, 1], "shards": [{"device": "CPU:0"}]},
                                                   {"layers": [1, 4], "shards": [{"device": "GPU:0"}]}]})");
  ASSERT_TRUE(placement.ok()) << placement.error().message();
  EXPECT_EQ(placement->lanes[0].stages[1].shards[0].ffn_columns[0].end, 256);
  EXPECT_GT(placement->lanes[0].stages[0].shards[0].weight_bytes, 0u);
}

// What a plan file says needs no figures: names of devices alone will do to check it.
TEST(PlanJson, WhatIsForcedBesideIt_HoldsInItOrIsRefused) {
  const World world;
  PlanInput named;
  for (const DeviceProfile& device : world.input.devices) named.devices.emplace_back().name = device.name;
  const std::string text = R"({"stages": [{"layers": [0, 1], "shards": [{"device": "CPU:0"}]},
                                          {"layers": [1, 4], "shards": [{"device": "GPU:0"}]}]})";
  struct Case {
    uint32_t tensor, pipeline;
    bool all;
    const char* says;  // "" = kept
  };
  for (const Case& c : {Case{1, 2, false, ""}, Case{0, 3, false, "2 stages, and --pipeline-parallel-size asks for 3"},
                        Case{2, 0, false, "stages[0] has 1 devices, and --tensor-parallel-size asks for 2"},
                        Case{0, 0, true, "leaves out GPU:1, and --use-all-devices"}}) {
    PlanRequest request;
    request.tensor_parallel_size = c.tensor, request.pipeline_parallel_size = c.pipeline;
    request.use_all_devices = c.all;
    const auto placement = read_plan(text, world.shape, named, request, kIdentity);
    EXPECT_EQ(placement.ok(), *c.says == '\0');
    EXPECT_NE(placement.error().message().find(c.says), std::string::npos) << placement.error().message();
  }
}

TEST(PlanJson, LimitsAskedFor_AreSaidToBeKeptOrNot) {
  const World world;
  for (const double ttft_ms : {0.0, 1e-6, 1e8}) {
    PlanRequest request;
    request.ttft_ms_max = ttft_ms;
    const auto report = plan(world.shape, world.input, request);
    ASSERT_TRUE(report.ok()) << report.error().message();
    const auto predicted = nlohmann::json::parse(to_json(*report, world.shape, kIdentity))["predicted"];
    EXPECT_EQ(predicted.contains("keeps_slo"), ttft_ms > 0);
    if (ttft_ms > 0) EXPECT_EQ(predicted["keeps_slo"], ttft_ms > 1);
    const std::string picture = plan_text(*report, world.shape);
    EXPECT_EQ(picture.find("slo        kept; TTFT") != std::string::npos, ttft_ms > 1);
    EXPECT_EQ(picture.find("slo        NOT KEPT; TTFT") != std::string::npos, ttft_ms > 0 && ttft_ms < 1);
    EXPECT_EQ(picture.find("slo ") != std::string::npos, ttft_ms > 0);
  }
}

// A forced size that the best plan has anyhow costs nothing, and nothing is said of it.
TEST(PlanPicture, Forced_IsToldWhereItCosts) {
  const World world;
  PlanRequest request;
  request.concurrency = 1;
  const auto free = plan(world.shape, world.input, request);
  ASSERT_TRUE(free.ok());
  ASSERT_EQ(free->placement.lanes.size(), 1u);
  request.pipeline_parallel_size = static_cast<uint32_t>(free->placement.lanes[0].stages.size());
  auto report = plan(world.shape, world.input, request);
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->forced_loss.loss, 0);
  EXPECT_EQ(plan_text(*report, world.shape).find("forced     loses"), std::string::npos);
  report->forced_loss.loss = 0.25;
  EXPECT_NE(plan_text(*report, world.shape).find("forced     loses 25.0 %"), std::string::npos);
}

TEST(PlanJson, WhatIsNoPlanOfThisModelAndMachine_IsRefusedInOneLine) {
  const World world;
  const auto expect = [&](const char* text, const char* part) {
    EXPECT_NE(world.refusal(text).find(part), std::string::npos) << world.refusal(text);
  };
  const std::string whole = R"({"layers": [0, 4], "shards": [{"device": "GPU:0"}]})";
  const auto stages = [&](const std::string& inner) { return "{\"stages\": [" + inner + "]}"; };
  expect("", "JSON");
  expect("[]", "the file is a list, not an object");
  expect("{}", "stages is missing");
  expect(R"({"stages": []})", "no stages");
  expect(stages(R"({"layers": [0, 4], "shards": [{"device": "GPU:9"}]})").c_str(), "'GPU:9', which is not listed");
  expect(stages(R"({"layers": [0, 3], "shards": [{"device": "GPU:0"}]})").c_str(), "end at layer 3");
  expect(stages(R"({"layers": [1, 4], "shards": [{"device": "GPU:0"}]})").c_str(), "each layer");
  expect(stages(whole + "," + whole).c_str(), "each layer");
  expect(stages(R"({"layers": [0, 5], "shards": [{"device": "GPU:0"}]})").c_str(), "within the model's 4");
  expect(stages(R"({"layers": [2, 2], "shards": [{"device": "GPU:0"}]})").c_str(), "first, end");
  expect(stages(R"({"layers": [0, 4], "shards": []})").c_str(), "empty");
  expect(
      stages(R"({"layers": [0, 4], "shards": [{"device": "GPU:0", "kv_heads": 4, "ffn_columns": 192, "vocab_rows": 256},
                    {"device": "GPU:0", "ffn_columns": 64}]})")
          .c_str(),
      "there twice");
  expect(
      stages(R"({"layers": [0, 4], "shards": [{"device": "GPU:0", "kv_heads": 4, "ffn_columns": 192, "vocab_rows": 256},
                    {"device": "GPU:1", "ffn_columns": 128}]})")
          .c_str(),
      "sum to 320");
  expect(
      stages(R"({"layers": [0, 4], "shards": [{"device": "GPU:0", "kv_heads": 3, "ffn_columns": 192, "vocab_rows": 256},
                    {"device": "GPU:1", "ffn_columns": 64}]})")
          .c_str(),
      "query heads");
  expect(
      stages(R"({"layers": [0, 4], "shards": [{"device": "GPU:0", "kv_heads": 4, "ffn_columns": 200, "vocab_rows": 256},
                    {"device": "GPU:1", "ffn_columns": 56}]})")
          .c_str(),
      "multiples of 64");
  expect(
      stages(R"({"layers": [0, 4], "shards": [{"device": "GPU:0", "kv_heads": 4, "query_heads": 8, "ffn_columns": 256,
                    "vocab_rows": 200}, {"device": "GPU:1", "query_heads": 0, "vocab_rows": 50}]})")
          .c_str(),
      "vocabulary");
  expect(stages(R"({"layers": [0, 4], "shards": [{"device": "GPU:0", "kv_heads": -1}]})").c_str(), "whole number");
  expect(stages(R"({"layers": [0, 4], "shards": [{"device": "GPU:0", "kv_heads": 1e3}]})").c_str(), "whole number");
  expect(stages(R"({"layers": [0, 4], "shards": [{"device": "GPU:0", "experts": [0]}]})").c_str(), "at most 0");
  expect(stages(R"({"layers": [0, 4], "shards": [{"device": 7}]})").c_str(), "not a text");
  expect(stages(R"({"layers": [0, 4], "shards": [{"device": "GPU:0"}], "kv_owners": ["GPU:1"]})").c_str(), "kv_owners");
  expect(stages(R"({"layers": "all", "shards": [{"device": "GPU:0"}]})").c_str(), "not a list");
  expect(stages(R"({"layers": [0, 4], "shard": []})").c_str(), "'shard' is no field");
  expect(R"({"machine": "other", "stages": [{"layers": [0, 4], "shards": [{"device": "GPU:0"}]}]})", "another machine");
  expect(R"({"model": {"name": "x", "digest": "sha256:other"}, "stages": []})", "another model");
  expect(R"({"micro_batches": 2, "stages": [{"layers": [0, 4], "shards": [{"device": "GPU:0"}]}]})", "a single stage");
  expect(R"({"micro_batches": 3, "stages": [{"layers": [0, 4], "shards": [{"device": "GPU:0", "partner": "CPU:0"}]}]})",
         "two where a partner attends");
  expect(R"({"micro_batches": 0, "stages": [{"layers": [0, 4], "shards": [{"device": "GPU:0"}]}]})", "1 to 65536");
  expect(R"({"kv_capacity_tokens": 1e99, "stages": []})", "kv_capacity_tokens");
  EXPECT_NE(world.refusal(std::string(kPlanFileBytesMax + 1, ' ')).find("at most"), std::string::npos);
}

TEST(PlanJson, CutOrChangedBytes_NeverCrash) {
  const World world;
  PlanRequest request;
  request.use_all_devices = true;
  const std::string text = to_json(*plan(world.shape, world.input, request), world.shape, kIdentity);
  size_t refused = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    refused += world.read(text.substr(0, i)).ok() ? 0 : 1;
    std::string changed = text;
    changed[i] = static_cast<char>("0]{\"-\xff"[i % 6]);
    (void)world.read(changed).ok();
  }
  EXPECT_GE(refused, text.size() - 1);
}

}  // namespace
}  // namespace motley
