// A simulated in-order queue: the cpu plugin computes, this makes it last.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <thread>

#include "sim/device.hpp"

namespace motley::sim {

// One worker thread does the work in order, so nothing is computed, copied or visible before its turn. In wall time it
// sleeps until the simulated time has passed; in virtual time all times are decided at the enqueue, in the caller.
class Queue {
 public:
  explicit Queue(Device* device);
  ~Queue();  // does what is enqueued, then ends; what hangs fires with UNAVAILABLE

  struct Work {
    bool program = false;
    uint64_t rows = 0, padded_rows = 0;     // of a program
    double flops = 0, padded_flops = 0;     // likewise
    uint64_t name = 0;                      // of it, among the device's residents
    int64_t ready_ns = 0;                   // virtual time: it does not begin before
    Timeline* engine = nullptr;             // who does it
    std::function<double(double)> seconds;  // simulated, given the part of the bandwidth that is left
    std::function<void()> run;              // throws Error. Programs run first, then last; copies end with it
    std::vector<Access> accesses;
    void* poison = nullptr;  // host memory that must not be read before the event: it is filled with ones meanwhile
    uint64_t poison_bytes = 0;
  };
  // Throws Error: the device is lost, the queue is full.
  std::shared_ptr<Event> push(Work work);
  void fence(std::shared_ptr<const Event> event);

  void wake();  // the device is lost: what sleeps looks again

  Device* device() const { return device_; }
  motley_queue* inner() const { return inner_.get(); }  // for the worker, inside Work::run

 private:
  struct Item {
    Work work;
    std::shared_ptr<Event> event;
    std::shared_ptr<const Event> fence;  // alone: a fence
    Verdict verdict;
    uint64_t order = 0;
    bool reload = false;               // the program has to be loaded anew
    int64_t start_ns = 0, end_ns = 0;  // virtual time
    int64_t paused_ns = 0;             // between them, for others of the engine
    std::string refusal;               // virtual time: of a conflict
  };
  bool full(int64_t now_ns);
  void schedule(Item& item, int64_t now_ns);
  int64_t duration_ns(const Item& item, double bandwidth_share) const;
  void loop();
  kit::Outcome run_virtual(Item& item);
  kit::Outcome run_wall(Item& item);
  kit::Outcome hang();
  void sleep_until(int64_t time_ns, bool stalled);

  Device* const device_;
  const uint64_t id_;
  Owned<motley_queue> inner_{nullptr, nullptr};
  const std::shared_ptr<Progress> progress_ = std::make_shared<Progress>();  // shared with events
  // The enqueuing thread's.
  uint64_t sequence_ = 0;
  int64_t virtual_end_ns_ = 0;
  bool hung_ = false;
  std::deque<std::pair<uint64_t, int64_t>> virtual_programs_;  // sequence and end of those that may be unfinished

  std::mutex mutex_;  // guards the rest
  std::condition_variable changed_;
  std::deque<Item> items_;
  uint32_t programs_ = 0, unfinished_ = 0;
  bool stop_ = false;
  std::thread worker_;
};

}  // namespace motley::sim
