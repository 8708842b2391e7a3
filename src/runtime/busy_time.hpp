// How long a device was busy, where several drivers run programs on it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>

namespace motley {

// When a device had programs of steps to run, as its drivers saw it: what ran beside another's counts once.
// Thread-safe.
class BusyTime {
 public:
  // How much of it is not counted yet.
  int64_t add(int64_t began_ns, int64_t ended_ns) {
    std::lock_guard lock(mutex_);
    const int64_t from_ns = std::max(began_ns, until_ns_);
    until_ns_ = std::max(until_ns_, ended_ns);
    return std::max<int64_t>(0, ended_ns - from_ns);
  }

 private:
  std::mutex mutex_;
  int64_t until_ns_ = 0;
};

}  // namespace motley
