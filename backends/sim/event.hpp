// Events of simulated queues.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>

#include "kit/event.hpp"

namespace motley::sim {

// How far the host has seen a queue get: the number of its last work whose event the host found fired.
class Progress {
 public:
  uint64_t seen() const { return seen_.load(); }
  void see(uint64_t sequence) {
    uint64_t old = seen_.load();
    while (old < sequence && !seen_.compare_exchange_weak(old, sequence)) {
    }
  }

 private:
  std::atomic<uint64_t> seen_{0};
};

// A kit event that knows its place. All but the base is set before it is shared, then immutable.
struct Event : kit::Event {
  std::shared_ptr<Progress> progress;  // shared with its queue, which may go first
  uint64_t sequence = 0;               // in its queue, from 1
  int64_t virtual_end_ns = 0;          // in virtual time: when it will have happened
  bool hangs = false;                  // it will not fire by itself
  bool seen() const { return progress->seen() >= sequence; }
};

}  // namespace motley::sim
