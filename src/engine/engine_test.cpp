#include "engine/engine.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "engine/testing/scripted_executor.hpp"

namespace motley {
namespace {

using testing::ScriptedExecutor;
using testing::ScriptedOptions;
using ::testing::HasSubstr;

// Collects updates on the engine's thread and lets the test wait for them.
class Inbox {
 public:
  std::function<void(RequestUpdate)> sink() {
    return [this](RequestUpdate update) {
      std::lock_guard lock(mutex_);
      Story& story = stories_[update.id];
      EXPECT_FALSE(story.finished) << "an update after the final one";
      for (const SampledToken& token : update.tokens) story.tokens.push_back(token.id);
      story.finished = update.finished;
      story.last = std::move(update);
      changed_.notify_all();
    };
  }
  struct Story {
    std::vector<TokenId> tokens;
    std::optional<FinishReason> finished;
    RequestUpdate last;
  };
  Story wait(RequestId id) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stories_[id].finished.has_value(); });
    return stories_[id];
  }
  Story wait_tokens(RequestId id, size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stories_[id].tokens.size() >= count; });
    return stories_[id];
  }
  size_t tokens(RequestId id) {
    std::lock_guard lock(mutex_);
    return stories_[id].tokens.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Story> stories_;
};

std::vector<TokenId> text_of(uint32_t seed, uint32_t length) {
  std::vector<TokenId> text(length);
  for (uint32_t i = 0; i < length; ++i) text[i] = static_cast<TokenId>((seed * 7919 + i * 104729) % 1000);
  return text;
}

Request request_of(Inbox& inbox, std::vector<TokenId> prompt, uint32_t max_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.params.max_tokens = max_tokens;
  request.on_update = inbox.sink();
  return request;
}

// What a lone request gets from the default script.
std::vector<TokenId> expected_tokens(std::vector<TokenId> text, uint32_t count, uint32_t vocab_size = 1000) {
  const size_t prompt = text.size();
  for (uint32_t i = 0; i < count; ++i)
    text.push_back(ScriptedExecutor::hashed_choice(text, motley_sample_row{}, vocab_size, nullptr));
  return {text.begin() + static_cast<ptrdiff_t>(prompt), text.end()};
}

TEST(Engine, OneRequest_GivesTheTokensOfItsText) {
  ScriptedExecutor executor({});
  auto engine = std::move(Engine::create(executor, {})).value();
  Inbox inbox;
  const auto id = engine->submit(request_of(inbox, text_of(1, 11), 20));
  ASSERT_TRUE(id.ok()) << id.error().to_string();
  const auto story = inbox.wait(*id);
  EXPECT_EQ(story.finished, FinishReason::kLength);
  EXPECT_EQ(story.tokens, expected_tokens(text_of(1, 11), 20));
  EXPECT_THAT(executor.violations(), ::testing::IsEmpty());
}

}  // namespace
}  // namespace motley
