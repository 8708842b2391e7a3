#include "engine/scheduler.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/testing/scheduler_bench.hpp"

namespace motley {
namespace {

using testing::kNow;
using testing::random_text;
using testing::SchedulerBench;
using testing::ScriptedOptions;

// ---- single decisions

constexpr uint32_t kVocab = 1000;

TEST(Scheduler, ChoicesOfOnePrompt_ComputeItOnce) {
  SchedulerBench bench({}, {});
  for (uint32_t choice = 0; choice < 8; ++choice) {
    Request r = bench.request(random_text(1, 40, kVocab), 2);
    r.params.choice = choice;
    bench.add(r);
  }
  ASSERT_TRUE(bench.finish(100));
  bench.expect_all_right();
  // 40 rows once; the seven others share nine full blocks and compute four rows; each needs one more row, and one may
  // be planned in vain.
  EXPECT_LE(bench.executor().rows_run(), 40u + 7 * 4 + 8 * 2);
  EXPECT_EQ(bench.stories()[8].last.cached_tokens, 36u);
}

TEST(Scheduler, WholePromptInCache_StillComputesItsLastToken) {
  SchedulerBench bench({.block_size = 4}, {});
  bench.add(bench.request(random_text(1, 8, kVocab), 1));
  ASSERT_TRUE(bench.finish(10));
  const RequestId second = bench.add(bench.request(random_text(1, 8, kVocab), 1));
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.rows_of(second), 4u);
  ASSERT_TRUE(bench.finish(10));
  bench.expect_all_right();
}

TEST(Scheduler, LongPrompt_DoesNotHoldUpAShortOne) {
  SchedulerBench bench({}, {.max_num_batched_tokens = 32});
  const RequestId longer = bench.add(bench.request(random_text(1, 300, kVocab), 2));
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.rows_of(longer), 32u);
  const RequestId shorter = bench.add(bench.request(random_text(2, 10, kVocab), 2));
  ASSERT_TRUE(bench.result());
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.rows_of(shorter), 10u);
  EXPECT_EQ(bench.rows_of(longer), 22u);
  ASSERT_TRUE(bench.finish(100));
  bench.expect_all_right();
}

TEST(Scheduler, ManyLongPrompts_DoNotHoldUpAShortOne) {
  ScriptedOptions device{.block_size = 16, .blocks = 4096, .rows_max = 512, .positions_max = 9000};
  device.busy_ns = 150'000'000;
  SchedulerBench bench(device, {});
  std::vector<RequestId> longs;
  for (uint32_t i = 0; i < 24; ++i) longs.push_back(bench.add(bench.request(random_text(i, 8000, kVocab), 2)));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(bench.plan() && bench.result());
  EXPECT_EQ(bench.scheduler().running(), bench.config().options.max_concurrent_prefills);
  std::vector<RequestId> shorts;
  for (uint32_t i = 0; i < 3; ++i) shorts.push_back(bench.add(bench.request({1, static_cast<TokenId>(i)}, 2)));
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(bench.plan() && bench.result());
  for (const RequestId id : shorts) EXPECT_FALSE(bench.stories()[id].tokens.empty());
  EXPECT_GT(bench.rows_of(longs[0]), 0u);
  for (const RequestId id : longs) bench.scheduler().end(id, FinishReason::kAborted);
  ASSERT_TRUE(bench.finish(20));
  bench.expect_all_right();
}

TEST(Scheduler, Decodes_ComeBeforePrompts) {
  SchedulerBench bench({.lookahead = 0}, {.max_num_batched_tokens = 8});
  const RequestId first = bench.add(bench.request(random_text(1, 8, kVocab), 20));
  ASSERT_TRUE(bench.plan() && bench.result());
  const RequestId second = bench.add(bench.request(random_text(2, 100, kVocab), 2));
  while (bench.stories()[second].tokens.empty()) {
    ASSERT_TRUE(bench.plan() && bench.result());
    EXPECT_EQ(bench.rows_of(first), 1u);
    EXPECT_LE(bench.rows_of(second), 7u);
  }
  ASSERT_TRUE(bench.finish(100));
  bench.expect_all_right();
}

// Rows of the largest of some steps, in all of which it has some.
uint32_t largest_step(SchedulerBench& bench, RequestId id, int steps) {
  size_t most = 0;
  for (int i = 0; i < steps; ++i) {
    EXPECT_TRUE(bench.plan());
    EXPECT_GT(bench.rows_of(id), 0u);
    most = std::max(most, bench.last_plan().tokens.size());
    EXPECT_TRUE(bench.result());
  }
  return static_cast<uint32_t>(most);
}

// A step takes 2 ms and 0.3 ms a row: alone, a prompt gets 100 ms of it, beside a sequence that decodes no more
// than 33.
TEST(Scheduler, PromptBesideDecodes_GetsShorterSteps) {
  ScriptedOptions device{.block_size = 16, .blocks = 4096, .rows_max = 1024, .positions_max = 9000, .lookahead = 0};
  device.busy_ns = 2'000'000;
  device.busy_row_ns = 300'000;
  SchedulerBench bench(device, {});
  const auto longest_ns = [&](RequestId id, int steps) {
    return static_cast<double>(device.busy_ns + device.busy_row_ns * largest_step(bench, id, steps));
  };
  const RequestId longer = bench.add(bench.request(random_text(1, 8000, kVocab), 2));
  EXPECT_GT(longest_ns(longer, 10), 0.7 * kStepAimNs);
  const RequestId shorter = bench.add(bench.request({1, 2, 3}, 1000));
  while (bench.stories()[shorter].tokens.empty()) ASSERT_TRUE(bench.plan() && bench.result());
  const double beside = longest_ns(longer, 10);
  EXPECT_LE(beside, kStepAimBesideNs);
  EXPECT_GT(beside, 0.6 * kStepAimBesideNs);
  for (const RequestId id : {longer, shorter}) bench.scheduler().end(id, FinishReason::kAborted);
  ASSERT_TRUE(bench.finish(20));
  bench.expect_all_right();
}

// A step takes 60 ms and 1 ms a row.
ScriptedOptions slow_device(uint32_t lookahead) {
  ScriptedOptions device{
      .block_size = 16, .blocks = 4096, .rows_max = 1024, .positions_max = 17000, .lookahead = lookahead};
  device.busy_ns = 60'000'000;
  device.busy_row_ns = 1'000'000;
  return device;
}

// As long as nothing decodes, reading weights anew for each part of a prompt costs more than it helps anybody.
TEST(Scheduler, PromptWhileNothingDecodes_GetsLongSteps) {
  SchedulerBench bench(slow_device(0), {});
  const RequestId longer = bench.add(bench.request(random_text(1, 16000, kVocab), 2));
  EXPECT_GT(largest_step(bench, longer, 12), 600u);
  const RequestId shorter = bench.add(bench.request({1, 2, 3}, 1000));
  while (bench.stories()[shorter].tokens.empty()) ASSERT_TRUE(bench.plan() && bench.result());
  EXPECT_LE(largest_step(bench, longer, 4), 140u);
  for (const RequestId id : {longer, shorter}) bench.scheduler().end(id, FinishReason::kAborted);
  ASSERT_TRUE(bench.finish(20));
  bench.expect_all_right();
}

// Who comes while two of them are under way would wait for both.
TEST(Scheduler, ALongStep_IsNotQueuedBehindAnother) {
  SchedulerBench bench(slow_device(1), {});
  const RequestId longer = bench.add(bench.request(random_text(1, 16000, kVocab), 40));
  for (int step = 0; step < 12; ++step) {
    ASSERT_TRUE(bench.plan());
    if (bench.plan()) {
      ASSERT_TRUE(bench.result());
    }
    ASSERT_TRUE(bench.result());
  }
  ASSERT_TRUE(bench.plan());
  EXPECT_GT(bench.rows_of(longer), 400u);
  EXPECT_FALSE(bench.plan());
  while (bench.stories()[longer].tokens.empty()) {
    ASSERT_TRUE(bench.result());
    ASSERT_TRUE(bench.plan());
  }
  ASSERT_TRUE(bench.plan()) << "steps that decode are";
  bench.scheduler().end(longer, FinishReason::kAborted);
  ASSERT_TRUE(bench.finish(20));
  bench.expect_all_right();
}

// Three requests fill the pool; the middle one has least to lose, and comes back before a later one is admitted.
TEST(Scheduler, Preemption_TakesWhoLosesLeastAndKeepsItsRank) {
  SchedulerBench bench({.block_size = 4, .blocks = 16, .positions_max = 64, .lookahead = 0},
                       {.enable_prefix_caching = false});
  const RequestId a = bench.add(bench.request(random_text(1, 20, kVocab), 30));
  const RequestId b = bench.add(bench.request(random_text(2, 4, kVocab), 20));
  const RequestId c = bench.add(bench.request(random_text(3, 22, kVocab), 30));
  RequestId d = 0;
  while (bench.scheduler().counters().preemptions == 0) {
    ASSERT_TRUE(bench.plan() && bench.result());
    if (d == 0) d = bench.add(bench.request(random_text(4, 4, kVocab), 2));
  }
  EXPECT_EQ(bench.rows_of(b), 0u);
  EXPECT_EQ(bench.rows_of(a), 1u);
  EXPECT_EQ(bench.rows_of(c), 1u);
  const size_t of_b = bench.stories()[b].tokens.size();
  while (bench.stories()[b].tokens.size() == of_b) {
    EXPECT_TRUE(bench.stories()[d].tokens.empty()) << "a later request was admitted first";
    ASSERT_TRUE(bench.plan() && bench.result());
  }
  ASSERT_TRUE(bench.finish(300));
  bench.expect_all_right();
}

TEST(Scheduler, Priority_RunsTheLowerNumberFirstAndPreemptsTheHigher) {
  SchedulerBench bench({.block_size = 4, .blocks = 10, .positions_max = 40, .lookahead = 0},
                       {.enable_prefix_caching = false, .policy = SchedulingPolicy::kPriority});
  Request late = bench.request(random_text(1, 16, kVocab), 20);
  late.priority = 5;
  Request urgent = bench.request(random_text(2, 8, kVocab), 20);
  urgent.priority = -1;
  const RequestId b = bench.add(late);
  const RequestId a = bench.add(urgent);
  while (!bench.stories()[a].finished) ASSERT_TRUE(bench.plan() && bench.result());
  EXPECT_GT(bench.scheduler().counters().preemptions, 0u);
  EXPECT_FALSE(bench.stories()[b].finished.has_value());
  ASSERT_TRUE(bench.finish(100));
  bench.expect_all_right();
}

TEST(Scheduler, MinTokens_ForbidsEndsUntilThenAndMergesWithTheUsersBiases) {
  SchedulerBench bench({.lookahead = 0}, {});
  Request r = bench.request({1}, 3);
  r.end_tokens = {7, 5};
  r.params.stop_token_ids = {6, 5};
  r.params.min_tokens = 1;
  r.params.logit_bias = {{9, 1.5f}, {6, 3.0f}};
  bench.add(r);
  ASSERT_TRUE(bench.plan());
  const auto biases = [&] {
    std::vector<std::pair<TokenId, float>> all;
    for (const motley_token_bias& b : bench.last_plan().biases) all.emplace_back(b.id, b.bias);
    return all;
  };
  using Biases = std::vector<std::pair<TokenId, float>>;
  EXPECT_EQ(biases(), (Biases{{5, -INFINITY}, {6, -INFINITY}, {7, -INFINITY}, {9, 1.5f}}));
  ASSERT_TRUE(bench.result() && bench.plan());
  EXPECT_EQ(biases(), (Biases{{6, 3.0f}, {9, 1.5f}}));
  ASSERT_TRUE(bench.finish(10));
  bench.expect_all_right();
}

TEST(Scheduler, Lookahead_ReadsTheUnknownTokenFromItsSlotAndCountsItAsPending) {
  SchedulerBench bench({.lookahead = 1}, {});
  Request r = bench.request({1, 2}, 5);
  r.params.frequency_penalty = 1;
  bench.add(r);
  ASSERT_TRUE(bench.plan());
  const SlotId slot = bench.last_plan().samples[0].out_slot;
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.last_plan().token_slots, std::vector<SlotId>{slot});
  EXPECT_EQ(bench.last_plan().pending, std::vector<SlotId>{slot});
  EXPECT_NE(bench.last_plan().samples[0].out_slot, slot);
  EXPECT_FALSE(bench.plan()) << "deeper than the lookahead";
  ASSERT_TRUE(bench.finish(20));
  bench.expect_all_right();
}

TEST(Scheduler, LostExecutor_TellsHowManyRowsRunAgain) {
  SchedulerBench bench({}, {});
  bench.add(bench.request({1, 2, 3, 4, 5}, 4));
  bench.add(bench.request({6, 7, 8}, 4));
  ASSERT_TRUE(bench.plan());
  ASSERT_TRUE(bench.result());
  bench.lose(bench.device(), [] {});
  EXPECT_EQ(bench.computed_again(), 8u);
  EXPECT_TRUE(bench.finish(100));
}

TEST(Scheduler, LostExecutor_WhoGoesOnGivesWayToWhoDoesNotYet) {
  SchedulerBench bench({}, {.max_num_seqs = 4, .max_num_batched_tokens = 8});
  const RequestId brief = bench.add(bench.request({1, 2}, 40));
  const RequestId wide = bench.add(bench.request(std::vector<TokenId>(70, 3), 12));
  while (bench.stories()[wide].tokens.empty()) {
    ASSERT_TRUE(bench.plan());
    ASSERT_TRUE(bench.result());
  }
  bench.lose(bench.device(), [] {});
  std::vector<uint32_t> brief_rows, wide_rows;
  const size_t told = bench.stories()[wide].tokens.size();
  while (bench.stories()[wide].tokens.size() == told) {
    ASSERT_TRUE(bench.plan());
    brief_rows.push_back(bench.rows_of(brief));
    wide_rows.push_back(bench.rows_of(wide));
    ASSERT_TRUE(bench.result());
  }
  ASSERT_GE(wide_rows.size(), 8u);
  EXPECT_GT(brief_rows[0], 0u);                        // interrupted, too
  for (size_t i = 3; i + 1 < wide_rows.size(); ++i) {  // then only every fourth step is everybody's
    EXPECT_EQ(brief_rows[i], i % 4 == 3 ? 1u : 0u) << i;
    EXPECT_EQ(wide_rows[i], i % 4 == 3 ? 7u : 8u) << i;
  }
  EXPECT_TRUE(bench.finish(100));
}

TEST(Scheduler, ResultOfAnotherStep_IsNotTrusted) {
  SchedulerBench bench({}, {});
  bench.add(bench.request({1}, 2));
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.scheduler().apply({.epoch = 1, .step = 99, .status = {}, .tokens = {}, .busy_ns = 0}, kNow).code(),
            MOTLEY_INTERNAL);
  EXPECT_EQ(bench.scheduler().apply({.epoch = 2, .step = 1, .status = {}, .tokens = {}, .busy_ns = 0}, kNow).code(),
            MOTLEY_INTERNAL);
  // A result of the right step with a token outside the vocabulary ends the request.
  EXPECT_TRUE(
      bench.scheduler()
          .apply({.epoch = 1, .step = 1, .status = {}, .tokens = {{.id = 1000, .logprob = 0, .top = {}}}, .busy_ns = 0},
                 kNow)
          .ok());
  EXPECT_EQ(bench.stories()[1].finished, FinishReason::kError);
}

}  // namespace
}  // namespace motley
