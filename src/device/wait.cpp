#include "device/wait.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace motley {

Result<Waiter> Waiter::create() {
  const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) return error(MOTLEY_RESOURCE_EXHAUSTED, "eventfd: {}", std::strerror(errno));
  return Waiter(fd);
}

Waiter::Waiter(Waiter&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

Waiter::~Waiter() {
  if (fd_ >= 0) close(fd_);
}

Status Waiter::watch(const WaitEvent& event) const {
  motley_error failure{};
  return to_status(event.api->event_notify(event.event, fd_, &failure), failure, "event_notify");
}

void Waiter::ring() const {
  const uint64_t one = 1;
  // Fails only when the counter is at its maximum, and then the waiter is awake anyway.
  [[maybe_unused]] const ssize_t written = write(fd_, &one, sizeof one);
}

bool Waiter::wait(int64_t deadline_ns, const Clock& clock) const {
  for (;;) {
    uint64_t count = 0;
    if (read(fd_, &count, sizeof count) == sizeof count) return true;
    int timeout_ms = -1;
    if (deadline_ns != kNoDeadline) {
      const int64_t left_ns = deadline_ns - clock.now_ns();
      if (left_ns <= 0) return false;
      timeout_ms = static_cast<int>(std::min<int64_t>((left_ns + 999'999) / 1'000'000, 1'000'000));
    }
    pollfd entry{fd_, POLLIN, 0};
    poll(&entry, 1, timeout_ms);
  }
}

EventState event_state(const WaitEvent& event) {
  int32_t fired = 0;
  motley_error failure{};
  const motley_code code = event.api->event_status(event.event, &fired, &failure);
  return {fired != 0, to_status(code, failure, "device")};
}

std::optional<size_t> wait_any(std::span<const WaitEvent> events, int64_t deadline_ns, const Waiter& waiter,
                               const Clock& clock) {
  for (;;) {
    for (size_t i = 0; i < events.size(); ++i) {
      if (event_state(events[i]).fired) return i;
    }
    if (!waiter.wait(deadline_ns, clock)) return std::nullopt;
  }
}

}  // namespace motley
