// Requests whose KV goes on with another executor.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/engine.hpp"
#include "engine/testing/inbox.hpp"
#include "engine/testing/scheduler_bench.hpp"
#include "engine/transfers.hpp"

namespace motley {
namespace {

using testing::expected_tokens;
using testing::Inbox;
using testing::random_text;
using testing::SchedulerBench;
using testing::ScriptedExecutor;
using testing::ScriptedOptions;

constexpr uint32_t kVocab = 1000;

// Pools of blocks of four positions, with a lane each.
ScriptedOptions device_of(const std::vector<uint32_t>& blocks) {
  ScriptedOptions device;
  device.moves_kv = true;
  for (const uint32_t each : blocks) {
    LaneDescription& lane = device.lanes.emplace_back();
    lane.pool = static_cast<uint32_t>(device.pools.size());
    lane.rows_max = 128;
    device.pools.push_back({.block_size = 4, .blocks = each});
  }
  return device;
}

void run_steps(SchedulerBench& bench, int count) {
  for (int i = 0; i < count; ++i) {
    while (bench.plan()) {
    }
    ASSERT_TRUE(bench.result());
  }
}

void expect_end(SchedulerBench& bench, uint64_t recomputed_tokens) {
  ASSERT_TRUE(bench.finish(1000));
  bench.expect_all_right();
  EXPECT_EQ(bench.scheduler().counters().recomputed_tokens, recomputed_tokens);
}

TEST(Moving, IntoASmallerPool_TheFirstGoOnAndTheLastWaits) {
  SchedulerBench bench(device_of({64}), {.enable_prefix_caching = false});
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 3; ++i) ids.push_back(bench.add(bench.request(random_text(i, 20, kVocab), 8)));
  run_steps(bench, 3);
  ScriptedOptions smaller = device_of({16});  // of six blocks each, and one for who runs
  bench.replace(smaller, {});
  EXPECT_EQ(bench.scheduler().running(), 2u);
  EXPECT_EQ(bench.moved(), 12u);
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.rows_of(ids[0]), 1u);
  EXPECT_EQ(bench.rows_of(ids[1]), 1u);
  EXPECT_EQ(bench.rows_of(ids[2]), 0u);
  expect_end(bench, 23);
}

TEST(Moving, FromOnePoolToTwo_TakesThePreferredOneFirst) {
  SchedulerBench bench(device_of({64}), {.enable_prefix_caching = false});
  for (uint32_t i = 0; i < 3; ++i) bench.add(bench.request(random_text(i, 20, kVocab), 8));
  run_steps(bench, 3);
  bench.replace(device_of({16, 16}), {});
  EXPECT_EQ(bench.scheduler().running(), 3u);
  EXPECT_EQ(bench.scheduler().pool(0).free_count(), 4u);
  EXPECT_EQ(bench.scheduler().pool(1).free_count(), 10u);
  expect_end(bench, 0);
}

TEST(Moving, FromOnePoolToTwoWithShares_PartsThem) {
  SchedulerBench bench(device_of({64}), {.enable_prefix_caching = false});
  for (uint32_t i = 0; i < 4; ++i) bench.add(bench.request(random_text(i, 20, kVocab), 8));
  run_steps(bench, 3);
  ScriptedOptions two = device_of({64, 64});
  two.pools[0].share = 0.25, two.pools[1].share = 0.75;
  bench.replace(two, {});
  EXPECT_EQ(bench.scheduler().running(), 4u);
  EXPECT_EQ(bench.scheduler().pool(0).free_count(), 64u - 6);
  EXPECT_EQ(bench.scheduler().pool(1).free_count(), 64u - 18);
  expect_end(bench, 0);
}

TEST(Moving, FromTwoPoolsToOne_BesideThePoolThatStays) {
  ScriptedOptions device = device_of({8, 64});
  device.pools[1].memory = {5};
  SchedulerBench bench(device, {.enable_prefix_caching = false});
  for (uint32_t i = 0; i < 3; ++i) bench.add(bench.request(random_text(i, 20, kVocab), 8));
  run_steps(bench, 6);
  ScriptedOptions one = device_of({64});
  one.pools[0].memory = {5};
  bench.replace(one, {});
  EXPECT_EQ(bench.scheduler().running(), 3u);
  EXPECT_EQ(bench.moved(), 6u);  // of the first alone: the others' lie where they lay
  expect_end(bench, 0);
}

TEST(Moving, WhatIsShared_MovesOnceAndStaysShared) {
  SchedulerBench bench(device_of({64}), {});
  const std::vector<TokenId> text = random_text(1, 32, kVocab);
  bench.add(bench.request(text, 20));
  run_steps(bench, 2);
  std::vector<TokenId> other = text;
  other.push_back(7);
  bench.add(bench.request(other, 20));
  run_steps(bench, 2);
  ASSERT_EQ(bench.scheduler().running(), 2u);
  const uint32_t free = bench.scheduler().pool(0).free_count();
  bench.replace(device_of({64}), {});
  EXPECT_EQ(bench.scheduler().running(), 2u);
  EXPECT_EQ(bench.scheduler().pool(0).free_count(), free);
  EXPECT_EQ(bench.moved(), 64u - free);
  expect_end(bench, 0);
}

TEST(Moving, ThePrefixCacheGoesAlong) {
  SchedulerBench bench(device_of({64}), {});
  const std::vector<TokenId> text = random_text(1, 41, kVocab);
  bench.add(bench.request(text, 4));
  ASSERT_TRUE(bench.finish(100));
  bench.replace(device_of({48}), {});
  const uint64_t before = bench.scheduler().counters().prefix_hits;
  bench.add(bench.request(text, 4));
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.scheduler().counters().prefix_hits - before, 40u);
  expect_end(bench, 0);
}

// Of a chain the beginning is worth more than the end.
TEST(Moving, OfThePrefixCacheWhatFits_IsTheBeginning) {
  SchedulerBench bench(device_of({64}), {});
  const std::vector<TokenId> text = random_text(1, 41, kVocab);
  bench.add(bench.request(text, 4));
  ASSERT_TRUE(bench.finish(100));
  ScriptedOptions smaller = device_of({64});
  bench.replace(smaller, {});
  smaller.pools[0].blocks = 12;
  smaller.saved_blocks_max = 5;
  smaller.pools[0].memory = {};
  bench.replace(smaller, {});  // of the first executor all is saved
  EXPECT_EQ(bench.moved(), 11u + 11u);
  bench.replace(smaller, {});  // of this one five blocks are
  EXPECT_EQ(bench.moved(), 11u + 11u + 5u);
  const uint64_t before = bench.scheduler().counters().prefix_hits;
  bench.add(bench.request(text, 4));
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.scheduler().counters().prefix_hits - before, 20u);
  expect_end(bench, 0);
}

TEST(Moving, LoadingFails_AllIsComputedAgain) {
  SchedulerBench bench(device_of({64}), {});
  for (uint32_t i = 0; i < 3; ++i) bench.add(bench.request(random_text(i, 20, kVocab), 8));
  run_steps(bench, 3);
  bench.replace(device_of({64}), {.loading_fails = true});
  EXPECT_EQ(bench.scheduler().running(), 0u);
  EXPECT_EQ(bench.scheduler().waiting(), 3u);
  expect_end(bench, 3 * 23);
}

TEST(Moving, WhoseKvIsMuch_ComesLate_WhileTheOthersRun) {
  SchedulerBench bench(device_of({64}), {.enable_prefix_caching = false});
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 3; ++i) ids.push_back(bench.add(bench.request(random_text(i, 20, kVocab), 8)));
  run_steps(bench, 3);
  bench.replace(device_of({64}), {.at_once = 6});
  EXPECT_EQ(bench.scheduler().running(), 1u);
  EXPECT_EQ(bench.scheduler().transfers_in_flight(), 2u);
  for (uint32_t there = 1; there <= 3; ++there) {
    ASSERT_TRUE(bench.plan());
    for (uint32_t i = 0; i < 3; ++i) EXPECT_EQ(bench.rows_of(ids[i]), i < there ? 1u : 0u) << i;
    ASSERT_TRUE(bench.result());
    EXPECT_EQ(bench.transfer(), there < 3);
  }
  EXPECT_FALSE(bench.scheduler().some_come_late());
  expect_end(bench, 0);
}

TEST(Moving, WhoEndsBeforeItHasCome_GivesItsBlocksBack) {
  SchedulerBench bench(device_of({64}), {.enable_prefix_caching = false});
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 3; ++i) ids.push_back(bench.add(bench.request(random_text(i, 20, kVocab), 8)));
  run_steps(bench, 3);
  bench.replace(device_of({64}), {.at_once = 6});
  bench.scheduler().end(ids[1], FinishReason::kAborted);
  EXPECT_EQ(bench.scheduler().pool(0).free_count(), 64u - 18) << "its blocks are being written";
  ASSERT_TRUE(bench.transfer());
  EXPECT_EQ(bench.scheduler().pool(0).free_count(), 64u - 12);
  ASSERT_TRUE(bench.transfer());
  EXPECT_EQ(bench.scheduler().running(), 2u);
}

// The second lies on the first one's blocks, and both come late; the first one's fail, and so the second's are nothing.
TEST(Moving, WhatLateOnesShare_IsLoadedOnce_AndFailsForBoth) {
  for (const bool fails : {false, true}) {
    SchedulerBench bench(device_of({64}), {});
    std::vector<TokenId> text = random_text(1, 32, kVocab);
    bench.add(bench.request(text, 20));
    run_steps(bench, 2);
    text.push_back(7);
    bench.add(bench.request(text, 20));
    run_steps(bench, 2);
    const uint32_t free = bench.scheduler().pool(0).free_count();
    bench.replace(device_of({64}), {.at_once = 0});
    EXPECT_EQ(bench.scheduler().running(), 0u);
    EXPECT_EQ(bench.scheduler().transfers_in_flight(), 2u);
    EXPECT_EQ(bench.scheduler().pool(0).free_count(), free);
    ASSERT_TRUE(bench.transfer(0, fails));
    EXPECT_EQ(bench.scheduler().running(), fails ? 0u : 1u);
    EXPECT_EQ(bench.transfer(), !fails);
    EXPECT_EQ(bench.scheduler().running(), fails ? 0u : 2u);
    ASSERT_TRUE(bench.finish(1000));
    bench.expect_all_right();
    EXPECT_EQ(bench.scheduler().counters().preemptions, 0u);
  }
}

// While the first loads, somebody else computes the first of two blocks that both share, and its block is soon
// another's.
TEST(Moving, WhatLateOnesShare_IsComputedBySomebodyElseMeanwhile) {
  SchedulerBench bench(device_of({64}), {});
  std::vector<TokenId> text = random_text(1, 8, kVocab);
  std::vector<TokenId> other = text;
  text.push_back(1), other.push_back(2);
  bench.add(bench.request(text, 30));
  run_steps(bench, 2);
  bench.add(bench.request(other, 30));
  run_steps(bench, 2);
  ASSERT_EQ(bench.scheduler().counters().prefix_hits, 8u);
  bench.replace(device_of({20}), {.at_once = 0});
  std::vector<TokenId> meanwhile(text.begin(), text.begin() + 4);
  meanwhile.push_back(3);
  bench.add(bench.request(meanwhile, 1));
  run_steps(bench, 1);
  ASSERT_TRUE(bench.transfer());
  bench.add(bench.request(random_text(2, 40, kVocab), 1));
  while (bench.scheduler().pool(0).free_count() > 0 && bench.plan()) ASSERT_TRUE(bench.result());
  ASSERT_TRUE(bench.transfer());
  ASSERT_TRUE(bench.finish(1000));
  bench.expect_all_right();
}

// Of what two share the first block is loaded at once, with a third; the others come late, once.
TEST(Moving, WhatLateOnesShare_MayBeginWithWhatIsThere) {
  SchedulerBench bench(device_of({64}), {});
  const std::vector<TokenId> text = random_text(1, 16, kVocab);
  std::vector<TokenId> first(text.begin(), text.begin() + 4), second = text, third = text;
  first.push_back(1), second.push_back(2), third.push_back(3);
  for (const std::vector<TokenId>& prompt : {first, second, third}) {
    bench.add(bench.request(prompt, 20));
    run_steps(bench, 1);
  }
  const uint32_t free = bench.scheduler().pool(0).free_count();
  bench.replace(device_of({64}), {.at_once = 2});
  EXPECT_EQ(bench.scheduler().running(), 1u);
  EXPECT_EQ(bench.scheduler().transfers_in_flight(), 2u);
  EXPECT_EQ(bench.scheduler().pool(0).free_count(), free);
  ASSERT_TRUE(bench.finish(1000));
  bench.expect_all_right();
  EXPECT_EQ(bench.scheduler().counters().recomputed_tokens, 0u);
}

// What is full stays as it is; the two blocks that steps fill meanwhile, and the one that they write, come later.
TEST(Moving, WhatIsFull_IsSavedWhileStepsRun) {
  SchedulerBench bench(device_of({64}), {.enable_prefix_caching = false});
  bench.add(bench.request(random_text(1, 20, kVocab), 30));
  run_steps(bench, 2);
  KvSavedBlocks saved(1);
  for (const KvBlock& block : bench.scheduler().hold_written({})) saved[0].push_back(block.block);
  std::sort(saved[0].begin(), saved[0].end());
  EXPECT_EQ(saved[0].size(), 5u);
  run_steps(bench, 9);
  EXPECT_EQ(bench.scheduler().blocks_to_save({}, saved).size(), 3u);
  EXPECT_EQ(bench.scheduler().blocks_to_save({}).size(), 8u);
  bench.scheduler().let_go();
  bench.replace(device_of({64}), {.steps_ahead = 6});
  expect_end(bench, 0);
}

// In a full pool nobody gets what is held: who lacks a block sits out until it is let go.
TEST(Moving, WhatIsHeld_IsWaitedFor) {
  SchedulerBench bench(device_of({12}), {.enable_prefix_caching = false});
  for (uint32_t i = 0; i < 2; ++i) bench.add(bench.request(random_text(i, 20, kVocab), 20));
  run_steps(bench, 3);
  EXPECT_EQ(bench.scheduler().hold_written({}).size(), 10u);
  int steps = 0;
  while (bench.plan()) {
    ASSERT_TRUE(bench.result());
    ASSERT_LT(++steps, 8);
  }
  EXPECT_EQ(bench.scheduler().unfinished(), 2u);
  EXPECT_EQ(bench.scheduler().counters().preemptions, 0u);
  bench.scheduler().let_go();
  ASSERT_TRUE(bench.finish(1000));
  EXPECT_GT(bench.scheduler().counters().preemptions, 0u);
  bench.expect_all_right();
}

TEST(Moving, BlocksOfAnotherSize_AreComputedAgain) {
  SchedulerBench bench(device_of({64}), {});
  bench.add(bench.request(random_text(1, 20, kVocab), 8));
  run_steps(bench, 3);
  ScriptedOptions other = device_of({64});
  other.pools[0].block_size = 8;
  bench.replace(other, {});
  EXPECT_EQ(bench.moved(), 0u);
  expect_end(bench, 23);
}

// ---- from pool to pool

TEST(MovingPools, WhoOutgrowsItsPool_GoesOnInALargerOne) {
  SchedulerBench bench(device_of({6, 64}), {.enable_prefix_caching = false});
  const RequestId id = bench.add(bench.request(random_text(1, 20, kVocab), 30));
  run_steps(bench, 5);  // 24 positions
  ASSERT_FALSE(bench.plan());
  EXPECT_EQ(bench.scheduler().transfers_in_flight(), 1u);
  EXPECT_EQ(bench.scheduler().pool(0).free_count(), 0u);  // held until it has moved
  EXPECT_EQ(bench.scheduler().pool(1).free_count(), 64u - 7u);
  ASSERT_TRUE(bench.transfer());
  EXPECT_EQ(bench.scheduler().pool(0).free_count(), 6u);
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.rows_of(id), 1u);
  expect_end(bench, 0);
  EXPECT_EQ(bench.scheduler().counters().preemptions, 0u);
}

TEST(MovingPools, WhoIsPreempted_GoesOnElsewhereWhileTheOthersRun) {
  SchedulerBench bench(device_of({16, 64}), {.enable_prefix_caching = false});
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 2; ++i) ids.push_back(bench.add(bench.request(random_text(i, 23 + 3 * i, kVocab), 30)));
  while (bench.scheduler().transfers_in_flight() == 0) {
    while (bench.plan()) {
    }
    if (bench.scheduler().transfers_in_flight() > 0) break;
    ASSERT_TRUE(bench.result());
  }
  EXPECT_EQ(bench.rows_of(ids[1]), 0u);
  for (int steps = 0; steps < 2; ++steps) {  // as long as its last block has room
    ASSERT_TRUE(bench.result());
    ASSERT_TRUE(bench.plan());
    EXPECT_EQ(bench.rows_of(ids[0]), 1u);
    EXPECT_EQ(bench.rows_of(ids[1]), 0u);
  }
  ASSERT_TRUE(bench.transfer());
  expect_end(bench, 0);
  EXPECT_EQ(bench.stories()[ids[1]].pools, (std::set<uint32_t>{0, 1}));
}

TEST(MovingPools, ItsRoomIsWaitedForByAHigherRank_WaitsItself) {
  SchedulerBench bench(device_of({6, 24}), {.enable_prefix_caching = false, .policy = SchedulingPolicy::kPriority});
  const RequestId id = bench.add(bench.request(random_text(1, 20, kVocab), 30));
  bench.add(bench.request(random_text(2, 60, kVocab), 20));  // in the larger pool, and fills it
  run_steps(bench, 4);
  Request first = bench.request(random_text(3, 80, kVocab), 4);
  first.priority = -1;
  bench.add(std::move(first));
  run_steps(bench, 4);
  EXPECT_EQ(bench.scheduler().transfers_in_flight(), 0u);
  ASSERT_TRUE(bench.finish(1000));
  bench.expect_all_right();
  EXPECT_GT(bench.scheduler().counters().recomputed_tokens, 0u);
  EXPECT_EQ(bench.stories()[id].pools, (std::set<uint32_t>{0, 1}));
}

TEST(MovingPools, EndedWhileItMoves_GivesBothPoolsBack) {
  SchedulerBench bench(device_of({6, 64}), {.enable_prefix_caching = false});
  const RequestId id = bench.add(bench.request(random_text(1, 20, kVocab), 30));
  run_steps(bench, 5);
  ASSERT_FALSE(bench.plan());
  bench.scheduler().end(id, FinishReason::kAborted);
  EXPECT_EQ(bench.scheduler().pool(0).free_count(), 0u);
  ASSERT_TRUE(bench.transfer());
  ASSERT_TRUE(bench.finish(10));
  bench.expect_all_right();
}

TEST(MovingPools, TheMoveFails_ComputesAgain) {
  SchedulerBench bench(device_of({6, 64}), {.enable_prefix_caching = false});
  bench.add(bench.request(random_text(1, 20, kVocab), 30));
  run_steps(bench, 5);
  ASSERT_FALSE(bench.plan());
  ASSERT_TRUE(bench.transfer(0, true));
  expect_end(bench, 25);
  EXPECT_EQ(bench.scheduler().counters().preemptions, 1u);
}

// The engine makes the moves by itself; where one fails, nobody notices but by the time.
TEST(MovingPools, InTheEngine) {
  for (const bool fails : {false, true}) {
    ScriptedExecutor executor(device_of({6, 64}));
    if (fails) executor.fail_loading(Status(MOTLEY_RESOURCE_EXHAUSTED, "scripted"));
    Inbox inbox;
    const auto engine = Engine::create(executor, {.enable_prefix_caching = false}).value();
    const std::vector<TokenId> text = random_text(1, 20, kVocab);
    const RequestId id = engine->submit(testing::request_of(inbox, text, 30)).value();
    EXPECT_EQ(inbox.wait(id).tokens, expected_tokens(text, 30));
    EXPECT_TRUE(engine->drain().take());
    const EngineStats stats = engine->stats();
    EXPECT_EQ(stats.kv_blocks_moved, fails ? 0u : 6u);
    EXPECT_EQ(stats.recomputed_tokens, fails ? 25u : 0u);
    EXPECT_EQ(executor.violations(), std::vector<std::string>());
  }
}

// The first of three fits into what can be saved, the second does not, and so neither does the third, of one block.
TEST(MovingPools, WithoutMemoryForAll_TheFirstMove) {
  ScriptedOptions device = device_of({16, 16});
  device.saved_blocks_max = 5;
  ScriptedExecutor executor(device);
  const auto moves = [](BlockId first, BlockId count) {
    std::vector<KvMove> made;
    for (BlockId i = first; i < first + count; ++i) made.push_back({{0, i}, {1, i}});
    return made;
  };
  const Transferred some = transfer(executor, {{7, moves(8, 3)}, {5, moves(0, 4)}, {6, moves(12, 1)}});
  EXPECT_TRUE(some.loaded.ok()) << some.loaded.error().message();
  EXPECT_EQ(some.moved, std::vector<RequestId>{7});
  EXPECT_EQ(some.left, (std::vector<RequestId>{5, 6}));
  EXPECT_EQ(some.blocks, 3u);
  const Transferred none = transfer(executor, {{7, moves(0, 6)}, {5, moves(8, 1)}});
  EXPECT_EQ(none.loaded.error().code(), MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_EQ(none.left, (std::vector<RequestId>{7, 5}));
  executor.fail_saving(Status(MOTLEY_UNAVAILABLE, "scripted"));
  const Transferred failed = transfer(executor, {{7, moves(0, 1)}});
  EXPECT_EQ(failed.loaded.error().code(), MOTLEY_UNAVAILABLE);
  EXPECT_EQ(failed.left, std::vector<RequestId>{7});
}

// A replacement's pause is bounded: the first request's blocks load within it, and the others' follow while that runs.
// Each one's are loaded by two calls, those saved while steps ran and the others: where the second fails all are
// computed again, where the fourth does all that come late.
TEST(MovingLate, InTheEngine) {
  for (const int fails : {0, 2, 4}) {
    SCOPED_TRACE(fails);
    ScriptedOptions device = device_of({256});
    device.saved_block_ns = 1000;
    device.manual = true;
    std::atomic<bool> saved = false;
    device.saves = [&] { saved = true; };
    ScriptedExecutor first(device);
    device.epoch = 2, device.manual = false, device.saves = nullptr;
    std::atomic<int> loads = 0;
    std::unique_ptr<ScriptedExecutor> next;
    device.loads = [&] {
      if (++loads == fails) next->fail_loading(Status(MOTLEY_RESOURCE_EXHAUSTED, "scripted"));
    };
    next = std::make_unique<ScriptedExecutor>(device);
    Inbox inbox;
    const auto engine = Engine::create(first, {.enable_prefix_caching = false, .kv_pause_ns = 14'000}).value();
    std::vector<std::pair<RequestId, std::vector<TokenId>>> asked;
    for (uint32_t i = 0; i < 4; ++i) {
      const std::vector<TokenId> text = random_text(i, 18 + i, kVocab);
      asked.emplace_back(engine->submit(testing::request_of(inbox, text, 100)).value(), expected_tokens(text, 100));
    }
    for (const auto& [id, tokens] : asked)
      while (inbox.tokens(id) < 3)
        if (!first.run_next()) std::this_thread::yield();
    auto replaced = engine->replace([&]() -> Result<Executor*> { return next.get(); });
    while (!replaced.ready())  // the thread that saves may come late: no step until then, or all have ended
      if (!saved || !first.run_next()) std::this_thread::yield();
    EXPECT_TRUE(replaced.take().ok());
    for (const auto& [id, tokens] : asked) EXPECT_EQ(inbox.wait(id).tokens, tokens);
    EXPECT_TRUE(engine->drain().take());
    EXPECT_EQ(loads, fails == 0 ? 8 : fails) << "behind a failure nothing is loaded";
    EXPECT_EQ(engine->stats().recomputed_tokens > 0, fails > 0);
    EXPECT_EQ(engine->stats().preemptions, 0u);
    EXPECT_EQ(first.violations(), std::vector<std::string>());
    EXPECT_EQ(next->violations(), std::vector<std::string>());
  }
}

// Who moves is waited for before the executor is replaced, and goes on with the next one. The move ends once the
// replacement has been asked for, and a while later.
TEST(MovingPools, ReplacedMeanwhile) {
  std::promise<void> begun, asked_for;
  std::atomic<bool> loaded = false, made_before = false;
  ScriptedOptions first_device = device_of({6, 64});
  first_device.loads = [&, once = std::make_shared<std::once_flag>()] {
    std::call_once(*once, [&] {
      begun.set_value();
      asked_for.get_future().wait();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      loaded = true;
    });
  };
  ScriptedExecutor first(first_device);
  ScriptedOptions next_device = device_of({64});
  next_device.epoch = 2;
  ScriptedExecutor next(next_device);
  Inbox inbox;
  const auto engine = Engine::create(first, {.enable_prefix_caching = false}).value();
  std::vector<std::pair<RequestId, std::vector<TokenId>>> asked;
  for (uint32_t i = 0; i < 4; ++i) {
    const std::vector<TokenId> text = random_text(i, 18 + i, kVocab);
    asked.emplace_back(engine->submit(testing::request_of(inbox, text, 200)).value(), expected_tokens(text, 200));
  }
  begun.get_future().wait();
  for (int ms = 0; ms < 10'000 && engine->stats().moving != 1; ++ms)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(engine->stats().moving, 1u);
  auto replaced = engine->replace([&]() -> Result<Executor*> {
    made_before = !loaded;
    return &next;
  });
  asked_for.set_value();
  EXPECT_TRUE(replaced.take().ok());
  EXPECT_FALSE(made_before);
  for (const auto& [id, tokens] : asked) EXPECT_EQ(inbox.wait(id).tokens, tokens);
  EXPECT_TRUE(engine->drain().take());
  EXPECT_EQ(first.violations(), std::vector<std::string>());
  EXPECT_EQ(next.violations(), std::vector<std::string>());
}

}  // namespace
}  // namespace motley
