// One model over several devices: every way of cutting it gives what one device gives.
#include "model/placement_cases.hpp"

namespace motley {
namespace {

using namespace testing;  // NOLINT: all of what it shares

// Plain, with windows, with experts, with both.
const auto kSomeOfAllKinds = ::testing::Values(std::tuple{"llama", 3u}, std::tuple{"gemma3", 1u},
                                               std::tuple{"qwen3moe", 2u}, std::tuple{"gpt-oss", 2u});
std::string name_of(const ::testing::TestParamInfo<std::tuple<const char*, uint32_t>>& info) {
  std::string name = std::get<0>(info.param);
  std::erase(name, '-');
  return name;
}

class Placements : public ::testing::TestWithParam<std::tuple<const char*, uint32_t>> {};

TEST_P(Placements, EveryCut_SaysWhatOneDeviceSays) {
  const auto [architecture, kv_heads] = GetParam();
  const RandomModel random(spec_of(architecture, kv_heads));
  const Model& model = random.model();
  const auto want = run(model, place(model, {"whole", {{1, {1}, {1}, {1}, {1}}}}), "REF:0");
  for (const PlacementCase& c : cases()) {
    SCOPED_TRACE(c.name);
    expect_same(want, run(model, place(model, c), "REF:0"));
  }
}

// Steps of 11 rows and of fewer run in programs of 16, what is left of a bucket is nobody's: also of models with
// experts and with windows.
class PlacementBuckets : public ::testing::TestWithParam<std::tuple<const char*, uint32_t>> {};
INSTANTIATE_TEST_SUITE_P(All, PlacementBuckets, kSomeOfAllKinds, name_of);

TEST_P(PlacementBuckets, CompiledForRowCounts_SayWhatAnyRowsSay) {
  const RandomModel random(spec_of(std::get<0>(GetParam()), std::get<1>(GetParam())));
  for (const PlacementCase& c : cases()) {
    SCOPED_TRACE(c.name);
    const Placement placement = place(random.model(), c);
    expect_same(run(random.model(), placement, "REF:0"), run(random.model(), placement, "REF:0", false), 0);
  }
}

// What a placement with sections may not be.
TEST(PlacementSections, ThatCannotBe_AreRefused) {
  const RandomModel random(spec_of("llama", 3));
  const std::vector<StageSpec> alone = {{1, {1}, {1}, {1}, {1}}},
                               attended = {{1, {1}, {1}, {1}, {1}, false, {kStranger}}};
  const Devices devices("REF:0", kDevices, true);
  const auto refusal = [&](const PlacementCase& c, std::vector<NamedDevice> named) {
    const auto made = RuntimeExecutor::create(random.model(), place(random.model(), c), named, {});
    CHECK(!made.ok(), "{}", c.name);
    return made.error();
  };
  const auto code = [&](const std::vector<StageSpec>& stages, const std::vector<KvSection>& sections) {
    return refusal({"", stages, 2, sections}, devices.named()).code();
  };
  EXPECT_EQ(code(alone, {{"D10", 0}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(alone, {{"D0", 1}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(alone, {{"D10", 1}, {"D10", 1}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(attended, {{"D9", 1}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(alone, {{"D99", 1}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(alone, {{"D9", 1u << 30}, {"D10", 1u << 30}}), MOTLEY_INVALID_ARGUMENT);
  for (const size_t without : {0, 10}) {
    std::vector<NamedDevice> named = devices.named();
    named[without].attends_partially = false;
    const Status why = refusal({"", alone, 2, {{"D10", 1}}}, named);
    EXPECT_EQ(why.code(), MOTLEY_UNIMPLEMENTED);
    EXPECT_NE(why.message().find(named[without].name), std::string::npos) << why.message();
  }
}

// What no block of a step lies with has nothing to do for it.
TEST(PlacementSections, WithNothingOfAStep_ArePassedOver) {
  const RandomModel random(spec_of("llama", 3));
  const auto programs = [&](uint32_t first_blocks) {
    const PlacementCase c = {"", {{1, {1}, {1}, {1}, {1}}}, first_blocks, {{"D10", kBlocks}}};
    const Devices devices("REF:0", kDevices, true);
    RuntimeOptions options;
    options.rows_max = 32, options.logit_rows_max = 4;
    auto executor = RuntimeExecutor::create(random.model(), place(random.model(), c), devices.named(), options);
    CHECK(executor.ok(), "{}", executor.error().message());
    Reader(random.model()).read(**executor);
    const auto reports = (*executor)->reports();
    const auto found = std::find_if(reports.begin(), reports.end(), [](const auto& r) { return r.device == "D10"; });
    return found->work.programs;
  };
  EXPECT_GT(programs(2), 0u);
  EXPECT_EQ(programs(kBlocks), 0u);
}

// Lanes of a stage each: D0 alone; D0 with D1 attending; D1 alone.
Placement lanes_of(const Model& model, const std::vector<std::pair<StageSpec, uint32_t>>& lanes) {
  Placement placement;
  for (const auto& [stage, first] : lanes) {
    Placement one = place(model, {"", {stage}});
    for (Shard& shard : one.lanes[0].stages[0].shards) {
      const auto moved = [&](const std::string& name) {
        return "D" + std::to_string(std::stoul(name.substr(1)) + first);
      };
      shard.device = moved(shard.device);
      if (!shard.partner.empty()) shard.partner = moved(shard.partner);
    }
    if (placement.lanes.empty()) {
      placement = std::move(one);
    } else {
      placement.lanes.push_back(std::move(one.lanes[0]));
    }
  }
  return placement;
}

const StageSpec kAlone = {1, {1}, {1}, {1}, {1}};
const StageSpec kAttended = {1, {1, 0}, {1, 0}, {0, 1}, {1, 0}, false, {1, 1}};
const StageSpec kAttending = {1, {0, 1}, {0, 1}, {1, 0}, {0, 1}, false, {0, 0}};  // the other way round

class PlacementLanes : public ::testing::TestWithParam<std::tuple<const char*, uint32_t>> {
 protected:
  const RandomModel random_{spec_of(std::get<0>(GetParam()), std::get<1>(GetParam()))};
  const Model& model_ = random_.model();
};
INSTANTIATE_TEST_SUITE_P(All, PlacementLanes, kSomeOfAllKinds, name_of);

std::array<std::vector<Drawn>, 2> run_lanes(const Model& model, const Placement& placement,
                                            const Reader::LaneOf& lane_of, uint64_t* weight_bytes) {
  const Devices devices("REF:0", kDevices, true);
  RuntimeOptions options;
  options.rows_max = 32;
  options.logit_rows_max = 4;
  auto executor = RuntimeExecutor::create(model, placement, devices.named(), options);
  CHECK(executor.ok(), "{}", executor.error().message());
  auto drawn = Reader(model, lane_of).read(**executor);
  *weight_bytes = 0;
  for (const DriverReport& report : (*executor)->reports()) *weight_bytes += report.weight_bytes;
  return drawn;
}

// A sequence on the device alone, the other with its KV on the partner, at the same time; the weights are there once.
TEST_P(PlacementLanes, KvOfTwoOwners_SaysWhatOneDeviceSays) {
  uint64_t alone_bytes = 0, bytes = 0;
  const auto want = run_lanes(
      model_, place(model_, {"whole", {kAlone}}), [](size_t, bool) { return 0u; }, &alone_bytes);
  Placement placement = lanes_of(model_, {{kAlone, 0}, {kAttended, 0}});
  placement.lanes[1].pool = 1;
  placement.lanes[1].kv_blocks = 2 * kBlocks;
  const auto got = run_lanes(
      model_, placement, [](size_t s, bool) { return static_cast<uint32_t>(s); }, &bytes);
  expect_same(want, got);
  EXPECT_LT(bytes, alone_bytes * 3 / 2);  // the partner has the vocabulary, too
}

// One device computes prompts, another attends for it and generates: the KV is there once.
TEST_P(PlacementLanes, Roles_ShareThePool) {
  uint64_t bytes = 0;
  const auto want = run_lanes(
      model_, place(model_, {"whole", {kAlone}}), [](size_t, bool) { return 0u; }, &bytes);
  Placement placement = lanes_of(model_, {{kAttended, 0}, {kAlone, 1}});
  placement.lanes[0].decodes = placement.lanes[1].prefills = false;
  const auto got = run_lanes(
      model_, placement, [](size_t, bool prompt) { return prompt ? 0u : 1u; }, &bytes);
  expect_same(want, got);
  placement.lanes[1].kv_blocks += 1;
  const Devices devices("REF:0", kDevices, true);
  const auto refused = RuntimeExecutor::create(model_, placement, devices.named(), {});
  EXPECT_EQ(refused.error().code(), MOTLEY_INVALID_ARGUMENT);
}

// Who computed prompts generates, and the other way round, in the middle of the texts: the KV moves to who generates
// now, and no layer's weights are packed again (embedding and head are, for who computes prompts next; they are with
// who attends for it, and no tied model has them as one).
TEST_P(PlacementLanes, RolesThatChangePlaces_PackNoLayerAgain) {
  const Devices devices("REF:0", kDevices, true);
  RuntimeOptions options;
  options.rows_max = 32;
  options.logit_rows_max = 4;
  options.holdings = std::make_shared<Holdings>(model_);
  const auto placed = [&](const StageSpec& prompts, uint32_t decodes) {
    Placement placement = lanes_of(model_, {{prompts, 0}, {kAlone, decodes}});
    placement.lanes[0].decodes = placement.lanes[1].prefills = false;
    return placement;
  };
  const Placement before = placed(kAttended, 1), after = placed(kAttending, 0);
  const auto packed = [&](const Placement& placement) {
    auto all = RuntimeExecutor::pack(model_, placement, devices.named(), options);
    CHECK(all.ok(), "{}", all.error().message());
    return std::set<std::shared_ptr<const PackedWeight>>(all->begin(), all->end());
  };
  const auto there = packed(before), then = packed(after);
  uint64_t anew = 0, all = 0, ends = 0;  // bytes
  for (const auto& each : then) all += each->info.bytes, anew += there.contains(each) ? 0 : each->info.bytes;
  for (const GraphWeight& each : model_.graph().weights)
    if (each.name.find("blk.") == std::string::npos) ends += sizeof(float) * each.rows * each.cols;
  EXPECT_LE(anew, 2 * ends + all / 50);  // cut in two ways; and some vectors
  EXPECT_LT(2 * ends, all / 4);
  const auto made = [&](const Placement& placement) {
    auto executor = RuntimeExecutor::create(model_, placement, devices.named(), options);
    CHECK(executor.ok(), "{}", executor.error().message());
    return *std::move(executor);
  };
  const auto first = made(before), second = made(after);
  uint64_t bytes = 0;
  const auto want = run_lanes(
      model_, place(model_, {"whole", {kAlone}}), [](size_t, bool) { return 0u; }, &bytes);
  const auto by_role = [](size_t, bool prompt) { return prompt ? 0u : 1u; };
  expect_same(want, Reader(model_, by_role).read(*first, *second, 4, [&] {
    std::vector<KvBlock> blocks;
    std::vector<KvMove> moves;
    for (BlockId block = 0; block < static_cast<BlockId>(kBlocks); ++block)
      blocks.push_back({0, block}), moves.push_back({{0, block}, {0, block}});
    auto saved = first->save_kv(blocks);
    ASSERT_TRUE(saved.ok()) << saved.error().message();
    ASSERT_TRUE(second->load_kv(std::make_shared<const KvContents>(*std::move(saved)), moves).ok());
  }));
}

// Columns move, heads stay: their KV is the same memory, with its contents. Heads that move have other memory, and so
// has a pool that was made anew.
TEST(PlacementPools, OfTheSameHeads_AreTheSameMemory) {
  const RandomModel random(spec_of("llama", 3));
  const Model& model = random.model();
  const Devices devices("REF:0", kDevices, true);
  RuntimeOptions options;
  options.rows_max = 32;
  options.logit_rows_max = 4;
  options.holdings = std::make_shared<Holdings>(model);
  const auto made = [&](const StageSpec& stage) {
    auto executor = RuntimeExecutor::create(model, place(model, {"", {stage}}), devices.named(), options);
    CHECK(executor.ok(), "{}", executor.error().message());
    return *std::move(executor);
  };
  const auto memory = [](const RuntimeExecutor& executor) { return executor.describe().pools[0].memory; };
  const StageSpec even = {1, {2, 1}, {1, 1}, {1, 0}, {1, 1}};
  StageSpec columns = even, heads = even;
  columns.ffn = {3, 1};
  heads.heads = {1, 2};
  auto first = made(even);
  const std::vector<uint64_t> known = memory(*first);
  EXPECT_EQ(known.size(), 2u);
  EXPECT_NE(memory(*made(heads)), known);
  auto second = made(columns);
  EXPECT_EQ(memory(*second), known);
  const auto want = Reader(model).read(*first);
  first.reset();
  expect_same(want, Reader(model).read(*second));
  second.reset();
  EXPECT_NE(memory(*made(even)), known);
}

// All pairs over Gloo, or only those of different stages, or only those of one.
enum class OverGloo { kAll, kHops, kStages };

Placement over_gloo(Placement placement, OverGloo which) {
  Lane& lane = placement.lanes[0];
  std::vector<std::pair<size_t, const Shard*>> shards;  // with their stage
  for (size_t s = 0; s < lane.stages.size(); ++s)
    for (const Shard& shard : lane.stages[s].shards) shards.emplace_back(s, &shard);
  for (size_t i = 0; i < shards.size(); ++i) {
    for (size_t j = i + 1; j < shards.size(); ++j) {
      const bool same = shards[i].first == shards[j].first;
      if (which == (same ? OverGloo::kHops : OverGloo::kStages)) continue;
      lane.routes.push_back({shards[i].second->device, shards[j].second->device, Route::kGloo});
    }
  }
  return placement;
}

// Sums have one order whatever they go over, so every bit is the same.
TEST(PlacementRoutes, OverGloo_SaysWhatSharedMemorySays) {
  const RandomModel random(spec_of("llama", 3));
  const Model& model = random.model();
  for (const PlacementCase& c : cases()) {
    if (c.name != std::string_view("uneven_three") && c.name != std::string_view("wide_then_narrow") &&
        c.name != std::string_view("narrow_then_wide"))
      continue;
    const Placement placement = place(model, c);
    const auto want = run(model, placement, "REF:0");
    for (const OverGloo which : {OverGloo::kAll, OverGloo::kHops, OverGloo::kStages}) {
      SCOPED_TRACE(fmt::format("{} {}", c.name, static_cast<int>(which)));
      const Placement routed = over_gloo(placement, which);
      expect_same(want, run(model, routed, "REF:0"), 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Placements,
                         ::testing::Values(std::tuple{"llama", 3u}, std::tuple{"llama", 1u}, std::tuple{"qwen2", 2u},
                                           std::tuple{"qwen3", 2u}, std::tuple{"qwen3", 1u}, std::tuple{"phi3", 3u},
                                           std::tuple{"gemma2", 2u}, std::tuple{"gemma3", 2u}, std::tuple{"gemma3", 1u},
                                           std::tuple{"mistral3", 2u}, std::tuple{"qwen2moe", 2u},
                                           std::tuple{"qwen3moe", 2u}, std::tuple{"gpt-oss", 2u}),
                         [](const auto& info) {
                           std::string name = std::get<0>(info.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name + "_" + std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace motley
