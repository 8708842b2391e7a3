// A team of threads that runs one function together (SPMD).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace motley::kit {

// Binds the calling thread to `cores` (best effort: an unfit core leaves the thread where it is).
void bind_thread(std::span<const int> cores);

// A word that threads wait on: a short spin, then a futex. Promises that no change is missed.
class Signal {
 public:
  uint32_t value() const { return word_.load(std::memory_order_acquire); }
  void wait_while(uint32_t old, bool spin);
  void advance();  // adds 1 and wakes everyone

 private:
  std::atomic<uint32_t> word_{0};
  std::atomic<uint32_t> sleepers_{0};
};

// Own threads 1 .. n-1; the caller of run() is thread 0. With one thread nothing is started and nothing is atomic.
// Threads sleep between runs. run() may be called from several threads; runs follow one another.
class Team {
 public:
  // Throws Error if the system does not give the threads. A thread has a core of its own if there is one for each and
  // nobody else wants them: they are exactly as many, or `own` says so. Else each may run on all of them, so that two
  // small teams do not crowd the same few.
  Team(uint32_t threads, std::vector<int> cores, bool own = false);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  uint32_t threads() const { return threads_; }
  std::span<const int> cores_of(uint32_t thread) const;  // where it runs
  // Where thread 0 should run: its own core if every thread has one, else all.
  std::span<const int> home_cores() const { return cores_of(0); }
  using Body = void (*)(void* context, uint32_t thread);
  void run(Body body, void* context);
  // Inside run(): all threads meet.
  void barrier();

 private:
  void loop(uint32_t thread);
  void stop();  // ends and joins those that were started

  const uint32_t threads_;
  const std::vector<int> cores_;
  const bool pinned_;
  const bool spin_;  // false when threads share cores: spinning would only delay the one waited for
  std::mutex running_;
  Body body_ = nullptr;
  void* context_ = nullptr;
  bool stop_ = false;  // body_, context_, stop_ are published by start_
  Signal start_, met_;
  std::atomic<uint32_t> arrived_{0};
  std::vector<std::thread> others_;
};

}  // namespace motley::kit
