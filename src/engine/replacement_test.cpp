// The engine while its executor is lost, or replaced by plan.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "engine/engine.hpp"
#include "engine/testing/inbox.hpp"
#include "engine/testing/scripted_executor.hpp"

namespace motley {
namespace {

using testing::expected_tokens;
using ::testing::HasSubstr;
using testing::Inbox;
using ::testing::IsEmpty;
using testing::request_of;
using testing::ScriptedExecutor;
using testing::ScriptedOptions;
using testing::text_of;

constexpr uint64_t kForever = UINT64_MAX;

// Holds back who passes until it is opened.
class Gate {
 public:
  void open() {
    std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void pass() {
    std::unique_lock lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
  }
  void wait_arrived() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return arrived_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  int arrived_ = 0;
};

// One scripted device after another; the n-th runs lives[n] steps. All stay, so that each can be asked what it saw.
class Devices {
 public:
  Devices(ScriptedOptions options, std::vector<uint64_t> lives) : options_(options), lives_(std::move(lives)) {
    options_.saves = [this] { saves_ = true; };
    (void)next();
  }

  ScriptedExecutor& first() {
    std::lock_guard lock(mutex_);
    return *made_.front();
  }
  ScriptedExecutor& newest() {
    std::lock_guard lock(mutex_);
    return *made_.back();
  }
  ScriptedOptions& options() { return options_; }  // of those to come
  Result<Executor*> next() {
    std::lock_guard lock(mutex_);
    if (!made_.empty() && made_.back()->pending() != 0) ADD_FAILURE() << "replaced with steps under way";
    if (made_.size() == lives_.size()) return error(MOTLEY_UNAVAILABLE, "no device is left");
    options_.epoch = made_.size() + 1;
    options_.steps_max = lives_[made_.size()];
    made_.push_back(std::make_unique<ScriptedExecutor>(options_));
    return made_.back().get();
  }
  // With the KV of the one before.
  Result<Executor*> next_with_kv() {
    std::lock_guard lock(mutex_);
    options_.epoch = made_.size() + 1;
    made_.push_back(std::make_unique<ScriptedExecutor>(options_, made_.back().get()));
    return made_.back().get();
  }
  uint64_t rows_run() {
    std::lock_guard lock(mutex_);
    uint64_t rows = 0;
    for (const auto& device : made_) rows += device->rows_run();
    return rows;
  }
  // Its steps, by hand, until it is replaced. Where its KV moves, not before some is being saved, as far as that does
  // not wait for a step itself: the thread that saves may come late, when all requests have ended.
  void run_first_until(const Future<Status>& replaced) {
    for (int looks = 0; !replaced.ready(); ++looks) {
      if (!options_.moves_kv || saves_ || looks > 20) first().run_next();
      std::this_thread::sleep_for(std::chrono::microseconds(options_.moves_kv ? 1000 : 50));
    }
  }
  RecoverFn recover() {
    return [this](const Status&) { return next(); };
  }
  void expect_no_violations() {
    std::lock_guard lock(mutex_);
    for (const auto& device : made_) EXPECT_THAT(device->violations(), IsEmpty());
  }

 private:
  std::mutex mutex_;
  std::atomic<bool> saves_ = false;  // one has begun
  ScriptedOptions options_;
  const std::vector<uint64_t> lives_;
  std::vector<std::unique_ptr<ScriptedExecutor>> made_;
};

std::unique_ptr<Engine> engine_on(Devices& devices, const EngineOptions& options = {}) {
  return std::move(Engine::create(devices.first(), options, system_clock(), devices.recover())).value();
}

// A few requests of different lengths, one of which ends at a stop token, with what each gets undisturbed.
struct Asked {
  RequestId id;
  std::vector<TokenId> expected;
  FinishReason finished;
};
std::vector<Asked> ask(Engine& engine, Inbox& inbox) {
  std::vector<Asked> asked;
  for (uint32_t i = 0; i < 5; ++i) {
    Request request = request_of(inbox, text_of(i, 3 + 7 * i), 4 + 3 * i);
    std::vector<TokenId> expected = expected_tokens(request.prompt, request.params.max_tokens);
    FinishReason finished = FinishReason::kLength;
    if (i == 3) {
      request.params.stop_token_ids = {expected[6]};
      expected.resize(7);
      finished = FinishReason::kStop;
    }
    asked.push_back({engine.submit(std::move(request)).value(), expected, finished});
  }
  return asked;
}

void expect_answers(Inbox& inbox, const std::vector<Asked>& all) {
  for (const Asked& asked : all) {
    const Inbox::Story story = inbox.wait(asked.id);
    EXPECT_EQ(story.finished, asked.finished) << story.last.status.to_string();
    EXPECT_EQ(story.tokens, asked.expected) << "request " << asked.id;
  }
}

TEST(Loss, AtAnyStep_GivesTheSameTokens) {
  for (const auto& [lookahead, pipeline] : {std::pair{0u, 1u}, {1u, 1u}, {2u, 1u}, {1u, 2u}}) {
    uint64_t recoveries = 0;
    for (uint64_t life = 0; life < 40; ++life) {
      SCOPED_TRACE(::testing::Message() << "lookahead " << lookahead << ", pipeline " << pipeline << ", life " << life);
      Devices devices({.rows_max = 32, .lookahead = lookahead, .pipeline = pipeline}, {life, kForever});
      Inbox inbox;
      auto engine = engine_on(devices);
      expect_answers(inbox, ask(*engine, inbox));
      EXPECT_TRUE(engine->drain().take());
      recoveries += engine->stats().recoveries;
      EXPECT_EQ(engine->stats().kv_blocks_used, 0u);
      devices.expect_no_violations();
      if (::testing::Test::HasFailure()) return;
    }
    EXPECT_GE(recoveries, 15u);  // a life of 15 steps is too short for 16 tokens
  }
}

// One lane before and several after, and the other way round.
TEST(Loss, OtherLanesAndPoolsAfter_GivesTheSameTokens) {
  const auto with_lanes = [](bool several) {
    ScriptedOptions options{.block_size = 8, .blocks = 16, .rows_max = 32};
    if (!several) return options;
    options.pools = {{.block_size = 4, .blocks = 12}, {.block_size = 8, .blocks = 8}};
    options.lanes.resize(3);
    for (LaneDescription& lane : options.lanes) lane.rows_max = 32;
    options.lanes[0].lookahead = 1;
    options.lanes[1] = {.pool = 1, .role = LaneRole::kPrefill, .cost = {}, .rows_max = 32, .buckets = {8, 32}};
    options.lanes[2].pool = 1;
    return options;
  };
  for (uint64_t life = 0; life < 40; ++life) {
    SCOPED_TRACE(life);
    ScriptedOptions first = with_lanes(life % 2 == 0), second = with_lanes(life % 2 == 1), third = first;
    Devices devices(first, {life / 2, life / 4, kForever});
    Inbox inbox;
    uint32_t made = 0;
    auto engine = std::move(Engine::create(devices.first(), {}, system_clock(), [&](const Status&) {
                    devices.options() = ++made == 1 ? second : third;
                    return devices.next();
                  })).value();
    expect_answers(inbox, ask(*engine, inbox));
    EXPECT_TRUE(engine->drain().take());
    EXPECT_EQ(engine->stats().recoveries, made);
    EXPECT_EQ(engine->stats().kv_blocks_used, 0u);
    EXPECT_EQ(engine->stats().pools.size(), (made == 1 ? second : first).pools.empty() ? 1u : 2u);
    if (life < 30) {
      EXPECT_GE(made, 1u);
    }
    devices.expect_no_violations();
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(Loss, SeveralInARow_TheFirstStepIncluded_GivesTheSameTokens) {
  Devices devices({.lookahead = 1}, {3, 0, 0, 2, 1, kForever});
  Inbox inbox;
  auto engine = engine_on(devices);
  expect_answers(inbox, ask(*engine, inbox));
  EXPECT_TRUE(engine->drain().take());
  EXPECT_EQ(engine->stats().recoveries, 5u);
  EXPECT_EQ(engine->stats().pause_s.total(), 5u);
  EXPECT_EQ(engine->stats().replacements, 0u);
  devices.expect_no_violations();
}

TEST(Loss, RequestsInTheMeantime_QueueAndEnd) {
  Devices devices({.lookahead = 1, .manual = true}, {kForever, kForever});
  Inbox inbox;
  Gate gate;
  auto engine = std::move(Engine::create(devices.first(), {.max_num_seqs = 3}, system_clock(), [&](const Status& why) {
                  EXPECT_EQ(why.code(), MOTLEY_UNAVAILABLE);
                  gate.pass();
                  devices.options().manual = false;
                  return devices.next();
                })).value();
  const RequestId kept = engine->submit(request_of(inbox, text_of(1, 9), 12)).value();
  const RequestId aborted = engine->submit(request_of(inbox, text_of(2, 9), 12)).value();
  const RequestId stopped = engine->submit(request_of(inbox, text_of(3, 9), 12)).value();
  const RequestId waiting = engine->submit(request_of(inbox, text_of(4, 9), 12)).value();
  while (inbox.tokens(stopped) < 2) {
    devices.first().wait_pending(1);
    devices.first().run_next();
  }
  devices.first().wait_pending(2);
  devices.first().lose(Status(MOTLEY_UNAVAILABLE, "unplugged"));
  devices.first().run_next();
  devices.first().run_next();
  gate.wait_arrived();
  const RequestId late = engine->submit(request_of(inbox, text_of(5, 9), 12)).value();
  const RequestId late_aborted = engine->submit(request_of(inbox, text_of(6, 9), 12)).value();
  engine->abort(aborted);
  engine->abort(late_aborted);
  engine->finish(stopped);
  EXPECT_EQ(inbox.wait(aborted).finished, FinishReason::kAborted);
  EXPECT_EQ(inbox.wait(late_aborted).finished, FinishReason::kAborted);
  const auto story = inbox.wait(stopped);
  EXPECT_EQ(story.finished, FinishReason::kStop);
  EXPECT_EQ(story.tokens, expected_tokens(text_of(3, 9), static_cast<uint32_t>(story.tokens.size())));
  EXPECT_EQ(engine->stats().recoveries, 0u);
  EXPECT_TRUE(engine->health().ok());
  Future<bool> drained = engine->drain();
  EXPECT_FALSE(drained.ready());
  gate.open();
  EXPECT_EQ(inbox.wait(kept).tokens, expected_tokens(text_of(1, 9), 12));
  EXPECT_EQ(inbox.wait(waiting).tokens, expected_tokens(text_of(4, 9), 12));
  EXPECT_EQ(inbox.wait(late).tokens, expected_tokens(text_of(5, 9), 12));
  EXPECT_TRUE(drained.take());
  EXPECT_EQ(engine->stats().recoveries, 1u);
  devices.expect_no_violations();
}

// Results of the lost epoch that come after the loss count no more, whatever they say.
TEST(Loss, LaterStepsUnderWay_AreWaitedForAndDoNotCount) {
  Devices devices({.lookahead = 1, .manual = true}, {kForever, kForever});
  Inbox inbox;
  auto engine = engine_on(devices);
  const RequestId id = engine->submit(request_of(inbox, text_of(1, 3), 6)).value();
  devices.first().wait_pending(2);
  devices.first().fail_next(Status(MOTLEY_UNAVAILABLE, "lost"));
  devices.first().run_next();
  devices.options().manual = false;
  devices.first().run_next();  // answers OK
  EXPECT_EQ(inbox.wait(id).tokens, expected_tokens(text_of(1, 3), 6));
  EXPECT_EQ(engine->stats().recoveries, 1u);
  EXPECT_EQ(devices.newest().rows_run(), 3u + 5u);
}

TEST(Loss, ByDeadline_IsALossOnlyForWhoCanRecover) {
  for (const bool recovers : {true, false}) {
    Devices devices({.lookahead = 0, .manual = true}, {kForever, kForever});
    Inbox inbox;
    auto engine =
        std::move(Engine::create(devices.first(), {}, system_clock(), recovers ? devices.recover() : RecoverFn()))
            .value();
    const RequestId id = engine->submit(request_of(inbox, text_of(1, 3), 6)).value();
    devices.first().wait_pending(1);
    devices.options().manual = false;
    devices.first().lose(Status(MOTLEY_DEADLINE_EXCEEDED, "a worker hangs"));
    devices.first().run_next();
    EXPECT_EQ(inbox.wait(id).finished, recovers ? FinishReason::kLength : FinishReason::kError);
    EXPECT_TRUE(engine->health().ok());
    EXPECT_TRUE(engine->drain().take());
    EXPECT_EQ(engine->stats().recoveries, recovers ? 1u : 0u);
  }
}

TEST(Loss, SmallerPoolAfter_EndsOnlyWhatNoLongerFits) {
  Devices devices({.block_size = 4, .blocks = 64, .lookahead = 1, .manual = true}, {kForever, kForever});
  Inbox inbox;
  Gate gate;
  auto engine = std::move(Engine::create(devices.first(), {}, system_clock(), [&](const Status&) {
                  gate.pass();
                  devices.options().manual = false;
                  devices.options().blocks = 10;  // 40 positions
                  devices.options().slots = 6;
                  return devices.next();
                })).value();
  const auto submit = [&](uint32_t seed, uint32_t length, uint32_t tokens) {
    return engine->submit(request_of(inbox, text_of(seed, length), tokens)).value();
  };
  const RequestId small = submit(1, 10, 20), too_long = submit(2, 60, 5), grows_too_long = submit(3, 30, 30);
  const RequestId just_fits = submit(4, 30, 10);
  devices.first().wait_pending(2);  // as many as may be under way
  devices.first().lose(Status(MOTLEY_UNAVAILABLE, "lost"));
  while (devices.first().run_next()) {
  }
  gate.wait_arrived();
  const RequestId late = submit(5, 60, 5);  // the limits that it was checked against are about to shrink
  gate.open();
  EXPECT_EQ(inbox.wait(small).tokens, expected_tokens(text_of(1, 10), 20));
  EXPECT_EQ(inbox.wait(just_fits).tokens, expected_tokens(text_of(4, 30), 10));
  for (const RequestId id : {too_long, grows_too_long, late}) {
    const auto story = inbox.wait(id);
    EXPECT_EQ(story.finished, FinishReason::kError);
    EXPECT_EQ(story.last.status.code(), MOTLEY_RESOURCE_EXHAUSTED);
    EXPECT_THAT(story.last.status.message(), HasSubstr("40 positions"));
    EXPECT_EQ(story.tokens.size(), id == grows_too_long ? 10u : 0u);
  }
  EXPECT_EQ(inbox.wait(grows_too_long).tokens, expected_tokens(text_of(3, 30), 10));
  EXPECT_EQ(engine->max_model_len(), 40u);
  EXPECT_EQ(engine->options().max_num_seqs, 3u);
  const auto refused = engine->submit(request_of(inbox, text_of(1, 40), 5));
  EXPECT_EQ(refused.error().code(), MOTLEY_INVALID_ARGUMENT);
  EXPECT_TRUE(engine->drain().take());
  EXPECT_EQ(engine->stats().kv_blocks_total, 10u);
  devices.expect_no_violations();
}

TEST(Loss, RecoveryFails_EndsTheEngine) {
  Devices devices({.lookahead = 1}, {4});
  Inbox inbox;
  auto engine = engine_on(devices);
  const RequestId id = engine->submit(request_of(inbox, text_of(1, 3), 50)).value();
  const auto story = inbox.wait(id);
  EXPECT_EQ(story.finished, FinishReason::kError);
  EXPECT_EQ(story.tokens, expected_tokens(text_of(1, 3), 4));
  EXPECT_THAT(engine->health().message(), HasSubstr("no device is left"));
  EXPECT_THAT(engine->health().message(), HasSubstr("the device is lost"));
  EXPECT_EQ(engine->submit(request_of(inbox, {1}, 1)).error().code(), MOTLEY_UNAVAILABLE);
  EXPECT_EQ(engine->replace([&] { return devices.next(); }).take().code(), MOTLEY_UNAVAILABLE);
  EXPECT_TRUE(engine->drain().take());
}

TEST(Loss, WithoutEnd_EndsTheEngine) {
  Devices devices({.lookahead = 1}, std::vector<uint64_t>(100, 0));
  Inbox inbox;
  auto engine = engine_on(devices);
  const RequestId id = engine->submit(request_of(inbox, text_of(1, 3), 50)).value();
  EXPECT_EQ(inbox.wait(id).finished, FinishReason::kError);
  EXPECT_THAT(engine->health().message(), HasSubstr("in a row were lost"));
}

TEST(Loss, UnfitExecutorAfter_EndsTheEngine) {
  for (const bool old_epoch : {true, false}) {
    ScriptedExecutor first({.epoch = 5, .steps_max = 2});
    ScriptedExecutor unfit({.vocab_size = old_epoch ? 1000u : 999u, .epoch = old_epoch ? 5u : 6u});
    Inbox inbox;
    auto engine = std::move(Engine::create(first, {}, system_clock(), [&](const Status&) -> Result<Executor*> {
                    return &unfit;
                  })).value();
    const RequestId id = engine->submit(request_of(inbox, text_of(1, 3), 50)).value();
    EXPECT_EQ(inbox.wait(id).finished, FinishReason::kError);
    EXPECT_THAT(engine->health().message(), HasSubstr("epoch"));
    EXPECT_EQ(unfit.steps_run(), 0u);
  }
}

TEST(Loss, DestructionDuringRecovery_AbortsWhatIsLeft) {
  Devices devices({.lookahead = 1}, {2, kForever});
  Inbox inbox;
  Gate gate;
  RequestId id = 0;
  std::thread opener;
  {
    auto engine = std::move(Engine::create(devices.first(), {}, system_clock(), [&](const Status&) {
                    gate.pass();
                    return devices.next();
                  })).value();
    id = engine->submit(request_of(inbox, text_of(1, 3), 50)).value();
    gate.wait_arrived();
    opener = std::thread([&] {
      inbox.wait(id);  // the engine does not wait for the new executor to abort
      gate.open();
    });
  }
  opener.join();
  EXPECT_EQ(inbox.wait(id).finished, FinishReason::kAborted);
  EXPECT_EQ(devices.newest().steps_run(), 0u);
}

TEST(Replace, WhileServing_GivesTheSameTokensAndKeepsWhatRan) {
  Devices devices({.lookahead = 1, .manual = true}, {kForever, kForever});
  Inbox inbox;
  auto engine = engine_on(devices);
  const std::vector<Asked> asked = ask(*engine, inbox);
  devices.first().wait_pending(2);
  Future<Status> done = engine->replace([&] {
    devices.options().manual = false;
    return devices.next();
  });
  devices.run_first_until(done);
  EXPECT_TRUE(done.take().ok());
  expect_answers(inbox, asked);
  EXPECT_TRUE(engine->drain().take());
  EXPECT_EQ(engine->stats().replacements, 1u);
  EXPECT_EQ(engine->stats().recoveries, 0u);
  EXPECT_EQ(engine->stats().pause_s.total(), 1u);
  devices.expect_no_violations();
}

// Rows that the requests need when nothing is computed twice.
uint64_t rows_once(const std::vector<Asked>& all) {
  uint64_t rows = 0;
  for (uint32_t i = 0; i < all.size(); ++i) rows += 3 + 7 * i + all[i].expected.size() - 1;
  return rows;
}

// Whatever its steps hold of the future: nobody is in the middle of it.
void expect_nothing_again(bool moves, uint32_t lookahead, uint32_t next_lookahead, uint32_t after) {
  SCOPED_TRACE(::testing::Message() << lookahead << " then " << next_lookahead << " after " << after << " steps");
  Devices devices({.memory = {7}, .rows_max = 16, .lookahead = lookahead, .manual = true, .moves_kv = moves},
                  {kForever, kForever});
  Inbox inbox;
  auto engine = engine_on(devices, {.max_num_seqs = 3, .max_num_batched_tokens = 16});
  const std::vector<Asked> asked = ask(*engine, inbox);
  for (uint32_t i = 0; i < after; ++i) {
    devices.first().wait_pending(1);
    devices.first().run_next();
  }
  devices.options().manual = false;
  devices.options().lookahead = next_lookahead;
  if (moves) devices.options().memory = {8};
  Future<Status> done = engine->replace([&] { return moves ? devices.next() : devices.next_with_kv(); });
  devices.run_first_until(done);
  EXPECT_TRUE(done.take().ok());
  expect_answers(inbox, asked);
  EXPECT_TRUE(engine->drain().take());
  EXPECT_LE(devices.rows_run(), rows_once(asked) + 1);  // one may run behind a stop token
  EXPECT_GE(devices.rows_run(), rows_once(asked));
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.kv_blocks_moved > 0, moves);
  EXPECT_EQ(stats.kv_bytes_moved > 0, moves);
  EXPECT_EQ(stats.recomputed_tokens, 0u);
  devices.expect_no_violations();
}

TEST(Replace, InTheSameMemory_ComputesNothingAgain) {
  for (const auto& [lookahead, next_lookahead] : {std::pair{0u, 0u}, {0u, 1u}, {1u, 0u}, {1u, 1u}})
    for (uint32_t after = 1; after < 12; ++after) expect_nothing_again(false, lookahead, next_lookahead, after);
}

TEST(Replace, InOtherMemoryThatTheKvMovesTo_ComputesNothingAgain) {
  for (const auto& [lookahead, next_lookahead] : {std::pair{0u, 0u}, {0u, 1u}, {1u, 0u}, {1u, 1u}})
    for (uint32_t after = 1; after < 12; ++after) expect_nothing_again(true, lookahead, next_lookahead, after);
}

// Where KV cannot be saved, it is computed again; where that is because a device is lost, the executor is not replaced
// by plan: its next step tells.
TEST(Replace, KvIsNotSaved_ComputesAgain_OrStaysWhereADeviceIsLost) {
  for (const Code code : {MOTLEY_RESOURCE_EXHAUSTED, MOTLEY_UNAVAILABLE}) {
    Devices devices({.manual = true, .moves_kv = true}, {kForever, kForever});
    devices.first().fail_saving(Status(code, "scripted"));
    Inbox inbox;
    auto engine = engine_on(devices);
    const std::vector<Asked> asked = ask(*engine, inbox);
    for (int i = 0; i < 3; ++i) {
      devices.first().wait_pending(1);
      devices.first().run_next();
    }
    devices.options().manual = false;
    Future<Status> done = engine->replace([&] { return devices.next(); });
    devices.run_first_until(done);
    const bool lost = code == MOTLEY_UNAVAILABLE;
    EXPECT_EQ(done.take().code(), lost ? MOTLEY_UNAVAILABLE : MOTLEY_OK);
    if (lost) {
      for (const Asked& each : asked)
        while (inbox.tokens(each.id) < each.expected.size())
          if (!devices.first().run_next()) std::this_thread::yield();
    }
    expect_answers(inbox, asked);
    const EngineStats stats = engine->stats();
    EXPECT_EQ(stats.replacements, lost ? 0u : 1u);
    EXPECT_EQ(stats.recomputed_tokens > 0, !lost);
    devices.expect_no_violations();
  }
}

TEST(Replace, InOtherMemoryOrWithFewerBlocks_ComputesAgain) {
  for (const bool other : {true, false}) {
    Devices devices({.memory = {7}, .manual = true}, {kForever, kForever});
    Inbox inbox;
    auto engine = engine_on(devices);
    const std::vector<Asked> asked = ask(*engine, inbox);
    for (int i = 0; i < 3; ++i) {
      devices.first().wait_pending(1);
      devices.first().run_next();
    }
    devices.options().manual = false;
    if (other) devices.options().memory = {8};
    if (!other) devices.options().blocks -= 1;
    Future<Status> done = engine->replace([&] { return devices.next(); });
    devices.run_first_until(done);
    EXPECT_TRUE(done.take().ok());
    expect_answers(inbox, asked);
    EXPECT_TRUE(engine->drain().take());
    EXPECT_GT(devices.rows_run(), rows_once(asked));
    devices.expect_no_violations();
  }
}

// What a lost executor wrote last is not known, whatever its memory.
TEST(Loss, InTheSameMemory_ComputesAgain) {
  Devices devices({.memory = {7}, .lookahead = 1}, {4, kForever});
  Inbox inbox;
  auto engine = engine_on(devices);
  expect_answers(inbox, ask(*engine, inbox));
  EXPECT_TRUE(engine->drain().take());
  EXPECT_EQ(engine->stats().recoveries, 1u);
  devices.expect_no_violations();
}

TEST(Replace, GivesNone_EndsTheEngine) {
  Devices devices({}, {kForever});
  Inbox inbox;
  auto engine = engine_on(devices);
  EXPECT_EQ(engine->replace([]() -> Result<Executor*> { return nullptr; }).take().code(), MOTLEY_UNAVAILABLE);
  EXPECT_EQ(engine->health().code(), MOTLEY_UNAVAILABLE);
  EXPECT_FALSE(engine->submit(request_of(inbox, text_of(1, 5), 4)).ok());
}

TEST(Replace, Fails_TheEarlierExecutorGoesOn) {
  Devices devices({.lookahead = 1}, {kForever});
  Inbox inbox;
  auto engine = engine_on(devices);
  const std::vector<Asked> asked = ask(*engine, inbox);
  const Status status = engine->replace([&] { return devices.next(); }).take();
  EXPECT_EQ(status.code(), MOTLEY_UNAVAILABLE);
  EXPECT_THAT(status.message(), HasSubstr("no device is left"));
  expect_answers(inbox, asked);
  EXPECT_TRUE(engine->health().ok());
  EXPECT_EQ(engine->stats().replacements, 0u);
  devices.expect_no_violations();
}

TEST(Replace, SeveralAndALossAmongThem_AllHappenInTurn) {
  Devices devices({.lookahead = 1, .manual = true}, {kForever, kForever, kForever, kForever});
  Inbox inbox;
  auto engine = engine_on(devices);
  const std::vector<Asked> asked = ask(*engine, inbox);
  devices.first().wait_pending(2);
  const auto make = [&] { return devices.next(); };
  devices.options().manual = false;
  Future<Status> second = engine->replace(make), third = engine->replace(make);
  devices.first().lose(Status(MOTLEY_UNAVAILABLE, "lost while it was to be replaced"));
  while (devices.first().run_next()) {
  }
  EXPECT_TRUE(second.take().ok());
  EXPECT_TRUE(third.take().ok());
  expect_answers(inbox, asked);
  EXPECT_TRUE(engine->drain().take());
  EXPECT_EQ(engine->stats().replacements, 2u);
  EXPECT_EQ(engine->stats().recoveries, 1u);
  devices.expect_no_violations();
}

TEST(Replace, OfAnIdleEngine_HappensAtOnce) {
  Devices devices({}, {kForever, kForever});
  Inbox inbox;
  auto engine = engine_on(devices);
  EXPECT_TRUE(engine->replace([&] { return devices.next(); }).take().ok());
  expect_answers(inbox, ask(*engine, inbox));
  EXPECT_EQ(devices.first().steps_run(), 0u);
  devices.expect_no_violations();
}

TEST(BetweenSteps, WhileServing_NoStepIsUnderWayAndTheExecutorStays) {
  ScriptedOptions options;
  options.manual = true;
  Devices devices(options, {kForever});
  Inbox inbox;
  auto engine = engine_on(devices);
  const std::vector<Asked> asked = ask(*engine, inbox);
  std::jthread device([&](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      devices.first().run_next();
    }
  });
  inbox.wait_tokens(asked[0].id, 1);
  size_t under_way = 0;
  for (int i = 0; i < 3; ++i) {
    EXPECT_GT(engine->stats().running, 0u) << "there is nothing to stand between";
    const Status status = engine
                              ->between_steps([&] {
                                std::this_thread::sleep_for(std::chrono::milliseconds(1));
                                under_way += devices.first().pending();
                                return ok_status();
                              })
                              .take();
    EXPECT_TRUE(status.ok()) << status.to_string();
  }
  expect_answers(inbox, asked);
  device.request_stop();
  device.join();
  EXPECT_EQ(under_way, 0u);
  EXPECT_EQ(engine->stats().replacements, 0u);
  devices.expect_no_violations();
}

TEST(BetweenSteps, WorkFails_IsToldAndTheEngineGoesOn) {
  Devices devices({}, {kForever});
  Inbox inbox;
  auto engine = engine_on(devices);
  const std::vector<Asked> asked = ask(*engine, inbox);
  const Status status = engine->between_steps([] { return Status(MOTLEY_CANCELLED, "enough"); }).take();
  EXPECT_EQ(status.code(), MOTLEY_CANCELLED);
  expect_answers(inbox, asked);
  EXPECT_TRUE(engine->health().ok());
}

TEST(BetweenSteps, TheEngineEnds_WorkThatWaitsIsRefused) {
  Devices devices({}, {kForever});
  auto engine = engine_on(devices);
  Gate gate;
  Future<Status> first = engine->between_steps([&] {
    gate.pass();
    return ok_status();
  });
  gate.wait_arrived();
  Future<Status> second = engine->between_steps([] { return ok_status(); });
  std::thread ends([&] { engine.reset(); });
  EXPECT_EQ(second.take().code(), MOTLEY_UNAVAILABLE);
  gate.open();
  ends.join();
  EXPECT_EQ(first.take().code(), MOTLEY_UNAVAILABLE);
}

}  // namespace
}  // namespace motley
