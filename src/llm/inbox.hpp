// Inbox: engine updates of one run, on their way from the engine's thread to the thread that asks.
//
// Thread-safe. What lies in it is bounded by the tokens that the run's requests may still generate. Outlives the run
// through the requests that hold it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "engine/request.hpp"

namespace motley {

class Inbox {
 public:
  struct Letter {
    size_t answer = 0;  // whose update it is
    RequestUpdate update;
  };
  using Deadline = std::optional<std::chrono::steady_clock::time_point>;  // nullopt = none

  void push(size_t answer, RequestUpdate update) {
    std::lock_guard lock(mutex_);
    letters_.push_back({answer, std::move(update)});
    changed_.notify_one();
  }
  // All that lies there, in order; waits until there is something or the deadline has come.
  std::vector<Letter> take(const Deadline& deadline) {
    std::unique_lock lock(mutex_);
    const auto something = [&] { return !letters_.empty(); };
    if (deadline) {
      changed_.wait_until(lock, *deadline, something);
    } else {
      changed_.wait(lock, something);
    }
    return std::exchange(letters_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Letter> letters_;
};

}  // namespace motley
