// An in-order queue: one worker thread that sleeps while there is nothing to do. A queue that runs ahead has a second
// one: it waits for what the first has only started, and fires the events.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "kit/event.hpp"
#include "kit/kit.hpp"

namespace motley::kit {

class Queue {
 public:
  // Null: the work is done. Of a queue that does not run ahead it is waited for at once.
  using Work = std::function<std::unique_ptr<Mark>()>;
  using Done = std::function<void(const Outcome&)>;

  // The worker binds itself to `cores`.
  explicit Queue(std::vector<int> cores, bool ahead = false);
  ~Queue();  // runs what is enqueued, then ends

  enum class Kind { kProgram, kOther };
  // Work runs in order; its outcome goes to `done` and then fires `event` (each may be null). Throws Error when the
  // queue is full.
  void push(Kind kind, Work work, std::shared_ptr<Event> event, Done done = nullptr);

 private:
  struct Item {
    Kind kind;
    Work work;
    std::shared_ptr<Event> event;
    Done done;
    std::unique_ptr<Mark> mark;  // of what is started
    Outcome outcome;
  };
  // The oldest of `items`, or nothing once there will be none.
  bool take(std::deque<Item>& items, const bool& last, Item* item);
  void loop(const std::vector<int>& cores);
  void wait_loop();
  void finish(Item item);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> items_, started_;
  uint32_t programs_ = 0, unfinished_ = 0;
  bool stop_ = false, worker_ended_ = false;
  int64_t ended_ns_ = 0;  // of the last work; the finishing thread's
  const bool ahead_;
  std::thread worker_, waiter_;
};

}  // namespace motley::kit
