// What tests of the engine share: a caller that collects its updates, and texts with their expected answers.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "engine/request.hpp"
#include "engine/testing/scripted_executor.hpp"

namespace motley::testing {

// Collects updates on the engine's thread and lets the test wait for them. Outlives the engine, which calls to its end.
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

inline std::vector<TokenId> text_of(uint32_t seed, uint32_t length) {
  std::vector<TokenId> text(length);
  for (uint32_t i = 0; i < length; ++i) text[i] = static_cast<TokenId>((seed * 7919 + i * 104729) % 1000);
  return text;
}

inline Request request_of(Inbox& inbox, std::vector<TokenId> prompt, uint32_t max_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.params.max_tokens = max_tokens;
  request.on_update = inbox.sink();
  return request;
}

// What a lone request gets from the default script.
inline std::vector<TokenId> expected_tokens(std::vector<TokenId> text, uint32_t count, uint32_t vocab_size = 1000) {
  const size_t prompt = text.size();
  for (uint32_t i = 0; i < count; ++i)
    text.push_back(ScriptedExecutor::hashed_choice(text, motley_sample_row{}, vocab_size, nullptr));
  return {text.begin() + static_cast<ptrdiff_t>(prompt), text.end()};
}

}  // namespace motley::testing
