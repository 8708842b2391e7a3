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

constexpr uint32_t kTokens = 400;

// An engine and, where a test asks for it, a request under way that lasts as long as the test needs.
class ServingGateTest : public ::testing::Test {
 protected:
  RequestId begin() {
    const RequestId id = engine_->submit(request_of(inbox_, text_of(1, 5), kTokens)).value();
    inbox_.wait_tokens(id, 1);
    return id;
  }
  void expect_whole(RequestId id) {
    const auto expected = expected_tokens(text_of(1, 5), kTokens);
    EXPECT_EQ(inbox_.wait(id).tokens, expected);
  }

  Inbox inbox_;
  ScriptedExecutor executor_{{}};
  std::unique_ptr<Engine> engine_ = std::move(Engine::create(executor_, {})).value();
  std::stop_source stop_;
  ServingGate gate_{*engine_, stop_.get_token()};
};

TEST_F(ServingGateTest, Entered_NoStepRunsUntilItIsLeft) {
  const RequestId id = begin();
  ASSERT_TRUE(gate_.enter().ok());
  const uint64_t steps = executor_.steps_run();
  std::this_thread::sleep_for(Milliseconds(20));
  EXPECT_EQ(executor_.pending(), 0u);
  EXPECT_EQ(executor_.steps_run(), steps);
  EXPECT_TRUE(gate_.leave().ok());
  expect_whole(id);
}

TEST_F(ServingGateTest, Left_WhileARequestWaits_ReturnsAfterNineteenTimesAsLong) {
  ASSERT_TRUE(gate_.enter().ok());
  const auto began = std::chrono::steady_clock::now();
  std::this_thread::sleep_for(Milliseconds(5));
  (void)engine_->submit(request_of(inbox_, text_of(1, 5), kTokens));
  while (engine_->stats().waiting == 0) std::this_thread::yield();
  const auto held = std::chrono::steady_clock::now() - began;
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
  const RequestId id = begin();
  ASSERT_TRUE(gate_.enter().ok());
  expect_whole(id);
  EXPECT_TRUE(gate_.leave().ok());
}

}  // namespace
}  // namespace motley
