#include "kit/event.hpp"

#include <unistd.h>

#include <chrono>
#include <cstdint>

namespace motley::kit {

namespace {

constexpr uint64_t kWaitMaxNs = uint64_t{1} << 60;  // a longer timeout would overflow the clock

void ring(int event_fd) {
  const uint64_t one = 1;
  // It fails only on a full counter (the reader is awake anyway) or a descriptor that is none of ours.
  [[maybe_unused]] const ssize_t written = write(event_fd, &one, sizeof one);
}

}  // namespace

void Event::fire(Outcome outcome) {
  std::lock_guard lock(mutex_);
  outcome_ = std::move(outcome);
  fired_ = true;
  changed_.notify_all();
  for (const int fd : event_fds_) ring(fd);
  event_fds_.clear();
}

bool Event::fired() const {
  std::lock_guard lock(mutex_);
  return fired_;
}

void Event::wait() const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return fired_; });
}

bool Event::wait_for(uint64_t timeout_ns) const {
  std::unique_lock lock(mutex_);
  if (timeout_ns >= kWaitMaxNs) {
    changed_.wait(lock, [this] { return fired_; });
    return true;
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::nanoseconds(timeout_ns);
  return changed_.wait_until(lock, end, [this] { return fired_; });
}

void Event::notify(int event_fd) {
  std::lock_guard lock(mutex_);
  if (fired_)
    ring(event_fd);
  else
    event_fds_.push_back(event_fd);
}

void Event::forget_notifications() {
  std::lock_guard lock(mutex_);
  event_fds_.clear();
}

}  // namespace motley::kit
