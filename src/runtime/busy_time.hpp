// How long a device was busy, where several drivers run programs on it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

namespace motley {

// When a device had programs of steps to run, as its drivers saw it: what ran beside another's counts once.
// Thread-safe.
class BusyTime {
 public:
  // How much of it is not counted yet: drivers tell what ended in any order, a long step after what ran within it.
  int64_t add(int64_t began_ns, int64_t ended_ns) {
    std::lock_guard lock(mutex_);
    began_ns = std::max(began_ns, counted_until_ns_);
    if (ended_ns <= began_ns) return 0;
    int64_t more_ns = ended_ns - began_ns;
    auto first = busy_.lower_bound(began_ns);  // by their ends: the first that is not over before
    while (first != busy_.end() && first->second < ended_ns) {
      more_ns -= std::min(first->first, ended_ns) - std::max(first->second, began_ns);
      began_ns = std::min(began_ns, first->second);
      ended_ns = std::max(ended_ns, first->first);
      first = busy_.erase(first);
    }
    busy_.emplace(ended_ns, began_ns);
    if (busy_.size() > kApartMost) {
      counted_until_ns_ = busy_.begin()->first;
      busy_.erase(busy_.begin());
    }
    return more_ns;
  }

 private:
  static constexpr size_t kApartMost = 256;  // what ended before the oldest of so many stays as it was counted
  std::mutex mutex_;
  std::map<int64_t, int64_t> busy_;  // end, beginning: apart from one another
  int64_t counted_until_ns_ = 0;
};

}  // namespace motley
