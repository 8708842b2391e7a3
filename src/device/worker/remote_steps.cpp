#include <sched.h>

#include <algorithm>
#include <limits>

#include "base/clock.hpp"
#include "device/worker/remote_device.hpp"

namespace motley::worker {
namespace {

constexpr uint64_t kArenaShareBytesMax = 4u << 20;  // of one call; more gets a region of its own

void ring_eventfd(int fd) {
  const uint64_t one = 1;
  // Fails only when the counter is at its maximum, and then the reader is awake anyway.
  [[maybe_unused]] const ssize_t written = write(fd, &one, sizeof one);
}

bool is_pending(const EventSlot& slot, uint32_t generation) {
  return slot.state.load(std::memory_order_seq_cst) == generation * 2;
}

// What the worker wrote, read once and cut to what it may be.
Status outcome_in(const EventSlot& slot) {
  const int32_t code = slot.code;
  if (code == MOTLEY_OK) return ok_status();
  char text[kEventTextMax];
  std::memcpy(text, slot.text, sizeof text);
  const bool known = code > 0 && code <= MOTLEY_UNAUTHENTICATED;
  return Status(known ? static_cast<Code>(code) : MOTLEY_INTERNAL, std::string(text, strnlen(text, sizeof text)));
}

}  // namespace

Result<Staging> RemoteDevice::stage(uint64_t bytes) {
  Staging staging;
  staging.data = arena_memory_.data();
  if (bytes == 0) return staging;
  if (bytes <= kArenaShareBytesMax) {
    std::lock_guard lock(mutex_);
    auto offset = arena_.take(bytes);
    if (!offset) reap();
    if (!offset) offset = arena_.take(bytes);
    if (offset) {
      staging.offset = *offset, staging.bytes = bytes;
      staging.data += *offset;
      return staging;
    }
  }
  ASSIGN_OR_RETURN(staging.own, SharedMemory::create("motley-copy", bytes));
  staging.region = new_id(), staging.bytes = bytes;
  staging.data = staging.own.data();
  Writer body;
  body.put(staging.region);
  body.put(bytes);
  const int fd = staging.own.fd();
  RETURN_IF_ERROR(call(Call::kStage, body, std::span(&fd, 1)).error());
  staging.own.drop_descriptor();
  return staging;
}

void RemoteDevice::give_back(Staging& staging) {
  if (staging.region == kArenaRegion && staging.bytes > 0) arena_.give(staging.offset, staging.bytes);
  staging = {};
}

Status RemoteDevice::submit(RemoteQueue& queue, Step step, const Writer& body, std::shared_ptr<Work> work,
                            motley_event** event) {
  work->queue = &queue;
  Status status;
  Writer where;
  const bool large = body.bytes().size() + sizeof(RecordHeader) > kRecordBytesMax;
  if (large) {
    Result<Staging> staged = stage(body.bytes().size());
    if (staged.ok()) {
      work->body = *std::move(staged);
      std::memcpy(work->body.data, body.bytes().data(), body.bytes().size());
      where.put(work->body.on_wire());
    } else {
      status = staged.error();
    }
  }
  std::unique_ptr<RemoteEvent> made;
  if (event != nullptr) made = std::make_unique<RemoteEvent>(RemoteEvent{this, work});
  if (status.ok()) {
    std::lock_guard lock(mutex_);
    status = push(queue, step, large ? where : body, work, event == nullptr);
  }
  if (status.ok()) {
    ring_doorbell();
    if (event != nullptr) *event = handle(made.release());
    return status;
  }
  for (Staging* staging : {&work->data, &work->body}) {
    if (staging->region != kArenaRegion) dismiss(Call::kUnstage, staging->region);
    std::lock_guard lock(mutex_);
    give_back(*staging);
  }
  return status;
}

Status RemoteDevice::push(RemoteQueue& queue, Step step, const Writer& body, const std::shared_ptr<Work>& work,
                          bool silent) {
  RETURN_IF_ERROR(lost_);
  const bool full = work->program && queue.programs >= desc_.queue_depth;
  if (full || free_slots_.empty()) reap();
  if ((work->program && queue.programs >= desc_.queue_depth) || free_slots_.empty()) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "the queue is full; wait for an earlier event");
  }
  work->slot = free_slots_.back();
  work->generation = (generations_[work->slot] + 1) & (UINT32_MAX / 2);
  RecordHeader header{};
  header.step = static_cast<uint16_t>(step);
  header.flags = static_cast<uint16_t>((silent ? kSilent : 0) | (work->body.bytes > 0 ? kStagedBody : 0));
  header.slot = work->slot, header.generation = work->generation;
  header.queue = queue.id;
  memory_.slot(work->slot).state.store(work->generation * 2, std::memory_order_relaxed);
  RETURN_IF_ERROR(ring_.push(header, body.bytes()));
  free_slots_.pop_back();
  generations_[work->slot] = work->generation;
  queue.programs += work->program;
  in_flight_.push_back(work);
  return ok_status();
}

void RemoteDevice::ring_doorbell() {
  if (memory_.header().asleep.load(std::memory_order_seq_cst) != 0) ring_eventfd(doorbell_.get());
}

Status RemoteDevice::fence(RemoteQueue& queue, const Work& work) {
  {
    std::lock_guard lock(mutex_);
    RETURN_IF_ERROR(lost_);
    if (work.fired) return ok_status();
    RecordHeader header{};
    header.step = static_cast<uint16_t>(Step::kFence), header.flags = kSilent;
    header.slot = work.slot, header.generation = work.generation;
    header.queue = queue.id;
    RETURN_IF_ERROR(ring_.push(header, {}));
  }
  ring_doorbell();
  return ok_status();
}

void RemoteDevice::queue_destroy(RemoteQueue& queue) {
  dismiss(Call::kQueueDestroy, queue.id, true);
  std::lock_guard lock(mutex_);
  reap();
  for (const auto& work : in_flight_) {  // of a worker that did not answer
    if (work->queue == &queue) work->queue = nullptr;
  }
}

bool RemoteDevice::has_fired(const Work& work) const {
  return memory_.slot(work.slot).state.load(std::memory_order_acquire) == work.generation * 2 + 1;
}

// Takes in every call whose event the worker has fired, in the order of the calls: what one brings to the host's
// memory is there before anybody can see it, or a later one, as done.
void RemoteDevice::reap() {
  // Looked at from the last to the first: the worker fires in the order of the calls, so one that is seen fired has all
  // that it waited for seen fired after it.
  std::vector<bool> fired(in_flight_.size());
  for (size_t i = in_flight_.size(); i-- > 0;) fired[i] = has_fired(*in_flight_[i]);
  size_t kept = 0;
  for (size_t i = 0; i < in_flight_.size(); ++i) {
    if (!fired[i]) {
      std::swap(in_flight_[kept++], in_flight_[i]);
      continue;
    }
    Work& work = *in_flight_[i];
    const EventSlot& slot = memory_.slot(work.slot);
    if (slot.timed == 1) work.timed = true, work.start_ns = slot.start_ns, work.end_ns = slot.end_ns;
    free_slots_.push_back(work.slot);
    complete(work, outcome_in(slot));
  }
  in_flight_.resize(kept);
}

void RemoteDevice::complete(Work& work, Status outcome) {
  if (work.copy_to != nullptr && outcome.ok()) std::memcpy(work.copy_to, work.data.data, work.data.bytes);
  give_back(work.data);
  give_back(work.body);
  if (work.program && work.queue != nullptr) --work.queue->programs;
  work.outcome = std::move(outcome);
  work.fired.store(true, std::memory_order_release);
  if (!work.event_fds.empty() && --watched_ == 0) memory_.header().bell_wanted.store(0, std::memory_order_relaxed);
  for (const int fd : work.event_fds) ring_eventfd(fd);
  work.event_fds.clear();
}

bool RemoteDevice::fired(Work& work) {
  if (work.fired.load(std::memory_order_acquire)) return true;
  if (is_pending(memory_.slot(work.slot), work.generation)) return false;
  std::lock_guard lock(mutex_);
  reap();
  return work.fired.load(std::memory_order_relaxed);
}

bool RemoteDevice::wait(Work& work, uint64_t timeout_ns) {
  const int64_t start_ns = system_clock().now_ns();
  const bool forever = timeout_ns > static_cast<uint64_t>(std::numeric_limits<int64_t>::max() - start_ns);
  const int64_t deadline_ns =
      forever ? std::numeric_limits<int64_t>::max() : start_ns + static_cast<int64_t>(timeout_ns);
  EventSlot& slot = memory_.slot(work.slot);
  for (;;) {
    if (fired(work)) return true;
    const int64_t now_ns = system_clock().now_ns();
    if (now_ns >= deadline_ns) return false;
    if (now_ns - start_ns < options_.spin_ns) {
      sched_yield();  // whoever computes goes first where cores are few
      continue;
    }
    slot.waiters.fetch_add(1, std::memory_order_seq_cst);
    if (is_pending(slot, work.generation)) {
      futex_wait(slot.state, work.generation * 2, forever ? -1 : deadline_ns - now_ns);
    }
    slot.waiters.fetch_sub(1, std::memory_order_seq_cst);
  }
}

void RemoteDevice::notify(Work& work, int event_fd) {
  std::lock_guard lock(mutex_);
  if (!work.fired) {
    if (work.event_fds.empty()) ++watched_;
    work.event_fds.push_back(event_fd);
    memory_.header().bell_wanted.store(1, std::memory_order_seq_cst);
    // The worker may have fired it before it could see that the bell is wanted.
    if (!is_pending(memory_.slot(work.slot), work.generation)) reap();
  } else {
    ring_eventfd(event_fd);
  }
}

void RemoteDevice::forget(Work& work) {
  std::lock_guard lock(mutex_);
  if (!work.event_fds.empty() && --watched_ == 0) memory_.header().bell_wanted.store(0, std::memory_order_relaxed);
  work.event_fds.clear();
}

}  // namespace motley::worker
