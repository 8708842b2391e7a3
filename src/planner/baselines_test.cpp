// What a plan is compared with: who takes part, what each has, who is refused and why.
#include "planner/baselines.hpp"

#include <gtest/gtest.h>

#include "planner/planner_test_fleet.hpp"

namespace motley {
namespace {

using testing::make_device;
using testing::make_shape;
using testing::Speed;

struct World {
  ModelShape shape = make_shape({.layers = 8, .hidden = 1024, .heads = 16, .kv_heads = 4, .ffn = 4096});
  PlanInput input;
  PlanRequest request;

  void add(const std::string& name, const Speed& speed) {
    input.devices.push_back(make_device(name, "gpu", speed, shape));
  }
  std::vector<Baseline> all() const {
    auto made = baselines(shape, input, request);
    EXPECT_TRUE(made.ok()) << made.error().message();
    return made.ok() ? *std::move(made) : std::vector<Baseline>();
  }
  Baseline of(BaselineKind kind, size_t which = 0) const {
    for (Baseline& each : all()) {
      if (each.kind == kind && which-- == 0) return each;
    }
    ADD_FAILURE() << "no " << baseline_name(kind);
    return {};
  }
};

const Stage& only_stage(const Baseline& baseline) { return baseline.engines.at(0).placement.lanes.at(0).stages.at(0); }

int64_t count(const std::vector<UnitRange>& ranges) {
  int64_t sum = 0;
  for (const UnitRange& range : ranges) sum += range.end - range.begin;
  return sum;
}

std::vector<uint32_t> layers_of(const Baseline& baseline) {
  std::vector<uint32_t> layers;
  for (const Stage& stage : baseline.engines.at(0).placement.lanes.at(0).stages)
    layers.push_back(stage.layer_end - stage.layer_begin);
  return layers;
}

constexpr Speed kFast = {.gb_per_s = 400, .gflops = 8000, .gib = 3};
constexpr Speed kSlow = {.gb_per_s = 40, .gflops = 800, .gib = 1};

TEST(Baselines, ThereIsOneOfEachKind_AndOneAloneForEachDevice) {
  World world;
  world.add("GPU:0", kFast);
  world.add("GPU:1", kSlow);
  std::vector<std::string> kinds;
  for (const Baseline& each : world.all()) {
    kinds.emplace_back(baseline_name(each.kind));
    EXPECT_FALSE(each.engines.empty()) << each.name << ": " << each.note;
    EXPECT_GT(each.tokens_per_s(), 0) << each.name;
  }
  EXPECT_EQ(kinds, (std::vector<std::string>{"alone", "alone", "even_tensor_parallel", "even_pipeline", "memory_ratio",
                                             "homogeneous", "replicas"}));
}

TEST(Baselines, EvenTensorParallel_IsEvenWhateverTheSpeeds) {
  World world;
  world.add("GPU:0", kFast);
  world.add("GPU:1", kSlow);
  const Baseline even = world.of(BaselineKind::kEvenTensorParallel);
  ASSERT_EQ(even.engines.size(), 1u) << even.note;
  ASSERT_EQ(only_stage(even).shards.size(), 2u);
  for (const Shard& shard : only_stage(even).shards) {
    EXPECT_EQ(count(shard.kv_heads), 2);
    EXPECT_EQ(count(shard.ffn_columns), 2048);
    EXPECT_EQ(count(shard.vocab_rows), 16000);
  }
}

TEST(Baselines, EvenTensorParallel_MoreDevicesThanKvHeads_CopiesTheKv) {
  World world;
  for (const char* name : {"GPU:0", "GPU:1", "GPU:2", "GPU:3", "GPU:4"}) world.add(name, kFast);
  const Baseline even = world.of(BaselineKind::kEvenTensorParallel);
  ASSERT_EQ(even.engines.size(), 1u) << even.note;
  int64_t queries = 0;
  for (const Shard& shard : only_stage(even).shards) {
    queries += count(shard.query_heads);
    EXPECT_GE(count(shard.query_heads), 3);
    EXPECT_LE(count(shard.query_heads), 4);
  }
  EXPECT_EQ(queries, 16);
}

TEST(Baselines, EvenTensorParallel_MoreDevicesThanHeads_IsRefused) {
  World world;
  world.shape = make_shape({.layers = 8, .hidden = 1024, .heads = 2, .kv_heads = 2, .ffn = 4096});
  for (const char* name : {"GPU:0", "GPU:1", "GPU:2"}) world.add(name, kFast);
  const Baseline even = world.of(BaselineKind::kEvenTensorParallel);
  EXPECT_TRUE(even.engines.empty());
  EXPECT_NE(even.note.find("2 heads are fewer than 3 devices"), std::string::npos) << even.note;
  EXPECT_FALSE(world.of(BaselineKind::kEvenPipeline).engines.empty());
}

TEST(Baselines, LayersByMemory_FollowTheMemory_AndWhoHasTooLittleIsNamed) {
  World world;
  world.add("GPU:0", kFast);
  world.add("GPU:1", kSlow);
  EXPECT_EQ(layers_of(world.of(BaselineKind::kEvenPipeline)), (std::vector<uint32_t>{4, 4}));
  EXPECT_EQ(layers_of(world.of(BaselineKind::kMemoryRatio)), (std::vector<uint32_t>{6, 2}));
  world.input.memory_caps["GPU:1"] = 1 << 20;
  const Baseline capped = world.of(BaselineKind::kMemoryRatio);
  EXPECT_EQ(layers_of(capped), (std::vector<uint32_t>{8}));
  EXPECT_NE(capped.note.find("GPU:1 is left out"), std::string::npos) << capped.note;
}

TEST(Baselines, SharedMemory_CountsOnce) {
  World world;
  for (const char* name : {"GPU:0", "GPU:1", "GPU:2"}) world.add(name, kFast);
  for (const size_t d : {0u, 1u}) world.input.devices[d].memory_group = "host";
  EXPECT_EQ(layers_of(world.of(BaselineKind::kMemoryRatio)), (std::vector<uint32_t>{2, 2, 4}));
}

TEST(Baselines, WhatDoesNotFit_SaysWhatIsMissing) {
  World world;
  world.add("GPU:0", kFast);
  world.add("GPU:1", {.gb_per_s = 40, .gflops = 800, .gib = 0.05});
  const Baseline alone = world.of(BaselineKind::kAlone, 1);
  EXPECT_TRUE(alone.engines.empty());
  EXPECT_NE(alone.note.find("MiB more would be needed on GPU:1"), std::string::npos) << alone.note;
  const Baseline replicas = world.of(BaselineKind::kReplicas);
  EXPECT_EQ(replicas.engines.size(), 1u);
  EXPECT_NE(replicas.note.find("GPU:1 is left out"), std::string::npos) << replicas.note;
}

TEST(Baselines, BestOfOneType_TakesAllOfTheBetterType) {
  World world;
  world.add("GPU:0", kFast);
  world.add("GPU:1", kFast);
  world.add("GPU:2", kSlow);
  world.request.concurrency = 32;
  const Baseline best = world.of(BaselineKind::kHomogeneous);
  ASSERT_EQ(best.engines.size(), 1u);
  for (const DeviceShare& share : best.engines[0].devices) EXPECT_NE(share.device, "GPU:2");
  EXPECT_EQ(best.engines[0].devices.size(), 2u);
  EXPECT_GT(best.tokens_per_s(), world.of(BaselineKind::kAlone).tokens_per_s());
}

TEST(Baselines, Replicas_HaveTheirPartOfTheRequests) {
  World world;
  world.add("GPU:0", kFast);
  world.add("GPU:1", {.gb_per_s = 40, .gflops = 800, .gib = 3});
  const Baseline replicas = world.of(BaselineKind::kReplicas);
  ASSERT_EQ(replicas.engines.size(), 2u) << replicas.note;
  EXPECT_GT(replicas.engines[0].predicted.concurrency, 3 * replicas.engines[1].predicted.concurrency);
  EXPECT_EQ(replicas.engines[0].predicted.concurrency + replicas.engines[1].predicted.concurrency,
            world.request.concurrency);
}

TEST(Baselines, ReplicasOfOneMemory_ShareItAndItsBus) {
  World world;
  world.add("GPU:0", kFast);
  world.add("GPU:1", kFast);
  const double apart = world.of(BaselineKind::kReplicas).tokens_per_s();
  for (DeviceProfile& device : world.input.devices) device.memory_group = "host", device.together = {{1}, {2}};
  EXPECT_NEAR(world.of(BaselineKind::kReplicas).tokens_per_s(), apart / 2, 0.01 * apart);
  const uint64_t once = world.of(BaselineKind::kAlone).engines.at(0).devices[0].weight_bytes;
  for (DeviceProfile& device : world.input.devices) device.memory_total = device.memory_free = once * 3 / 2;
  EXPECT_TRUE(world.of(BaselineKind::kReplicas).engines.empty());
}

TEST(Baselines, ADeviceThatCannotAttend_TakesNoPart) {
  World world;
  world.add("GPU:0", kFast);
  world.add("NPU:0", kFast);
  DeviceProfile& npu = world.input.devices[1];
  npu.attends = npu.holds_vocabulary = false;
  npu.head = npu.embed = {};
  EXPECT_EQ(world.of(BaselineKind::kAlone, 1).note, "it cannot attend");
  for (const BaselineKind kind : {BaselineKind::kEvenTensorParallel, BaselineKind::kEvenPipeline,
                                  BaselineKind::kMemoryRatio, BaselineKind::kReplicas}) {
    const Baseline each = world.of(kind);
    EXPECT_NE(each.note.find("NPU:0 is left out: it cannot attend"), std::string::npos) << each.note;
    for (const PlanReport& engine : each.engines) EXPECT_EQ(engine.devices.size(), 1u);
  }
}

TEST(Baselines, ThePlanIsPredictedNoWorseThanAnyOfOneEngine) {
  std::mt19937_64 random(11);
  for (int turn = 0; turn < 40; ++turn) {
    World world;
    world.input = testing::random_fleet(random, world.shape, 3);
    const auto best = plan(world.shape, world.input, world.request);
    if (!best.ok()) continue;
    for (const Baseline& each : world.all()) {
      if (each.engines.size() != 1) continue;
      EXPECT_LE(each.tokens_per_s(), best->predicted.tokens_per_s * 1.0101) << "turn " << turn << ", " << each.name;
    }
  }
}

TEST(Baselines, InputThatContradictsItself_IsRefused) {
  World world;
  world.add("GPU:0", kFast);
  world.request.concurrency = 0;
  EXPECT_EQ(baselines(world.shape, world.input, world.request).error().code(), MOTLEY_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace motley
