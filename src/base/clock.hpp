// The time seam. Every room asks a Clock, never the system: tests and simulation run on a virtual one.
#pragma once

#include <atomic>
#include <cstdint>

namespace motley {

// Nanoseconds of a monotonic clock. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual int64_t now_ns() const = 0;
};

// CLOCK_MONOTONIC. Lives as long as the program.
const Clock& system_clock();

// Stands still until told. Thread-safe.
class ManualClock : public Clock {
 public:
  int64_t now_ns() const override { return now_.load(); }
  void advance_ns(int64_t by) { now_.fetch_add(by); }

 private:
  std::atomic<int64_t> now_{0};
};

// Seconds since 1970 (CLOCK_REALTIME), for the "created" fields of answers.
int64_t unix_time_s();

}  // namespace motley
