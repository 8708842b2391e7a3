// Pools of several sections: when they are planned, and how they are written and read.
#include <gtest/gtest.h>

#include <algorithm>

#include "planner/bound.hpp"
#include "planner/plan_json.hpp"
#include "planner/plan_picture.hpp"
#include "planner/planner_test_fleet.hpp"
#include "planner/prediction.hpp"
#include "planner/search.hpp"

namespace motley {
namespace {

using testing::make_device;
using testing::make_shape;

constexpr double kGiB = 1 << 30;
const PlanIdentity kIdentity = {"sha256:abc", "machine-1"};

// A GPU with room for 16384 positions beside the weights, a slower one for as many, and a processor for twice as many.
// With one layer and one KV head the KV of a position lies with one device, whatever the plan; and it is most of the
// memory.
struct World {
  ModelShape shape;
  PlanInput input;
  PlanRequest request;

  explicit World(int64_t layers = 1, int64_t kv_heads = 1)
      : shape(make_shape({.layers = layers,
                          .hidden = 2048,
                          .heads = 2 * kv_heads,
                          .kv_heads = kv_heads,
                          .head_dim = 1024 / kv_heads,
                          .ffn = 1024,
                          .vocab = 256})) {
    const double weights = static_cast<double>(shape.weight_bytes()) / kGiB, kv = kv_gib(16384);
    const auto add = [&](const char* name, const char* kind, double gb_per_s, double gflops, double gib) {
      constexpr double kSteps = 0.04;
      input.devices.push_back(
          make_device(name, kind, {.gb_per_s = gb_per_s, .gflops = gflops, .gib = gib + kSteps}, shape));
      input.devices.back().own_memory = true;
    };
    add("GPU:0", "gpu", 1000, 200'000, weights + kv);
    add("GPU:1", "gpu", 500, 50'000, kv);
    add("CPU:0", "cpu", 100, 1000, 2 * kv);
    request.concurrency = 1, request.prompt_len = 4096, request.output_len = 512;
    request.step_bytes = 1 << 20;
  }
  double kv_gib(double tokens) const {
    return kv_head_bytes(shape, request) * static_cast<double>(shape.kv_heads) *
           static_cast<double>(shape.layers.size()) * tokens / kGiB;
  }
  Result<Placement> read(const std::string& text) const { return read_plan(text, shape, input, request, kIdentity); }
};

PlanReport planned(const World& world) {
  const auto report = plan(world.shape, world.input, world.request);
  CHECK(report.ok(), "{}", report.error().message());
  return *report;
}

TEST(Sections, ASequenceThatFitsIntoAPool_HasNoNeedOfThem) {
  World world;
  for (const uint32_t tokens : {0u, 12'000u}) {
    world.request.kv.max_model_len = tokens;
    const PlanReport report = planned(world);
    for (const Lane& lane : report.placement.lanes)
      EXPECT_TRUE(lane.sections.empty()) << plan_text(report, world.shape);
  }
}

// 40,000 positions fit nowhere in one piece.
TEST(Sections, ALongSequence_LiesWithAsManyAsItNeeds) {
  World world;
  for (const auto& [tokens, sections] : {std::pair{40'000u, 1u}, {60'000u, 2u}}) {
    world.request.kv.max_model_len = tokens;
    world.request.prompt_len = tokens - 1000;
    const PlanReport report = planned(world);
    ASSERT_EQ(report.placement.lanes.size(), 1u);
    const Lane& lane = report.placement.lanes[0];
    ASSERT_EQ(lane.sections.size(), sections) << plan_text(report, world.shape);
    EXPECT_EQ(lane.stages[0].shards[0].device, "GPU:0");
    EXPECT_GE(report.kv_capacity_tokens, tokens);
    EXPECT_EQ(report.kv_capacity_tokens, uint64_t{pool_blocks(lane)} * 16);
    EXPECT_EQ(report.kv_capacity_tokens, kv_tokens(report.placement));
    for (const DeviceShare& share : report.devices)
      EXPECT_LE(share.weight_bytes + share.step_bytes + share.kv_bytes, share.usable_bytes) << share.device;
    Predictor predictor(world.shape, world.input, world.request);
    EXPECT_LE(report.predicted.tokens_per_s, tokens_per_s_bound(&predictor, 0, true));
    const std::string text = plan_text(report, world.shape);
    for (const KvSection& section : lane.sections)
      EXPECT_NE(text.find(fmt::format("{} with {}", uint64_t{section.blocks} * 16, section.owner)), std::string::npos)
          << text;
  }
  world.request.kv.max_model_len = 120'000;
  EXPECT_EQ(plan(world.shape, world.input, world.request).error().code(), MOTLEY_RESOURCE_EXHAUSTED);
}

// Where heads or layers could be parted so that each device holds its part of the sequence, the faster plan is taken.
TEST(Sections, WhereOthersHoldTheSequence_AreTakenIfTheyAreFaster) {
  World world(16, 4);
  world.request.kv.max_model_len = 40'000;
  world.request.prompt_len = 39'000;
  const PlanReport report = planned(world);
  EXPECT_GE(report.kv_capacity_tokens, 40'000u);
  const LanePlan alone{{whole_stage(world.shape, 0, 0, world.shape.layers.size())}};
  Predictor predictor(world.shape, world.input, world.request);
  LanePlan in_sections = alone;
  in_sections.sections = {{2}};
  const double by_hand = evaluate_lanes(&predictor, {{in_sections}}).predicted.tokens_per_s;
  EXPECT_GE(report.predicted.tokens_per_s * 1.06, by_hand) << plan_text(report, world.shape);
}

TEST(Sections, WhoCannotAttendPartially_HasNone) {
  World world;
  world.request.kv.max_model_len = 60'000;
  world.request.prompt_len = 59'000;
  world.input.devices[2].attends_partially = false;
  const auto without = plan(world.shape, world.input, world.request);
  EXPECT_EQ(without.error().code(), MOTLEY_RESOURCE_EXHAUSTED);
  world.request.kv.max_model_len = 40'000;
  world.request.prompt_len = 39'000;
  const PlanReport report = planned(world);
  EXPECT_TRUE(std::none_of(report.placement.lanes[0].sections.begin(), report.placement.lanes[0].sections.end(),
                           [](const KvSection& section) { return section.owner == "CPU:0"; }));
}

// A step takes longer the more of what it sees lies with a slower owner, and he is busy for it.
TEST(Sections, WhatLiesElsewhere_TakesItsOwnersTime) {
  World world;
  const auto step = [&](double share, std::vector<double>* busy) {
    LanePlan lane{{whole_stage(world.shape, 0, 0, world.shape.layers.size())}, {{2, share}}};
    Predictor predictor(world.shape, world.input, world.request);
    const Prediction predicted = predictor.predict(lane, 1, 1);
    *busy = predictor.busy_ns(lane, predicted);
    return predicted.tpot_ms;
  };
  std::vector<double> none, half, all;
  const double none_ms = step(0, &none), half_ms = step(0.5, &half), all_ms = step(1, &all);
  EXPECT_LT(none_ms, half_ms);
  EXPECT_LT(half_ms, all_ms);
  EXPECT_LT(half[2], all[2]);
  EXPECT_LT(all[0], half[0]);
  EXPECT_EQ(none[1], 0);
}

TEST(Sections, PlanFile_ComesBackEqual) {
  World world;
  world.request.kv.max_model_len = world.request.prompt_len = 60'000;
  const PlanReport report = planned(world);
  const std::string text = to_json(report, world.shape, kIdentity);
  const auto placement = world.read(text);
  ASSERT_TRUE(placement.ok()) << placement.error().message() << text;
  EXPECT_EQ(placement->lanes[0].sections, report.placement.lanes[0].sections);
  EXPECT_EQ(placement->lanes[0].kv_blocks, report.placement.lanes[0].kv_blocks);
  const auto again = report_on(world.shape, world.input, world.request, *placement);
  ASSERT_TRUE(again.ok()) << again.error().message();
  EXPECT_EQ(again->placement.lanes[0].sections, report.placement.lanes[0].sections);
  EXPECT_EQ(again->kv_capacity_tokens, report.kv_capacity_tokens);
}

constexpr const char* kWhole = R"({"stages": [{"layers": [0, 1], "shards": [{"device": "GPU:0"}]}], )";

TEST(Sections, WrittenByHand_AreTakenAsTheyAre_OrAsTheyFit) {
  World world;
  const auto of = [&](const std::string& more) {
    const auto placement = world.read(kWhole + more + "}");
    CHECK(placement.ok(), "{}", placement.error().message());
    const auto report = report_on(world.shape, world.input, world.request, *placement);
    CHECK(report.ok(), "{}", report.error().message());
    return report->placement.lanes[0];
  };
  const Lane given = of(
      R"("kv_capacity_tokens": 8000, "sections": [{"owner": "cpu:0", "kv_capacity_tokens": 1600},
         {"owner": "GPU:1", "kv_capacity_tokens": 3200}])");
  EXPECT_EQ(given.kv_blocks, 200u);
  EXPECT_EQ(given.sections, (std::vector<KvSection>{{"CPU:0", 100}, {"GPU:1", 200}}));
  const Lane some = of(R"("sections": [{"owner": "CPU:0", "kv_capacity_tokens": 1600}, {"owner": "GPU:1"}])");
  EXPECT_EQ(some.sections[0].blocks, 100u);
  EXPECT_GT(some.kv_blocks, 0u);
  EXPECT_GT(some.sections[1].blocks, 0u);
}

TEST(Sections, PlanFilesThatAreWrong_AreRefusedWithTheKey) {
  World world;
  const auto expect = [&](const std::string& more, const char* part) {
    const Status refused = world.read(kWhole + more + "}").error();
    EXPECT_EQ(refused.code(), MOTLEY_INVALID_ARGUMENT);
    EXPECT_NE(refused.message().find(part), std::string::npos) << refused.message();
  };
  expect(R"("sections": {"owner": "CPU:0"})", "sections is an object, not a list");
  expect(R"("sections": [{"owner": "CPU:9"}])", "sections[0].owner is 'CPU:9', which is not listed");
  expect(R"("sections": [{"device": "CPU:0"}])", "'device' is no field");
  expect(R"("sections": [{}])", "sections[0].owner is missing");
  expect(R"("sections": [{"owner": "GPU:0"}])", "sections[0]: 'GPU:0' keeps other blocks of the pool already");
  expect(R"("sections": [{"owner": "CPU:0"}, {"owner": "CPU:0"}])", "sections[1]: 'CPU:0' keeps other blocks");
  expect(R"("sections": [{"owner": "CPU:0", "kv_capacity_tokens": 0}])", "is 0, less than a block of 16");
  expect(R"("kv_capacity_tokens": 320, "sections": [{"owner": "CPU:0"}])", "not that of each of the sections");
  expect(R"("kv_capacity_tokens": 320, "sections": [{"owner": "CPU:0", "kv_capacity_tokens": 320}])",
         "a block at least is left");
  std::string many = R"("sections": [)";
  for (size_t i = 0; i <= kSectionsMax; ++i) many += std::string(i > 0 ? "," : "") + R"({"owner": "CPU:0"})";
  expect(many + "]", "at most");
  world.input.devices[2].attends_partially = false;
  expect(R"("sections": [{"owner": "CPU:0"}])",
         "'CPU:0' cannot attend to a part of a sequence (with --deterministic none does); name another");
  world.input.devices[0].attends_partially = false;
  expect(R"("sections": [{"owner": "GPU:1"}])",
         "'GPU:0' cannot attend to a part of a sequence (with --deterministic none does), and the pool");
  EXPECT_NE(world.read(R"({"sections": [], "lanes": [{"stages": []}]})").error().message().find("in each of the lanes"),
            std::string::npos);
}

}  // namespace
}  // namespace motley
