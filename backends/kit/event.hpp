// Events: pending, then fired once with a code and a text.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "motley/backend.h"

namespace motley::kit {

// What a piece of work ended with, and when it ran (the clock of motley_event_times).
struct Outcome {
  motley_code code = MOTLEY_OK;
  std::string text;
  int64_t start_ns = 0, end_ns = 0;
};

int64_t monotonic_ns();

// Thread-safe.
class Event {
 public:
  void fire(Outcome outcome);
  bool fired() const;
  // Waits until fired.
  void wait() const;
  // False at the timeout.
  bool wait_for(uint64_t timeout_ns) const;
  // Valid once fired.
  const Outcome& outcome() const { return outcome_; }
  void notify(int event_fd);
  // No eventfd is written after this returns.
  void forget_notifications();

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool fired_ = false;
  Outcome outcome_;
  std::vector<int> event_fds_;
};

// The entries of motley_backend that take a motley_event alone.
void set_event_entries(motley_backend* table);

}  // namespace motley::kit

struct motley_event {
  std::shared_ptr<motley::kit::Event> state;
};
