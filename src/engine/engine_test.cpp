#include "engine/engine.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "engine/testing/inbox.hpp"
#include "engine/testing/scripted_executor.hpp"

namespace motley {
namespace {

using testing::expected_tokens;
using ::testing::HasSubstr;
using testing::Inbox;
using testing::request_of;
using testing::ScriptedExecutor;
using testing::ScriptedOptions;
using testing::text_of;

TEST(Engine, OneRequest_GivesTheTokensOfItsText) {
  ScriptedExecutor executor({});
  Inbox inbox;
  auto engine = std::move(Engine::create(executor, {})).value();
  const auto id = engine->submit(request_of(inbox, text_of(1, 11), 20));
  ASSERT_TRUE(id.ok()) << id.error().to_string();
  const auto story = inbox.wait(*id);
  EXPECT_EQ(story.finished, FinishReason::kLength);
  EXPECT_EQ(story.tokens, expected_tokens(text_of(1, 11), 20));
  EXPECT_THAT(executor.violations(), ::testing::IsEmpty());
}

TEST(Engine, ManyThreads_EveryRequestGetsItsOwnTokens) {
  ScriptedExecutor executor({.blocks = 128});
  Inbox inbox;
  auto engine = std::move(Engine::create(executor, {.max_num_seqs = 32})).value();
  constexpr uint32_t kThreads = 4, kEach = 50;
  std::vector<std::vector<RequestId>> ids(kThreads, std::vector<RequestId>(kEach));
  {
    std::vector<std::jthread> callers;
    for (uint32_t t = 0; t < kThreads; ++t)
      callers.emplace_back([&, t] {
        for (uint32_t i = 0; i < kEach; ++i) {
          ids[t][i] = engine->submit(request_of(inbox, text_of(t * kEach + i, 5 + i % 20), 1 + i % 30)).value();
          if (i % 3 == 2) engine->abort(ids[t][i]);
          (void)engine->stats();
        }
      });
  }
  for (uint32_t t = 0; t < kThreads; ++t)
    for (uint32_t i = 0; i < kEach; ++i) {
      const auto story = inbox.wait(ids[t][i]);
      auto expected = expected_tokens(text_of(t * kEach + i, 5 + i % 20), 1 + i % 30);
      if (story.finished == FinishReason::kAborted) {
        EXPECT_EQ(i % 3, 2u);
        expected.resize(story.tokens.size());
      }
      EXPECT_EQ(story.tokens, expected);
    }
  EXPECT_TRUE(engine->drain().take());
  EXPECT_THAT(executor.violations(), ::testing::IsEmpty());
}

TEST(Engine, Lookahead_PlansTheNextStepWhileOneRuns) {
  ScriptedExecutor executor({.lookahead = 1, .manual = true});
  Inbox inbox;
  auto engine = std::move(Engine::create(executor, {})).value();
  const RequestId id = engine->submit(request_of(inbox, text_of(1, 3), 4)).value();
  executor.wait_pending(2);
  EXPECT_EQ(inbox.tokens(id), 0u);
  EXPECT_EQ(executor.pending(), 2u);
  while (executor.steps_run() < 4) {
    executor.wait_pending(1);
    executor.run_next();
  }
  EXPECT_EQ(inbox.wait(id).tokens, expected_tokens(text_of(1, 3), 4));
}

TEST(Engine, Abort_EndsTheRequestWithoutAnotherStep) {
  ScriptedExecutor executor({.lookahead = 0, .manual = true});
  Inbox inbox;
  auto engine = std::move(Engine::create(executor, {})).value();
  const RequestId kept = engine->submit(request_of(inbox, text_of(1, 3), 3)).value();
  executor.wait_pending(1);
  const RequestId gone = engine->submit(request_of(inbox, text_of(2, 3), 100)).value();
  executor.run_next();
  executor.wait_pending(1);
  engine->abort(gone);
  EXPECT_EQ(inbox.wait(gone).finished, FinishReason::kAborted);  // while its step is still under way
  engine->abort(gone);
  engine->abort(12345);
  executor.run_next();
  executor.wait_pending(1);
  executor.run_next();
  EXPECT_EQ(inbox.wait(kept).tokens, expected_tokens(text_of(1, 3), 3));
  EXPECT_TRUE(engine->drain().take());
  EXPECT_EQ(engine->stats().finished_abort, 1u);
  EXPECT_EQ(executor.steps_run(), 3u);
}

TEST(Engine, Finish_EndsTheRequestAsAStopAndCountsItInFull) {
  ScriptedExecutor executor({.lookahead = 0, .manual = true});
  Inbox inbox;
  auto engine = std::move(Engine::create(executor, {})).value();
  const RequestId stopped = engine->submit(request_of(inbox, text_of(1, 3), 100)).value();
  executor.wait_pending(1);
  executor.run_next();
  inbox.wait_tokens(stopped, 1);
  executor.wait_pending(1);
  engine->finish(stopped);
  const auto story = inbox.wait(stopped);  // while its step is still under way
  EXPECT_EQ(story.finished, FinishReason::kStop);
  EXPECT_FALSE(story.last.stop_token.has_value());
  EXPECT_TRUE(story.last.status.ok());
  engine->abort(stopped);
  engine->finish(12345);
  executor.run_next();
  // One that has no token yet ends as well; there is nothing to time.
  const RequestId early = engine->submit(request_of(inbox, text_of(2, 3), 100)).value();
  engine->finish(early);
  engine->abort(early);
  EXPECT_EQ(inbox.wait(early).finished, FinishReason::kStop);
  while (executor.run_next()) {
  }
  EXPECT_TRUE(engine->drain().take());
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.finished_stop, 2u);
  EXPECT_EQ(stats.finished_abort, 0u);
  for (const Histogram* times : {&stats.e2e_s, &stats.queue_s, &stats.prefill_s, &stats.decode_s, &stats.inference_s})
    EXPECT_EQ(times->total(), 1u);
  EXPECT_DOUBLE_EQ(stats.prompt_tokens_per_request.sum, 3);
  EXPECT_DOUBLE_EQ(stats.generated_tokens_per_request.sum, 1);
}

TEST(Engine, PromptTokens_AreToldApartByWhereTheyCameFrom) {
  ScriptedExecutor executor({.block_size = 4});
  Inbox inbox;
  auto engine = std::move(Engine::create(executor, {})).value();
  for (int i = 0; i < 2; ++i) inbox.wait(engine->submit(request_of(inbox, text_of(1, 10), 2)).value());
  EXPECT_TRUE(engine->drain().take());
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.prompt_tokens, 20u);
  EXPECT_EQ(stats.prompt_tokens_cached, 8u);
  EXPECT_EQ(stats.prefill_computed_tokens_per_request.total(), 2u);
  EXPECT_DOUBLE_EQ(stats.prefill_computed_tokens_per_request.sum, 10 + 2);
}

TEST(Engine, BadRequests_AreRefusedAtOnce) {
  ScriptedExecutor executor({.manual = true});
  Inbox inbox;
  auto engine = std::move(Engine::create(executor, {.max_model_len = 64, .queue_limit = 2})).value();
  const auto refused = [&](Request request, Code code, const char* text) {
    const auto answer = engine->submit(std::move(request));
    ASSERT_FALSE(answer.ok()) << text;
    EXPECT_EQ(answer.error().code(), code);
    EXPECT_THAT(answer.error().message(), HasSubstr(text));
  };
  refused(request_of(inbox, {}, 4), MOTLEY_INVALID_ARGUMENT, "at least one token");
  refused(request_of(inbox, text_of(1, 64), 4), MOTLEY_INVALID_ARGUMENT, "maximum model length of 64");
  refused(request_of(inbox, {1, 1000}, 4), MOTLEY_INVALID_ARGUMENT, "prompt token ids");
  refused(request_of(inbox, {-1}, 4), MOTLEY_INVALID_ARGUMENT, "prompt token ids");
  refused(request_of(inbox, {1}, 0), MOTLEY_INVALID_ARGUMENT, "max_tokens");
  Request bad_end = request_of(inbox, {1}, 4);
  bad_end.end_tokens = {1000};
  refused(bad_end, MOTLEY_INVALID_ARGUMENT, "end_tokens");
  Request deaf = request_of(inbox, {1}, 4);
  deaf.on_update = nullptr;
  refused(deaf, MOTLEY_INVALID_ARGUMENT, "on_update");
  EXPECT_TRUE(engine->submit(request_of(inbox, text_of(1, 63), 100)).ok());
}

TEST(Engine, FullQueue_IsRefusedAsExhausted) {
  ScriptedExecutor executor({.lookahead = 0, .manual = true});
  Inbox inbox;
  auto engine = std::move(Engine::create(executor, {.max_num_seqs = 1, .queue_limit = 2})).value();
  const RequestId first = engine->submit(request_of(inbox, {1}, 2)).value();
  executor.wait_pending(1);  // the first has left the queue
  Code code = MOTLEY_OK;
  std::vector<RequestId> taken;
  for (int i = 0; i < 4 && code == MOTLEY_OK; ++i) {
    const auto answer = engine->submit(request_of(inbox, {2}, 2));
    if (answer.ok())
      taken.push_back(*answer);
    else
      code = answer.error().code();
  }
  EXPECT_EQ(code, MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_GE(taken.size(), 1u);
  EXPECT_LE(taken.size(), 2u);
  for (size_t i = 0; i < 2 * (1 + taken.size()); ++i) {
    executor.wait_pending(1);
    executor.run_next();
  }
  EXPECT_EQ(inbox.wait(first).tokens.size(), 2u);
  for (const RequestId id : taken) EXPECT_EQ(inbox.wait(id).tokens.size(), 2u);
}

TEST(Engine, Drain_RefusesNewRequestsAndEndsWithTheLast) {
  ScriptedExecutor executor({.lookahead = 0, .manual = true});
  Inbox inbox;
  auto engine = std::move(Engine::create(executor, {})).value();
  const RequestId id = engine->submit(request_of(inbox, {1}, 1)).value();
  executor.wait_pending(1);
  Future<bool> drained = engine->drain();
  EXPECT_EQ(engine->submit(request_of(inbox, {1}, 1)).error().code(), MOTLEY_UNAVAILABLE);
  EXPECT_FALSE(drained.ready());
  executor.run_next();
  EXPECT_TRUE(drained.take());
  EXPECT_EQ(inbox.wait(id).finished, FinishReason::kLength);
}

TEST(Engine, FailedStep_EndsOnlyItsRequests) {
  ScriptedExecutor executor({.lookahead = 0, .manual = true});
  Inbox inbox;
  auto engine = std::move(Engine::create(executor, {})).value();
  const RequestId lost = engine->submit(request_of(inbox, text_of(1, 9), 5)).value();
  executor.wait_pending(1);
  const RequestId kept =
      engine->submit(request_of(inbox, text_of(1, 9), 2)).value();  // same text: nothing bad is shared
  executor.fail_next(Status(MOTLEY_INTERNAL, "a kernel failed"));
  executor.run_next();
  const auto story = inbox.wait(lost);
  EXPECT_EQ(story.finished, FinishReason::kError);
  EXPECT_THAT(story.last.status.message(), HasSubstr("a kernel failed"));
  for (int i = 0; i < 2; ++i) {
    executor.wait_pending(1);
    executor.run_next();
  }
  EXPECT_EQ(inbox.wait(kept).tokens, expected_tokens(text_of(1, 9), 2));
  EXPECT_TRUE(engine->health().ok());
  EXPECT_TRUE(engine->drain().take());
  EXPECT_EQ(engine->stats().finished_error, 1u);
}

TEST(Engine, AReplicaWhoseStepsFail_IsTold_WhileTheOtherServes) {
  ScriptedOptions options{.manual = true};
  for (uint32_t lane = 0; lane < 2; ++lane) {
    options.pools.push_back({.block_size = 4, .blocks = 64, .share = 0.5});
    options.lanes.push_back({.pool = lane, .rows_max = 64});
  }
  ScriptedExecutor executor(options);
  Inbox inbox;
  auto engine = std::move(Engine::create(executor, {})).value();
  const auto serve_two = [&](bool one_fails) {
    const RequestId ids[] = {engine->submit(request_of(inbox, {1}, 1)).value(),
                             engine->submit(request_of(inbox, {2}, 1)).value()};
    executor.wait_pending(2);
    if (one_fails) executor.fail_next(Status(MOTLEY_INTERNAL, "SIM:1: a kernel failed"));
    executor.run_next(1);
    executor.run_next(0);
    int failed = 0;
    for (const RequestId id : ids) failed += inbox.wait(id).finished == FinishReason::kError ? 1 : 0;
    EXPECT_EQ(failed, one_fails ? 1 : 0);
  };
  for (uint32_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(engine->trouble().ok());
    serve_two(true);
  }
  EXPECT_EQ(engine->trouble().code(), MOTLEY_INTERNAL);
  EXPECT_THAT(engine->trouble().message(), HasSubstr("the last 3 steps of lane 1 failed"));
  EXPECT_THAT(engine->trouble().message(), HasSubstr("SIM:1: a kernel failed"));
  for (uint32_t i = 0; i < 16; ++i) {  // the other one takes as many first
    const RequestId id = engine->submit(request_of(inbox, {1}, 1)).value();
    executor.wait_pending(1);
    EXPECT_TRUE(executor.run_next(0));
    EXPECT_EQ(inbox.wait(id).finished, FinishReason::kLength);
  }
  serve_two(false);
  EXPECT_TRUE(engine->trouble().ok());
}

TEST(Engine, UnavailableExecutor_EndsEverything) {
  ScriptedExecutor executor({.lookahead = 1, .manual = true});
  Inbox inbox;
  auto engine = std::move(Engine::create(executor, {.max_num_seqs = 1})).value();
  const RequestId running = engine->submit(request_of(inbox, {1}, 50)).value();
  const RequestId waiting = engine->submit(request_of(inbox, {2}, 50)).value();
  executor.wait_pending(2);
  executor.fail_next(Status(MOTLEY_UNAVAILABLE, "the device is lost"));
  executor.run_next();
  EXPECT_EQ(inbox.wait(running).finished, FinishReason::kError);
  EXPECT_EQ(inbox.wait(waiting).finished, FinishReason::kError);
  EXPECT_EQ(engine->health().code(), MOTLEY_UNAVAILABLE);
  const auto answer = engine->submit(request_of(inbox, {1}, 1));
  EXPECT_EQ(answer.error().code(), MOTLEY_UNAVAILABLE);
  EXPECT_THAT(answer.error().message(), HasSubstr("the device is lost"));
  EXPECT_TRUE(engine->drain().take());
}

TEST(Engine, Destruction_AbortsWhatIsLeft) {
  ScriptedExecutor executor({.manual = true});
  Inbox inbox;
  RequestId id = 0;
  {
    auto engine = std::move(Engine::create(executor, {})).value();
    id = engine->submit(request_of(inbox, {1}, 50)).value();
    executor.wait_pending(1);
  }
  EXPECT_EQ(inbox.wait(id).finished, FinishReason::kAborted);
  executor.run_next();  // a result that comes later finds nobody
}

TEST(Engine, Stats_TellOfWhatRan) {
  ManualClock clock;
  ScriptedExecutor executor({.lookahead = 0, .manual = true});
  Inbox inbox;
  auto engine = std::move(Engine::create(executor, {}, clock)).value();
  const RequestId id = engine->submit(request_of(inbox, text_of(1, 10), 3)).value();
  for (int i = 0; i < 3; ++i) {
    executor.wait_pending(1);
    clock.advance_ns(100'000'000);
    executor.run_next();
  }
  inbox.wait(id);
  EXPECT_TRUE(engine->drain().take());
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.steps, 3u);
  EXPECT_EQ(stats.prompt_tokens, 10u);
  EXPECT_EQ(stats.generated_tokens, 3u);
  EXPECT_EQ(stats.finished_length, 1u);
  EXPECT_EQ(stats.prefix_queries, 10u);
  EXPECT_EQ(stats.kv_blocks_used, 0u);
  EXPECT_EQ(stats.kv_blocks_total, 256u);
  EXPECT_EQ(stats.iteration_tokens.total(), 3u);
  EXPECT_DOUBLE_EQ(stats.iteration_tokens.sum, 12);
  EXPECT_DOUBLE_EQ(stats.ttft_s.sum, 0.1);
  EXPECT_EQ(stats.inter_token_s.total(), 2u);
  EXPECT_DOUBLE_EQ(stats.inter_token_s.sum, 0.2);
  EXPECT_DOUBLE_EQ(stats.e2e_s.sum, 0.3);
  EXPECT_DOUBLE_EQ(stats.decode_s.sum, 0.2);
  EXPECT_DOUBLE_EQ(stats.time_per_output_token_s.sum, 0.1);
  EXPECT_DOUBLE_EQ(stats.max_tokens_per_request.sum, 3);
}

TEST(Engine, Stats_TellOfEveryPoolAndLane) {
  ScriptedOptions options{.manual = true};
  options.pools = {{.block_size = 4, .blocks = 8}, {.block_size = 4, .blocks = 64}};
  options.lanes.resize(3);
  for (LaneDescription& lane : options.lanes) lane.rows_max = 64;
  options.lanes[1].pool = options.lanes[2].pool = 1;
  options.lanes[1].role = LaneRole::kPrefill;
  options.lanes[2].role = LaneRole::kDecode;
  ScriptedExecutor executor(options);
  Inbox inbox;
  auto engine = std::move(Engine::create(executor, {})).value();
  const RequestId small = engine->submit(request_of(inbox, text_of(1, 10), 3)).value();
  executor.wait_pending(1);
  const RequestId large = engine->submit(request_of(inbox, text_of(2, 50), 3)).value();
  executor.wait_pending(2);  // side by side
  while (executor.run_next(1)) {
  }
  EXPECT_EQ(inbox.wait_tokens(large, 1).tokens.size(), 1u);
  EXPECT_EQ(inbox.tokens(small), 0u);
  while (executor.steps_run() < 6) {
    executor.wait_pending(1);
    executor.run_next();
  }
  EXPECT_EQ(inbox.wait(small).tokens, expected_tokens(text_of(1, 10), 3));
  EXPECT_EQ(inbox.wait(large).tokens, expected_tokens(text_of(2, 50), 3));
  EXPECT_TRUE(engine->drain().take());
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.kv_blocks_total, 72u);
  ASSERT_EQ(stats.pools.size(), 2u);
  EXPECT_EQ(stats.pools[0].blocks_total, 8u);
  EXPECT_EQ(stats.pools[1].blocks_total, 64u);
  EXPECT_EQ(stats.pools[1].blocks_used, 0u);
  ASSERT_EQ(stats.lanes.size(), 3u);
  const auto told = [](const LaneStats& lane) { return std::pair(lane.steps, lane.rows); };
  EXPECT_EQ(told(stats.lanes[0]), (std::pair<uint64_t, uint64_t>{3, 12}));
  EXPECT_EQ(told(stats.lanes[1]), (std::pair<uint64_t, uint64_t>{1, 50}));
  EXPECT_EQ(told(stats.lanes[2]), (std::pair<uint64_t, uint64_t>{2, 2}));
  EXPECT_EQ(stats.steps, 6u);
  EXPECT_THAT(executor.violations(), ::testing::IsEmpty());
}

TEST(Engine, ImpossibleOptions_AreRefused) {
  ScriptedExecutor executor({.block_size = 4, .blocks = 32, .rows_max = 64, .positions_max = 512});
  const auto message = [&](const EngineOptions& options) {
    const auto engine = Engine::create(executor, options);
    return engine.ok() ? std::string("accepted") : engine.error().message();
  };
  EXPECT_THAT(message({.max_model_len = 513}), HasSubstr("512 positions"));
  EXPECT_THAT(message({.max_model_len = 200}), HasSubstr("KV pool"));
  EXPECT_THAT(message({.max_model_len = 1}), HasSubstr("max_model_len"));
  EXPECT_THAT(message({.max_num_batched_tokens = 65}), HasSubstr("64 rows"));
  EXPECT_THAT(message({.max_num_seqs = 0}), HasSubstr("max_num_seqs"));
  EXPECT_THAT(message({.max_concurrent_prefills = 0}), HasSubstr("max_concurrent_prefills"));
  EXPECT_THAT(message({.enable_chunked_prefill = false}), HasSubstr("chunked prefill"));
  EXPECT_EQ(message({.max_model_len = 64, .enable_chunked_prefill = false}), "accepted");
  const auto engine = std::move(Engine::create(executor, {})).value();
  EXPECT_EQ(engine->max_model_len(), 128u);
  EXPECT_EQ(engine->options().max_num_batched_tokens, 64u);
  EXPECT_EQ(engine->options().max_num_seqs, 64u);
}

}  // namespace
}  // namespace motley
