#include "llm/serving_gate.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <thread>

#include "engine/testing/inbox.hpp"
#include "engine/testing/scripted_executor.hpp"

namespace motley {
namespace {

using testing::expected_tokens;
using testing::Inbox;
using testing::request_of;
using testing::ScriptedExecutor;
using testing::text_of;
using Milliseconds = std::chrono::milliseconds;

constexpr uint32_t kTokens = 200;

// An engine whose executor runs a step every millisecond, and a request under way that takes 200 of them.
class ServingGateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    id_ = engine_->submit(request_of(inbox_, text_of(1, 5), kTokens)).value();
    inbox_.wait_tokens(id_, 1);
  }
  void TearDown() override {
    EXPECT_EQ(inbox_.wait(id_).tokens, expected_tokens(text_of(1, 5), kTokens));
    device_.request_stop();
    device_.join();
    engine_.reset();
  }
  bool ended() { return inbox_.tokens(id_) == kTokens; }

  Inbox inbox_;
  ScriptedExecutor executor_{{.manual = true}};
  std::unique_ptr<Engine> engine_ = std::move(Engine::create(executor_, {})).value();
  std::jthread device_{[this](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      std::this_thread::sleep_for(Milliseconds(1));
      executor_.run_next();
    }
  }};
  std::stop_source stop_;
  ServingGate gate_{*engine_, stop_.get_token()};
  RequestId id_ = 0;
};

TEST_F(ServingGateTest, Entered_NoStepRunsUntilItIsLeft) {
  ASSERT_TRUE(gate_.enter().ok());
  const uint64_t steps = executor_.steps_run();
  std::this_thread::sleep_for(Milliseconds(20));
  EXPECT_EQ(executor_.pending(), 0u);
  EXPECT_EQ(executor_.steps_run(), steps);
  EXPECT_FALSE(ended());
  EXPECT_TRUE(gate_.leave().ok());
}

TEST_F(ServingGateTest, Left_WhileARequestRuns_ReturnsAfterNineteenTimesAsLong) {
  ASSERT_TRUE(gate_.enter().ok());
  const auto began = std::chrono::steady_clock::now();
  std::this_thread::sleep_for(Milliseconds(5));
  const auto held = std::chrono::steady_clock::now() - began;
  EXPECT_FALSE(ended());
  EXPECT_TRUE(gate_.leave().ok());
  EXPECT_GE(std::chrono::steady_clock::now() - began, 20 * held);
}

TEST_F(ServingGateTest, NobodyWaitsForTheFigures_IsCancelled) {
  ASSERT_TRUE(gate_.enter().ok());
  stop_.request_stop();
  EXPECT_EQ(gate_.leave().code(), MOTLEY_CANCELLED);
  EXPECT_EQ(gate_.enter().code(), MOTLEY_CANCELLED);
}

TEST_F(ServingGateTest, NotLeft_TheEngineGoesOnAfterASecond) {
  ASSERT_TRUE(gate_.enter().ok());
  EXPECT_FALSE(ended());
  const auto began = std::chrono::steady_clock::now();
  inbox_.wait(id_);
  EXPECT_GE(std::chrono::steady_clock::now() - began, Milliseconds(900));
  EXPECT_TRUE(gate_.leave().ok());
}

}  // namespace
}  // namespace motley
