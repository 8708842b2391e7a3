// The scheduler over several lanes and KV pools: who runs where.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "engine/bucket_rounding.hpp"
#include "engine/row_counts.hpp"
#include "engine/testing/scheduler_bench.hpp"

namespace motley {
namespace {

using ::testing::HasSubstr;
using testing::random_text;
using testing::SchedulerBench;
using testing::ScriptedOptions;

constexpr uint32_t kVocab = 1000;

LaneDescription lane_of(uint32_t pool, LaneRole role = LaneRole::kBoth) {
  LaneDescription lane;
  lane.pool = pool;
  lane.role = role;
  lane.rows_max = 128;
  return lane;
}

// Pools of blocks of four positions, with a lane each.
ScriptedOptions device_of(const std::vector<uint32_t>& blocks) {
  ScriptedOptions device;
  for (const uint32_t each : blocks) {
    device.lanes.push_back(lane_of(static_cast<uint32_t>(device.pools.size())));
    device.pools.push_back({.block_size = 4, .blocks = each});
  }
  return device;
}

// One pool, a lane that prefills and one that decodes.
ScriptedOptions device_with_roles(uint32_t blocks) {
  ScriptedOptions device = device_of({blocks});
  device.lanes = {lane_of(0, LaneRole::kPrefill), lane_of(0, LaneRole::kDecode)};
  return device;
}

// Plans what can be planned, and tells in which lane the request has rows under way.
std::optional<uint32_t> lane_in_which_runs(SchedulerBench& bench, RequestId id) {
  std::optional<uint32_t> lane;
  while (bench.plan())
    if (bench.rows_of(id) > 0) lane = bench.last_plan().lane;
  return lane;
}

// ---- how much of a prompt

// They may run on the same devices. A step takes 60 ms and 1 ms a row.
TEST(Lanes, PromptWhileAnotherPoolDecodes_GetsNoLongSteps) {
  ScriptedOptions device = device_of({4096, 4096});
  for (LaneDescription& lane : device.lanes) lane.rows_max = 1024;
  device.pools[0].share = device.pools[1].share = 0.5;
  device.positions_max = 17000;
  device.busy_ns = 60'000'000;
  device.busy_row_ns = 1'000'000;
  SchedulerBench bench(device, {.enable_prefix_caching = false});
  const RequestId shorter = bench.add(bench.request({1, 2, 3}, 1000));
  while (bench.stories()[shorter].tokens.empty()) {
    ASSERT_TRUE(bench.plan());
    ASSERT_TRUE(bench.result());
  }
  const RequestId longer = bench.add(bench.request(random_text(1, 16000, kVocab), 2));
  std::vector<uint32_t> rows;
  while (rows.size() < 12) {
    while (bench.plan())
      if (bench.rows_of(longer) > 0) rows.push_back(bench.rows_of(longer));
    ASSERT_TRUE(bench.result());
  }
  EXPECT_LE(*std::max_element(rows.begin(), rows.end()), 140u);
  bench.scheduler().end(shorter, FinishReason::kAborted);
  while (rows.size() < 24) {
    while (bench.plan())
      if (bench.rows_of(longer) > 0) rows.push_back(bench.rows_of(longer));
    ASSERT_TRUE(bench.result());
  }
  EXPECT_GT(rows.back(), 400u);
  bench.scheduler().end(longer, FinishReason::kAborted);
  ASSERT_TRUE(bench.finish(20));
  bench.expect_all_right();
}

TEST(Lanes, ChunkRows_BoundPromptsBesideRowsThatDecode) {
  ScriptedOptions device = device_of({64});
  device.lanes[0].chunk_rows = 8;
  SchedulerBench bench(device, {.max_num_batched_tokens = 64, .enable_prefix_caching = false});
  const RequestId first = bench.add(bench.request(random_text(1, 40, kVocab), 5));
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.rows_of(first), 40u);  // nobody decodes yet
  ASSERT_TRUE(bench.result());
  const RequestId second = bench.add(bench.request(random_text(2, 40, kVocab), 5));
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.rows_of(first), 1u);
  EXPECT_EQ(bench.rows_of(second), 8u);
}

// One of them at a time, so that steps are alike; as many more as there are prompts beyond the rows that decode.
TEST(Lanes, ChunkRows_OfPromptsThatBeganTogether_GoOneBehindTheOther) {
  for (const uint32_t prompts : {1u, 2u, 4u}) {
    ScriptedOptions device = device_of({64});
    device.lanes[0].chunk_rows = 8;
    SchedulerBench bench(device, {.max_num_batched_tokens = 64, .enable_prefix_caching = false});
    for (int i = 0; i < 2; ++i) bench.add(bench.request(random_text(1, 20, kVocab), 50));
    ASSERT_TRUE(bench.plan());
    ASSERT_TRUE(bench.result());
    for (uint32_t i = 0; i < prompts; ++i) bench.add(bench.request(random_text(2 + i, 40, kVocab), 5));
    ASSERT_TRUE(bench.plan());
    EXPECT_EQ(bench.last_plan().tokens.size(), 2 + (prompts == 4 ? 16u : 8u)) << prompts;
  }
}

// What a lane of prompts was planned for is neither left to its times nor grows with who waits; with nobody's prompts
// cut, it can only take them whole.
TEST(Lanes, ChunkRows_AreTheStepsOfALaneThatOnlyPrefills) {
  for (const bool cut : {true, false}) {
    ScriptedOptions device = device_with_roles(64);
    device.lanes[0].chunk_rows = 8;
    SchedulerBench bench(device, {.max_model_len = 64, .enable_prefix_caching = false, .enable_chunked_prefill = cut});
    const RequestId first = bench.add(bench.request(random_text(1, 40, kVocab), 5));
    bench.add(bench.request(random_text(2, 40, kVocab), 5));
    for (int step = 0; step < 3; ++step) {
      ASSERT_TRUE(bench.plan());
      EXPECT_EQ(bench.last_plan().tokens.size(), cut ? 8u : step == 0 ? 80u : 2u) << step;
      if (step == 0) EXPECT_EQ(bench.rows_of(first), cut ? 4u : 40u);
      ASSERT_TRUE(bench.result());
    }
  }
}

// Two prompts of two steps' worth: neither step takes both, so that a pipeline's stages all have work.
TEST(Lanes, Pipeline_PartsThePromptsThatWait) {
  for (const uint32_t steps : {1u, 2u}) {
    ScriptedOptions device = device_of({64});
    device.lanes[0].pipeline = steps;
    SchedulerBench bench(device, {.max_num_batched_tokens = 128, .enable_prefix_caching = false});
    const RequestId first = bench.add(bench.request(random_text(1, 40, kVocab), 5));
    const RequestId second = bench.add(bench.request(random_text(2, 40, kVocab), 5));
    ASSERT_TRUE(bench.plan());
    EXPECT_EQ(bench.rows_of(first), 40u);
    EXPECT_EQ(bench.rows_of(second), steps == 1 ? 40u : 0u);
    EXPECT_EQ(bench.plan(), steps == 2);
    if (steps == 2) EXPECT_EQ(bench.rows_of(second), 40u);
  }
}

// ---- which pool

TEST(Lanes, FullPool_SendsTheNextToTheLessPreferredOne) {
  SchedulerBench bench(device_of({8, 64}), {.enable_prefix_caching = false});
  const RequestId a = bench.add(bench.request(random_text(1, 20, kVocab), 5));
  EXPECT_EQ(lane_in_which_runs(bench, a), 0u);
  const RequestId b = bench.add(bench.request(random_text(2, 20, kVocab), 5));
  EXPECT_EQ(lane_in_which_runs(bench, b), 1u);  // three blocks are left in the first
  ASSERT_TRUE(bench.finish(100));
  const RequestId c = bench.add(bench.request(random_text(3, 20, kVocab), 5));
  EXPECT_EQ(lane_in_which_runs(bench, c), 0u);
  ASSERT_TRUE(bench.finish(100));
  bench.expect_all_right();
}

TEST(Lanes, BusyLane_IsNoReasonToTakeALessPreferredPool) {
  SchedulerBench bench(device_of({64, 64}), {.enable_prefix_caching = false});
  const RequestId a = bench.add(bench.request(random_text(1, 20, kVocab), 5));
  EXPECT_EQ(lane_in_which_runs(bench, a), 0u);
  const RequestId b = bench.add(bench.request(random_text(2, 20, kVocab), 5));
  EXPECT_FALSE(bench.plan()) << "it is for the first lane, whose next step comes soon";
  ASSERT_TRUE(bench.result());
  EXPECT_EQ(lane_in_which_runs(bench, b), 0u);
  ASSERT_TRUE(bench.finish(100));
  bench.expect_all_right();
}

// By pool, how many of the requests have run there.
std::vector<uint32_t> counts_by_pool(SchedulerBench& bench, const std::vector<RequestId>& ids, size_t pools) {
  std::vector<uint32_t> counts(pools, 0);
  for (const RequestId id : ids)
    for (const uint32_t pool : bench.stories()[id].pools) ++counts[pool];
  return counts;
}

TEST(Lanes, Shares_PartTheSequencesThatRun) {
  ScriptedOptions device = device_of({256, 256, 256});
  device.pools[0].share = 0.25, device.pools[1].share = 0.625, device.pools[2].share = 0.125;
  SchedulerBench bench(device, {.enable_prefix_caching = false});
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 16; ++i) ids.push_back(bench.add(bench.request(random_text(i, 6, kVocab), 5)));
  while (bench.plan()) {
  }
  EXPECT_EQ(bench.scheduler().running(), 16u);
  ASSERT_TRUE(bench.finish(100));
  EXPECT_EQ(counts_by_pool(bench, ids, 3), (std::vector<uint32_t>{4, 10, 2}));
  bench.expect_all_right();
  const RequestId alone = bench.add(bench.request(random_text(90, 20, kVocab), 5));
  EXPECT_EQ(lane_in_which_runs(bench, alone), 1u) << "who is alone runs where most do";
  ASSERT_TRUE(bench.finish(100));
}

// As many come and go as pass: the parts stay what they are.
TEST(Lanes, Shares_StayWhileRequestsComeAndGo) {
  ScriptedOptions device = device_of({512, 512});
  device.pools[0].share = 0.75, device.pools[1].share = 0.25;
  SchedulerBench bench(device, {.max_num_seqs = 16, .enable_prefix_caching = false});
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 200; ++i)
    ids.push_back(bench.add(bench.request(random_text(i, 4 + i % 7, kVocab), 5 + i % 5)));
  ASSERT_TRUE(bench.finish(2000));
  const std::vector<uint32_t> counts = counts_by_pool(bench, ids, 2);
  EXPECT_EQ(counts[0] + counts[1], 200u);
  EXPECT_NEAR(counts[0], 150, 15);
  bench.expect_all_right();
}

// The pool of most has room for two at a time: the others wait for it, and do not crowd the one of few.
TEST(Lanes, PoolWithoutRoom_IsWaitedFor) {
  ScriptedOptions device = device_of({16, 256});
  device.pools[0].share = 0.75, device.pools[1].share = 0.25;
  SchedulerBench bench(device, {.enable_prefix_caching = false});
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 16; ++i) ids.push_back(bench.add(bench.request(random_text(i, 20, kVocab), 8)));
  while (bench.plan()) {
  }
  EXPECT_EQ(bench.scheduler().running(), 2u + 4u) << "a quarter of all";
  ASSERT_TRUE(bench.finish(100));
  EXPECT_EQ(counts_by_pool(bench, ids, 2), (std::vector<uint32_t>{7, 9}));
  bench.expect_all_right();
}

// Its steps fail, each with its request: it would take its share of all of them. When it works again, it is found out.
TEST(Lanes, PoolWhoseStepsFail_IsPassedByUntilItWorksAgain) {
  for (const bool shares : {true, false}) {
    ScriptedOptions device = device_of({64, 64});
    if (shares) device.pools[0].share = 0.75, device.pools[1].share = 0.25;
    SchedulerBench bench(device, {.enable_prefix_caching = false});
    uint32_t text = 0, lost = 0;
    const auto one = [&](bool fails) {  // alone, from its beginning to its end
      const RequestId id = bench.add(bench.request(random_text(++text, 6, kVocab), 2));
      for (uint32_t step = 0; step < 4 && !bench.stories()[id].finished; ++step) {
        EXPECT_TRUE(bench.plan());
        const uint32_t lane = bench.last_plan().lane;
        if (fails && lane == 0) bench.executor().fail_next(Status(MOTLEY_INTERNAL, "scripted"));
        EXPECT_TRUE(bench.result(lane));
      }
      lost += bench.stories()[id].finished == FinishReason::kError ? 1 : 0;
      return *bench.stories()[id].pools.begin();
    };
    for (int i = 0; i < 200; ++i) one(true);
    EXPECT_EQ(lost, 3u + 3u) << "after 16, 32, 64 others; shares " << shares;
    uint32_t first = 0;
    for (int i = 0; i < 200; ++i) first += one(false) == 0 ? 1 : 0;
    EXPECT_EQ(first, 200u - 46) << "shares " << shares;
    EXPECT_EQ(lost, 6u);
    bench.expect_all_right();
  }
}

// With nobody else to take a request, it goes there all the same.
TEST(Lanes, OnlyPool_TakesRequestsThoughItsStepsFail) {
  ScriptedOptions device = device_of({64, 8});
  SchedulerBench bench(device, {.enable_prefix_caching = false});
  for (uint32_t i = 0; i < 8; ++i) {
    const RequestId id = bench.add(bench.request(random_text(i, 60, kVocab), 2));  // too long for the other
    ASSERT_TRUE(bench.plan());
    EXPECT_EQ(bench.last_plan().lane, 0u);
    if (i < 7) bench.executor().fail_next(Status(MOTLEY_INTERNAL, "scripted"));
    ASSERT_TRUE(bench.finish(20));
    EXPECT_EQ(bench.stories()[id].finished, i < 7 ? FinishReason::kError : FinishReason::kLength);
  }
}

// Many wait when it is tried: one of them is lost, whatever the steps under way. Both fail: all is tried.
TEST(Lanes, PoolWhoseStepsFail_IsTriedWithOne) {
  ScriptedOptions device = device_of({512, 512});
  for (LaneDescription& lane : device.lanes) lane.pipeline = 3;
  SchedulerBench bench(device, {.max_num_seqs = 8, .enable_prefix_caching = false});
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 100; ++i) ids.push_back(bench.add(bench.request(random_text(i, 6, kVocab), 2)));
  const auto run = [&](bool both) {
    for (int i = 0; i < 2000 && bench.scheduler().unfinished() > 0; ++i) {
      while (bench.plan()) {
      }
      for (uint32_t lane = 0; lane < 2; ++lane) {
        if (lane == 0 || both) bench.executor().fail_next(Status(MOTLEY_INTERNAL, "scripted"));
        if (!bench.result(lane) && (lane == 0 || both)) bench.executor().forgive();
      }
    }
    EXPECT_EQ(bench.scheduler().unfinished(), 0u);
    uint32_t lost = 0;
    for (const RequestId id : std::exchange(ids, {}))
      lost += bench.stories()[id].finished == FinishReason::kError ? 1 : 0;
    return lost;
  };
  EXPECT_LE(run(false), 3 * 8u + 3u) << "three steps of all that run, and a trial each after 16, 32 and 64 others";
  for (uint32_t i = 0; i < 100; ++i) ids.push_back(bench.add(bench.request(random_text(i, 6, kVocab), 2)));
  EXPECT_EQ(run(true), 100u);
  bench.expect_all_right();
}

// The pool of few has room for two at a time: what it lacks of its part does not wait while the other has room.
TEST(Lanes, SlowPoolWithoutRoom_LeavesItsPartToTheFast) {
  ScriptedOptions device = device_of({256, 8});
  device.pools[0].share = 0.6, device.pools[1].share = 0.4;
  SchedulerBench bench(device, {.enable_prefix_caching = false});
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 16; ++i) ids.push_back(bench.add(bench.request(random_text(i, 6, kVocab), 5)));
  const auto plan_all = [&] {
    while (bench.plan()) {
    }
  };
  plan_all();
  EXPECT_LE(bench.scheduler().running(), 10u + 3u) << "three fifths of all, and what there is room for";
  ASSERT_TRUE(bench.result(0));
  plan_all();
  EXPECT_GE(bench.scheduler().running(), 14u);
  ASSERT_TRUE(bench.finish(100));
  EXPECT_GE(counts_by_pool(bench, ids, 2)[0], 12u);
  bench.expect_all_right();
}

// Those that fit into one pool alone have all of it.
TEST(Lanes, PoolTooSmall_LeavesItsShareToTheOthers) {
  ScriptedOptions device = device_of({16, 256});
  device.pools[0].share = 0.75, device.pools[1].share = 0.25;
  SchedulerBench bench(device, {.enable_prefix_caching = false});
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 8; ++i) ids.push_back(bench.add(bench.request(random_text(i, 70, kVocab), 2)));
  while (bench.plan()) {
  }
  EXPECT_GT(bench.scheduler().running(), 2u) << "more than a quarter of all";
  ASSERT_TRUE(bench.finish(100));
  EXPECT_EQ(counts_by_pool(bench, ids, 2), (std::vector<uint32_t>{0, 8}));
  bench.expect_all_right();
}

TEST(Lanes, SequenceThatOutgrowsItsPool_GoesOnInALargerOne) {
  SchedulerBench bench(device_of({4, 6, 32}), {});
  EXPECT_EQ(bench.config().options.max_model_len, 128u);
  const RequestId id = bench.add(bench.request(random_text(1, 10, kVocab), 60));
  ASSERT_TRUE(bench.finish(100));
  EXPECT_EQ(bench.stories()[id].pools, (std::set<uint32_t>{0, 1, 2}));
  EXPECT_EQ(bench.scheduler().counters().preemptions, 2u);
  bench.expect_all_right();
}

TEST(Lanes, RequestThatWaitsForTheLargePool_IsPassedInTheSmallOneOnly) {
  SchedulerBench bench(device_of({16, 4}), {.enable_prefix_caching = false});
  const RequestId a = bench.add(bench.request(random_text(1, 40, kVocab), 20));
  EXPECT_EQ(lane_in_which_runs(bench, a), 0u);
  const RequestId large = bench.add(bench.request(random_text(2, 30, kVocab), 3));  // eight blocks; six are free
  const RequestId small = bench.add(bench.request(random_text(3, 6, kVocab), 3));
  const RequestId medium = bench.add(bench.request(random_text(4, 17, kVocab), 3));  // too large for four blocks
  EXPECT_EQ(lane_in_which_runs(bench, small), 1u) << "the room in the first pool is not for it";
  while (!bench.stories()[a].finished) {
    while (bench.plan()) {
      EXPECT_EQ(bench.rows_of(large) + bench.rows_of(medium), 0u) << "passed where it waits";
    }
    ASSERT_TRUE(bench.result());
  }
  EXPECT_EQ(bench.stories()[small].pools, std::set<uint32_t>{1});
  EXPECT_EQ(bench.stories()[small].finished, FinishReason::kLength);
  ASSERT_TRUE(bench.finish(100));
  bench.expect_all_right();
}

// Places to run are one limit over all pools: who waits for a pool keeps his, though others are asked first.
TEST(Lanes, RequestThatWaitsForTheLargePool_GetsTheNextPlaceToRun) {
  SchedulerBench bench(device_of({8, 16}), {.max_num_seqs = 3, .enable_prefix_caching = false});
  const RequestId a = bench.add(bench.request(random_text(1, 40, kVocab), 5));
  const RequestId large = bench.add(bench.request(random_text(2, 40, kVocab), 3));
  for (uint32_t i = 0; i < 40; ++i) bench.add(bench.request(random_text(10 + i, 3, kVocab), 5));
  while (!bench.stories()[a].finished) {
    while (bench.plan()) {
    }
    while (bench.result()) {
    }
  }
  EXPECT_EQ(lane_in_which_runs(bench, large), 1u);
  EXPECT_GT(bench.scheduler().unfinished(), 20u) << "too many passed the two";
  ASSERT_TRUE(bench.finish(1000));
  bench.expect_all_right();
}

TEST(Lanes, Preemption_SparesTheHighestRankOfEveryPool) {
  SchedulerBench bench(device_of({12, 12}), {.enable_prefix_caching = false});
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 4; ++i) ids.push_back(bench.add(bench.request(random_text(i, 20, kVocab), 24)));
  while (bench.scheduler().counters().preemptions < 2) {
    while (bench.plan()) {
    }
    ASSERT_TRUE(bench.result());
  }
  EXPECT_EQ(bench.stories()[ids[0]].pools, std::set<uint32_t>{0});
  EXPECT_EQ(bench.stories()[ids[2]].pools, std::set<uint32_t>{1});
  // In both pools those of higher rank go on, a token in each step; the others wait.
  const auto told = [&](size_t i) { return bench.stories()[ids[i]].tokens.size(); };
  const std::vector<size_t> before = {told(0), told(1), told(2), told(3)};
  for (int i = 0; i < 6; ++i) {
    while (bench.plan()) {
    }
    ASSERT_TRUE(bench.result());
  }
  EXPECT_GE(told(0), before[0] + 2);
  EXPECT_GE(told(2), before[2] + 2);
  EXPECT_EQ(told(1) + told(3), before[1] + before[3]);
  ASSERT_TRUE(bench.finish(1000));
  bench.expect_all_right();
}

// ---- roles

TEST(Lanes, Roles_PromptsAndTokensRunSideBySide) {
  SchedulerBench bench(device_with_roles(64), {.max_num_batched_tokens = 16, .enable_prefix_caching = false});
  const RequestId a = bench.add(bench.request(random_text(1, 10, kVocab), 30));
  EXPECT_EQ(lane_in_which_runs(bench, a), 0u);
  EXPECT_FALSE(bench.plan()) << "the first token is not known in the other lane yet";
  ASSERT_TRUE(bench.result());
  const RequestId b = bench.add(bench.request(random_text(2, 100, kVocab), 3));
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.rows_of(b), 16u);
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.last_plan().lane, 1u);
  EXPECT_EQ(bench.rows_of(a), 1u);
  // The lane that decodes goes on by itself.
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(bench.result(1));
    ASSERT_TRUE(bench.plan());
    EXPECT_EQ(bench.last_plan().lane, 1u);
  }
  EXPECT_EQ(bench.stories()[a].tokens.size(), 6u);
  ASSERT_TRUE(bench.finish(200));
  EXPECT_GE(bench.overlaps(), 6u);
  bench.expect_all_right();
}

TEST(Lanes, Roles_LookaheadStaysWithinALane) {
  ScriptedOptions device = device_with_roles(64);
  for (LaneDescription& lane : device.lanes) lane.lookahead = 1;
  SchedulerBench bench(device, {});
  const RequestId a = bench.add(bench.request(random_text(1, 10, kVocab), 5));
  ASSERT_TRUE(bench.plan());
  EXPECT_FALSE(bench.plan());
  ASSERT_TRUE(bench.result());
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(bench.plan());
    EXPECT_EQ(bench.last_plan().lane, 1u);
    EXPECT_EQ(bench.rows_of(a), 1u);
    EXPECT_EQ(bench.last_plan().token_slots[0] >= 0, i == 1);
  }
  ASSERT_TRUE(bench.finish(20));
  bench.expect_all_right();
}

TEST(Lanes, Roles_WhoWasPreemptedIsComputedAgainByTheLaneThatPrefills) {
  SchedulerBench bench(device_with_roles(12), {.enable_prefix_caching = false});
  bench.add(bench.request(random_text(1, 20, kVocab), 24));
  const RequestId b = bench.add(bench.request(random_text(2, 16, kVocab), 24));
  while (bench.scheduler().counters().preemptions == 0) {
    while (bench.plan()) {
    }
    ASSERT_TRUE(bench.result());
  }
  const size_t told = bench.stories()[b].tokens.size();
  ASSERT_GT(told, 0u);
  std::optional<uint32_t> lane;
  while (!lane) {
    lane = lane_in_which_runs(bench, b);
    if (!lane) {
      ASSERT_TRUE(bench.result());
    }
  }
  EXPECT_EQ(lane, 0u);
  ASSERT_TRUE(bench.finish(1000));
  bench.expect_all_right();
}

TEST(Lanes, TwoLanesThatDecodeOnePool_BothFindWork) {
  ScriptedOptions device = device_of({64});
  device.lanes = {lane_of(0), lane_of(0)};
  for (LaneDescription& lane : device.lanes) lane.lookahead = 1;
  SchedulerBench bench(device, {});
  for (uint32_t i = 0; i < 4; ++i) bench.add(bench.request(random_text(i, 5, kVocab), 40));
  std::vector<uint32_t> steps(2);
  for (int i = 0; i < 60; ++i) {
    while (bench.plan()) ++steps[bench.last_plan().lane];
    ASSERT_TRUE(bench.result());
  }
  EXPECT_GT(steps[0], 15u);
  EXPECT_GT(steps[1], 15u);
  ASSERT_TRUE(bench.finish(1000));
  bench.expect_all_right();
}

// ---- buckets

struct Padding {
  uint64_t rows = 0, run = 0;
  double share() const { return 1 - static_cast<double>(rows) / static_cast<double>(run); }
};

// Prompts of 5 to 5 + `longest` tokens come at random while others decode, `streams` to four times as many at once; the
// end counts.
struct MixedLoad {
  uint32_t streams = 8, longest = 595;
};
Padding mixed_load(const ScriptedOptions& device, uint32_t lane, uint32_t seed, const MixedLoad& load = {}) {
  SchedulerBench bench(device, {.max_num_seqs = 32, .enable_prefix_caching = false});
  std::mt19937 random(seed);
  Padding padding;
  uint32_t left = 200;
  const auto add = [&] {
    bench.add(bench.request(random_text(static_cast<uint32_t>(random()), 5 + random() % (load.longest + 1), kVocab),
                            10 + static_cast<uint32_t>(random() % 90)));
    --left;
  };
  for (uint32_t i = 0; i < load.streams; ++i) add();
  while (bench.scheduler().unfinished() > 0 || bench.scheduler().steps_in_flight() > 0) {
    while (left > 0 && bench.scheduler().unfinished() < load.streams) add();
    if (left > 0 && bench.scheduler().unfinished() < 4 * load.streams && random() % 8 == 0) add();
    while (bench.plan()) {
      if (bench.last_plan().lane != lane) continue;
      const auto rows = static_cast<uint32_t>(bench.last_plan().tokens.size());
      padding.rows += rows;
      padding.run += padded_rows(device.lanes[lane].buckets, rows);
    }
    EXPECT_TRUE(bench.result());
  }
  bench.expect_all_right();
  return padding;
}

// A device that runs these row counts alone, of a lane that does both, or beside one that generates for it.
Padding padding_of(const std::vector<uint32_t>& buckets, bool prefills_only, uint32_t seed,
                   const MixedLoad& load = {}) {
  ScriptedOptions device = device_of({4096});
  device.positions_max = 2048;
  device.busy_ns = 3'000'000;
  device.busy_row_ns = 100'000;
  device.lanes[0].buckets = buckets;
  device.lanes[0].rows_max = buckets.back();
  if (prefills_only) {
    device.lanes.push_back(lane_of(0, LaneRole::kDecode));
    device.lanes[0].role = LaneRole::kPrefill;
  }
  return mixed_load(device, 0, seed, load);
}

constexpr MixedLoad kFewStreams[] = {{1, 200}, {2, 200}, {2, 595}, {4, 200}, {4, 595}, {8, 200}};

TEST(Buckets, MixedLoad_RunsAtMostAQuarterOfPadding) {
  const std::vector<uint32_t> ours = row_counts(2048);
  for (const std::vector<uint32_t>& buckets :
       {ours, {8, 16, 64, 128, 512, 2048}, {16, 64, 256, 1024}, {8, 16, 32, 64, 128, 256, 512}, {16, 64, 256}}) {
    SCOPED_TRACE(::testing::PrintToString(buckets));
    for (uint32_t seed = 1; seed <= 2; ++seed) {
      for (const bool prefills_only : {false, true}) {
        const Padding padding = padding_of(buckets, prefills_only, seed);
        EXPECT_LE(padding.share(), 0.25) << padding.rows << " rows of " << padding.run;
      }
    }
  }
  for (const MixedLoad& load : kFewStreams)
    EXPECT_LE(padding_of(ours, false, 1, load).share(), 0.25) << load.streams << " streams of " << load.longest;
}

// Four are as many as a model of 30 layers gets of `intel-npu-like` by default; the runtime's own test says so.
TEST(Buckets, MixedLoadThatFewRowCountsAreChosenFor_RunsAtMostAQuarterOfPadding) {
  EXPECT_LE(padding_of(fewer_row_counts(row_counts(2048), 4), false, 1).share(), 0.25);
  for (const MixedLoad& load : kFewStreams) {
    const ExpectedLoad told{4 * load.streams, 5 + load.longest / 2, 55};
    const std::vector<uint32_t> buckets = fewer_row_counts(row_counts(2048, told), 4, told);
    const Padding padding = padding_of(buckets, false, 1, load);
    EXPECT_LE(padding.share(), 0.25) << load.streams << " streams, prompts of up to " << 5 + load.longest << ": "
                                     << ::testing::PrintToString(buckets);
  }
}

// ---- sections of a pool

// The highest block that any step of it names.
BlockId highest_block(SchedulerBench& bench) {
  BlockId highest = -1;
  while (bench.scheduler().unfinished() > 0) {
    while (bench.plan())
      for (const BlockId block : bench.last_plan().blocks) highest = std::max(highest, block);
    EXPECT_TRUE(bench.result());
  }
  return highest;
}

// Also where the first section is full of what is cached: a further one is met by who has no room in the first.
TEST(Sections, WhoFindsRoomInTheFirst_MeetsNoOther) {
  ScriptedOptions device = device_of({64});
  device.pools[0].section_begins = {12};
  SchedulerBench bench(device, {});
  for (uint32_t i = 0; i < 5; ++i) {
    bench.add(bench.request(random_text(i, 30, kVocab), 8));  // ten blocks
    EXPECT_LT(highest_block(bench), 12) << "request " << i;
  }
  for (uint32_t i = 5; i < 7; ++i) bench.add(bench.request(random_text(i, 30, kVocab), 8));
  EXPECT_GE(highest_block(bench), 12);
  bench.expect_all_right();
}

// ---- what makes sense

std::string refusal(const ScriptedOptions& device, const EngineOptions& options = {}) {
  const auto config = resolve_config(testing::ScriptedExecutor(device).describe(), options);
  return config.ok() ? "accepted" : config.error().message();
}

TEST(Lanes, DescriptionsThatMakeNoSense_AreRefused) {
  EXPECT_EQ(refusal(device_of({8, 16})), "accepted");
  ScriptedOptions device = device_of({8, 16});
  device.lanes[1].pool = 2;
  EXPECT_THAT(refusal(device), HasSubstr("lane 1 has pool 2"));
  device.lanes[1].pool = 0;
  EXPECT_THAT(refusal(device), HasSubstr("no lane prefills in KV pool 1"));
  device.lanes[1] = lane_of(1, LaneRole::kPrefill);
  EXPECT_THAT(refusal(device), HasSubstr("no lane decodes in KV pool 1"));
  device.lanes[1] = lane_of(1);
  for (const std::vector<uint32_t>& buckets : {std::vector<uint32_t>{0, 128}, {64, 64, 128}, {64}, {128, 64}}) {
    device.lanes[1].buckets = buckets;
    EXPECT_THAT(refusal(device), HasSubstr("the buckets of lane 1"));
  }
  device.lanes[1].buckets = {64, 128};
  EXPECT_EQ(refusal(device), "accepted");
  for (const std::vector<uint32_t>& begins : {std::vector<uint32_t>{0}, {16}, {4, 4}, {8, 4}}) {
    device.pools[1].section_begins = begins;
    EXPECT_THAT(refusal(device), HasSubstr("a section of KV pool 1 has none of its 16 blocks"));
  }
  device.pools[1].section_begins = {4, 8};
  EXPECT_EQ(refusal(device), "accepted");
  device.pools[1].share = 0.5;
  EXPECT_THAT(refusal(device), HasSubstr("a KV pool has a share of 0.5"));
  device.pools[0].share = 0.5;
  EXPECT_EQ(refusal(device), "accepted");
  device.pools[0].share = -1;
  EXPECT_THAT(refusal(device), HasSubstr("a KV pool has a share of -1"));
  device.pools[0].share = 0.5;
  device.lanes.resize(65, lane_of(0));
  EXPECT_THAT(refusal(device), HasSubstr("65 lanes"));
}

TEST(Lanes, Limits_AreThoseOfTheLargestPoolAndOfAllLanesTogether) {
  ScriptedOptions device = device_of({8, 16});
  device.lanes[0].rows_max = 20;
  device.lanes[1].rows_max = 40;
  const auto config = *resolve_config(testing::ScriptedExecutor(device).describe(), {});
  EXPECT_EQ(config.options.max_model_len, 64u);
  EXPECT_EQ(config.options.max_num_seqs, 60u);
  EXPECT_EQ(config.options.max_num_batched_tokens, 40u);
  EXPECT_THAT(refusal(device, {.max_model_len = 65}), HasSubstr("64 positions of the largest KV pool"));
  EXPECT_THAT(refusal(device, {.max_num_batched_tokens = 41}), HasSubstr("40 rows"));
  EXPECT_THAT(refusal(device, {.max_model_len = 30, .enable_chunked_prefill = false}), HasSubstr("chunked prefill"));
  EXPECT_EQ(refusal(device, {.max_model_len = 20, .enable_chunked_prefill = false}), "accepted");
}

}  // namespace
}  // namespace motley
