// The virtual time of the calling thread: what a simulated device takes as "now" when work is enqueued.
#pragma once

#include <cstdint>

namespace motley {

// While it lives, virtual time of this thread is *now_ns; nests. Devices opened with DeviceOptions::virtual_time read
// it at every enqueue.
class VirtualTimeScope {
 public:
  explicit VirtualTimeScope(const int64_t* now_ns);
  ~VirtualTimeScope();
  VirtualTimeScope(const VirtualTimeScope&) = delete;
  VirtualTimeScope& operator=(const VirtualTimeScope&) = delete;

 private:
  const int64_t* before_;
};

// 0 outside every scope.
int64_t virtual_now_ns();

// A time to begin at: beyond whatever began at an earlier answer, if that took no more than 1,000 s. A device has one
// timeline, on which what is run on it by and by must not overlap. Thread-safe.
int64_t virtual_start_ns();

}  // namespace motley
