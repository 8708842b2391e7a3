#include "kit/event.hpp"

#include <unistd.h>

#include <chrono>
#include <cstdint>

#include "kit/border.hpp"

namespace motley::kit {

namespace {

constexpr uint64_t kWaitMaxNs = uint64_t{1} << 60;  // a longer timeout would overflow the clock

void ring(int event_fd) {
  const uint64_t one = 1;
  // It fails only on a full counter (the reader is awake anyway) or a descriptor that is none of ours.
  [[maybe_unused]] const ssize_t written = write(event_fd, &one, sizeof one);
}

}  // namespace

int64_t monotonic_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

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

// ---- the ABI's entries ----

namespace {

// The event's own code, as an answer.
motley_code answer(const Outcome& outcome, motley_error* error) {
  if (outcome.code != MOTLEY_OK) set_error(error, outcome.code, outcome.text.c_str());
  return outcome.code;
}

motley_code event_status(motley_event* event, int32_t* fired, motley_error* error) {
  if (!event || !fired) return guard(error, [&] { need(event, fired); });
  *fired = event->state->fired();
  return *fired ? answer(event->state->outcome(), error) : MOTLEY_OK;
}

motley_code event_wait(motley_event* event, uint64_t timeout_ns, motley_error* error) {
  if (!event) return guard(error, [&] { need(event); });
  if (!event->state->wait_for(timeout_ns)) {
    set_error(error, MOTLEY_DEADLINE_EXCEEDED, "the event has not fired in time");
    return MOTLEY_DEADLINE_EXCEEDED;
  }
  return answer(event->state->outcome(), error);
}

motley_code event_times(motley_event* event, motley_event_times* out, motley_error* error) {
  return guard(error, [&] {
    need(event, out);
    if (!event->state->fired()) fail(MOTLEY_FAILED_PRECONDITION, "the event has not fired: it has no times yet");
    motley_event_times times{};
    times.start_ns = event->state->outcome().start_ns, times.end_ns = event->state->outcome().end_ns;
    put(out, times);
  });
}

motley_code event_notify(motley_event* event, int event_fd, motley_error* error) {
  return guard(error, [&] {
    need(event);
    if (event_fd < 0) fail(MOTLEY_INVALID_ARGUMENT, "event_notify: descriptor %d", event_fd);
    event->state->notify(event_fd);
  });
}

void event_release(motley_event* event) {
  if (!event) return;
  event->state->forget_notifications();
  delete event;
}

}  // namespace

void set_event_entries(motley_backend* table) {
  table->event_status = event_status, table->event_wait = event_wait, table->event_times = event_times;
  table->event_notify = event_notify, table->event_release = event_release;
}

}  // namespace motley::kit
