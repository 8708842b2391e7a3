// An in-order queue: one worker thread that sleeps while there is nothing to do.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "kit/event.hpp"

namespace motley::kit {

class Queue {
 public:
  // The worker binds itself to `cores`.
  explicit Queue(std::vector<int> cores);
  ~Queue();  // runs what is enqueued, then ends

  enum class Kind { kProgram, kOther };
  // Work runs in order; its outcome fires `event` (if not null). Throws Error when the queue is full.
  void push(Kind kind, std::function<Outcome()> work, std::shared_ptr<Event> event);

 private:
  struct Item {
    Kind kind;
    std::function<Outcome()> work;
    std::shared_ptr<Event> event;
  };
  void loop(const std::vector<int>& cores);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> items_;
  uint32_t programs_ = 0, unfinished_ = 0;
  bool stop_ = false;
  std::thread worker_;
};

}  // namespace motley::kit
