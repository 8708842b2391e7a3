// The one way to wait for devices: any of several events, any plugin, with a deadline.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "base/clock.hpp"
#include "base/status.hpp"
#include "device/handles.hpp"

namespace motley {

struct WaitEvent {
  const motley_backend* api;
  motley_event* event;
};

inline constexpr int64_t kNoDeadline = INT64_MAX;

// An eventfd that events of any plugin, and other threads, can ring. One thread waits; any may ring.
class Waiter {
 public:
  static Result<Waiter> create();
  Waiter(Waiter&& other) noexcept;
  Waiter& operator=(Waiter&&) = delete;
  ~Waiter();

  // The waiter is rung when the event fires.
  Status watch(const WaitEvent& event) const;
  void ring() const;
  // Sleeps until rung or until the clock reaches deadline_ns; false at the deadline.
  bool wait(int64_t deadline_ns, const Clock& clock) const;

 private:
  explicit Waiter(int fd) : fd_(fd) {}
  int fd_;
};

// Index of a fired event, or nullopt at the deadline. Every event must already be watched by `waiter`.
std::optional<size_t> wait_any(std::span<const WaitEvent> events, int64_t deadline_ns, const Waiter& waiter,
                               const Clock& clock);

// Whether it has fired, and if so with what.
struct EventState {
  bool fired = false;
  Status status;
};
EventState event_state(const WaitEvent& event);

}  // namespace motley
