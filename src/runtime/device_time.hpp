// DeviceTime: until when a device may be at the step that it runs.
//
// A device has a step's limit for itself. What the step waits before the device is free, and what it waits for other
// devices in a meeting, is not the device's doing and is not counted. One thread; times are of system_clock().
#pragma once

#include <algorithm>
#include <cstdint>

namespace motley {

class DeviceTime {
 public:
  // A step begins that meets other devices.
  void begin() { waited_ns_ = 0; }
  // It waited so long for them, or was let compute so much longer.
  void waited(int64_t ns) { waited_ns_ += ns; }
  // The device has ended a step, and is free for the next.
  void end(int64_t now_ns) {
    free_at_ns_ = now_ns;
    waited_ns_ = 0;
  }
  // When a device that is still at a step submitted then has used up its limit. INT64_MAX: never.
  int64_t due_ns(int64_t submitted_ns, int64_t limit_ns) const {
    if (limit_ns == INT64_MAX) return INT64_MAX;
    return std::max(submitted_ns, free_at_ns_) + waited_ns_ + limit_ns;
  }

 private:
  int64_t free_at_ns_ = 0;
  int64_t waited_ns_ = 0;  // in the step under way
};

}  // namespace motley
