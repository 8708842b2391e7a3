#include "device/worker/worker_steps.hpp"

#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>

#include "base/clock.hpp"
#include "base/log.hpp"

namespace motley::worker {
namespace {

constexpr int kExitDamaged = 2;
constexpr int kLookAgainMs = 1;

void ring_eventfd(const Descriptor& fd) {
  const uint64_t one = 1;
  // Fails only when the counter is at its maximum, and then the reader is awake anyway.
  [[maybe_unused]] const ssize_t written = write(fd.get(), &one, sizeof one);
}

void clear_eventfd(const Descriptor& fd) {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = read(fd.get(), &count, sizeof count);
}

motley_code refuse(motley_error* failure, motley_code code, const char* text) {
  failure->code = code;
  std::snprintf(failure->text, sizeof failure->text, "%s", text);
  return code;
}

motley_code malformed(motley_error* failure) {
  return refuse(failure, MOTLEY_INVALID_ARGUMENT, "the worker got a step call that it cannot read");
}

motley_code unknown(motley_error* failure) {
  return refuse(failure, MOTLEY_INVALID_ARGUMENT, "the worker got a step call with an object that it does not have");
}

motley_code unsupported(motley_error* failure) {
  return refuse(failure, MOTLEY_UNIMPLEMENTED, "the plugin has no such entry");
}

}  // namespace

StepRunner::StepRunner(WorkerState& state, StepMemory memory, Descriptor doorbell, Descriptor bell, int64_t spin_ns)
    : state_(state),
      memory_(std::move(memory)),
      doorbell_(std::move(doorbell)),
      bell_(std::move(bell)),
      fired_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      spin_ns_(spin_ns),
      reader_(memory_),
      events_(kSlotCount),
      thread_([this] { loop(); }) {}

StepRunner::~StepRunner() {
  stop_ = true;
  ring_eventfd(doorbell_);
  thread_.join();
  for (auto& [id, run] : runs_) {  // events of a host that goes without waiting
    for (Pending& pending : run.pending) {
      if (pending.event != nullptr) state_.api->event_wait(pending.event, UINT64_MAX, nullptr);
      if (pending.event != nullptr) state_.api->event_release(pending.event);
    }
  }
}

void StepRunner::await_position(uint64_t position) {
  std::unique_lock lock(mutex_);
  ++waiters_;
  ring_eventfd(doorbell_);
  progress_.wait(lock, [&] { return consumed_.load() >= position || stop_; });
  --waiters_;
}

void StepRunner::await_idle(const WorkerQueue& queue) {
  std::unique_lock lock(mutex_);
  ++waiters_;
  progress_.wait(lock, [&] { return queue.unfinished.load() == 0 || stop_; });
  --waiters_;
}

void StepRunner::tell_waiters() {
  if (waiters_.load() == 0) return;
  std::lock_guard lock(mutex_);
  progress_.notify_all();
}

void StepRunner::loop() {
  int64_t active_ns = system_clock().now_ns();
  while (!stop_) {
    const bool consumed = consume(), published = publish();
    if (consumed || published) {
      tell_waiters();
      active_ns = system_clock().now_ns();
    } else if (system_clock().now_ns() - active_ns >= spin_ns_) {
      sleep();
      active_ns = system_clock().now_ns();
    } else {
      sched_yield();  // whoever computes goes first where cores are few
    }
  }
}

void StepRunner::sleep() {
  SharedWord& asleep = memory_.header().asleep;
  asleep.store(1, std::memory_order_seq_cst);
  if (reader_.empty()) {
    tell_waiters();
    pollfd entries[] = {{doorbell_.get(), POLLIN, 0}, {fired_.get(), POLLIN, 0}};
    poll(entries, 2, unwatched_ ? kLookAgainMs : -1);
  }
  asleep.store(0, std::memory_order_seq_cst);
  clear_eventfd(doorbell_);
  clear_eventfd(fired_);
}

bool StepRunner::consume() {
  bool any = false;
  Record record;
  for (;;) {
    const Result<bool> popped = reader_.pop(record);
    if (!popped.ok()) {  // nothing that follows could be understood
      log_error("worker: {}", popped.error().message());
      std::_Exit(kExitDamaged);
    }
    if (!*popped) return any;
    take(record);
    consumed_.store(reader_.position());
    any = true;
  }
}

void StepRunner::take(Record& record) {
  QueueRun& run = runs_[record.header.queue];
  std::shared_ptr<WorkerQueue> queue = state_.queues.find(record.header.queue);
  if (static_cast<Step>(record.header.step) == Step::kFence) {
    Status status = queue ? fence(record, *queue) : invalid_argument("a fence on a queue that is not there");
    if (!status.ok()) run.unsaid = std::move(status);
    return;
  }
  Pending pending;
  pending.sequence = ++sequence_;
  pending.slot = record.header.slot, pending.generation = record.header.generation;
  pending.silent = (record.header.flags & kSilent) != 0;
  pending.job = std::make_unique<Job>();
  pending.queue = std::move(queue);
  if (pending.slot == kNoSlot) return;  // a host that cannot be told anything
  if (pending.queue != nullptr) {
    ++pending.queue->unfinished;
    submit(record, pending);
  } else {
    pending.status = invalid_argument("a step call on a queue that is not there");
  }
  if (pending.event != nullptr) events_[pending.slot] = {pending.generation, pending.event};
  run.pending.push_back(std::move(pending));
}

// Hands one record to the plugin: pending gets its event, or the reason why there is none.
void StepRunner::submit(Record& record, Pending& pending) {
  static constexpr std::array<Handler, static_cast<size_t>(Step::kCount)> kHandlers = {
      nullptr, &StepRunner::enqueue,   &StepRunner::copy,     &StepRunner::copy_to_host, &StepRunner::copy_from_host,
      nullptr, &StepRunner::kv_export, &StepRunner::kv_import};
  motley_error failure{};
  std::span<const std::byte> body = record.body;
  std::vector<std::byte> moved;
  if ((record.header.flags & kStagedBody) != 0) {
    Reader where(record.body);
    const auto at = where.get<StagedBytes>();
    pending.job->body = region_of(at);
    if (!where.ok() || pending.job->body == nullptr) {
      malformed(&failure);
      pending.status = plugin_status(MOTLEY_INVALID_ARGUMENT, failure);
      return;
    }
    if (at.region != kArenaRegion) state_.staging.take(at.region);
    // Copied before it is read, so that it cannot change in between.
    const std::byte* begin = pending.job->body->data() + at.offset;
    moved.assign(begin, begin + at.bytes);
    body = moved;
  }
  Reader reader(body);
  const Handler handler = kHandlers[record.header.step];
  const Submit call{pending.queue->owned.raw, *pending.job, reader, &pending.event, &failure};
  const motley_code code = (this->*handler)(call);
  if (code != MOTLEY_OK || pending.event == nullptr) {
    pending.event = nullptr;
    pending.status = code != MOTLEY_OK ? plugin_status(code, failure)
                                       : error(MOTLEY_INTERNAL, "the plugin gave no event for work that it took");
  } else if (state_.api->event_notify(pending.event, fired_.get(), &failure) != MOTLEY_OK) {
    unwatched_ = true;
  }
}

std::shared_ptr<SharedMemory> StepRunner::region_of(const StagedBytes& at) const {
  auto region = state_.staging.find(at.region);
  return region != nullptr && region->holds(at.offset, at.bytes) ? region : nullptr;
}

std::byte* StepRunner::staged(const Submit& call, uint64_t* bytes) const {
  const auto at = call.reader.get<StagedBytes>();
  call.job.staging = call.reader.ok() ? region_of(at) : nullptr;
  *bytes = at.bytes;
  if (call.job.staging == nullptr) return nullptr;
  if (at.region != kArenaRegion) state_.staging.take(at.region);  // made for this call; lives as long as its job
  return call.job.staging->data() + at.offset;
}

motley_code StepRunner::enqueue(const Submit& call) {
  const auto programs = state_.programs.find(call.reader.get<uint64_t>());
  const auto bucket = call.reader.get<uint32_t>();
  const auto kv_id = call.reader.get<uint64_t>();
  const auto kv = state_.kv.find(kv_id);
  const Array<BindingOnWire> bound = call.reader.get_array<BindingOnWire>(kItemsMax);
  if (!call.job.batch.decode(call.reader)) return malformed(call.error);
  if (programs == nullptr || (kv_id != 0 && kv == nullptr)) return unknown(call.error);
  call.job.held = {programs, kv};
  std::vector<motley_binding> bindings;
  for (const BindingOnWire& b : bound.items) {
    auto buffer = state_.buffers.find(b.buffer);
    if (buffer == nullptr) return unknown(call.error);
    bindings.push_back({b.value, buffer->raw, b.offset});
    call.job.held.push_back(std::move(buffer));
  }
  call.job.view = call.job.batch.view();
  motley_enqueue_args args{};
  args.struct_size = sizeof args;
  args.bucket = bucket;
  args.bindings = bindings.data(), args.binding_count = static_cast<uint32_t>(bindings.size());
  args.kv = kv == nullptr ? nullptr : kv->raw;
  args.batch = &call.job.view;
  return state_.api->enqueue(call.queue, programs->raw, &args, call.event, call.error);
}

motley_code StepRunner::copy(const Submit& call) {
  const auto dst = state_.buffers.find(call.reader.get<uint64_t>());
  const auto src = state_.buffers.find(call.reader.get<uint64_t>());
  const Array<motley_region> regions = call.reader.get_array<motley_region>(kItemsMax);
  if (!call.reader.ok()) return malformed(call.error);
  if (dst == nullptr || src == nullptr) return unknown(call.error);
  if (state_.api->copy == nullptr) return unsupported(call.error);
  call.job.held = {dst, src};
  return state_.api->copy(call.queue, dst->raw, src->raw, regions.data(), regions.count, call.event, call.error);
}

motley_code StepRunner::copy_to_host(const Submit& call) {
  const auto src = state_.buffers.find(call.reader.get<uint64_t>());
  const auto offset = call.reader.get<uint64_t>();
  uint64_t bytes = 0;
  std::byte* dst = staged(call, &bytes);
  if (dst == nullptr) return malformed(call.error);
  if (src == nullptr) return unknown(call.error);
  if (state_.api->copy_to_host == nullptr) return unsupported(call.error);
  call.job.held = {src};
  return state_.api->copy_to_host(call.queue, dst, src->raw, offset, bytes, call.event, call.error);
}

motley_code StepRunner::copy_from_host(const Submit& call) {
  const auto dst = state_.buffers.find(call.reader.get<uint64_t>());
  const auto offset = call.reader.get<uint64_t>();
  uint64_t bytes = 0;
  const std::byte* src = staged(call, &bytes);
  if (src == nullptr) return malformed(call.error);
  if (dst == nullptr) return unknown(call.error);
  if (state_.api->copy_from_host == nullptr) return unsupported(call.error);
  call.job.held = {dst};
  return state_.api->copy_from_host(call.queue, dst->raw, offset, src, bytes, call.event, call.error);
}

motley_code StepRunner::kv_export(const Submit& call) {
  const auto kv = state_.kv.find(call.reader.get<uint64_t>());
  const auto begin = call.reader.get<uint32_t>(), end = call.reader.get<uint32_t>();
  const Array<int32_t> blocks = call.reader.get_array<int32_t>(kBatchItemsMax);
  uint64_t bytes = 0;
  std::byte* dst = staged(call, &bytes);
  if (dst == nullptr) return malformed(call.error);
  if (kv == nullptr) return unknown(call.error);
  if (state_.api->kv_export == nullptr) return unsupported(call.error);
  call.job.held = {kv};
  return state_.api->kv_export(call.queue, kv->raw, blocks.data(), blocks.count, begin, end, dst, bytes, call.event,
                               call.error);
}

motley_code StepRunner::kv_import(const Submit& call) {
  const auto kv = state_.kv.find(call.reader.get<uint64_t>());
  const auto begin = call.reader.get<uint32_t>(), end = call.reader.get<uint32_t>();
  const Array<int32_t> blocks = call.reader.get_array<int32_t>(kBatchItemsMax);
  uint64_t bytes = 0;
  const std::byte* src = staged(call, &bytes);
  if (src == nullptr) return malformed(call.error);
  if (kv == nullptr) return unknown(call.error);
  if (state_.api->kv_import == nullptr) return unsupported(call.error);
  call.job.held = {kv};
  return state_.api->kv_import(call.queue, kv->raw, blocks.data(), blocks.count, begin, end, src, bytes, call.event,
                               call.error);
}

// The record's slot is the event's that is waited for. One that has fired orders nothing any more.
Status StepRunner::fence(const Record& record, const WorkerQueue& queue) const {
  if (record.header.slot == kNoSlot) return invalid_argument("a fence without an event");
  const auto& [generation, event] = events_[record.header.slot];
  if (event == nullptr || generation != record.header.generation) return ok_status();
  if (state_.api->fence == nullptr) return error(MOTLEY_UNIMPLEMENTED, "the plugin has no fence");
  motley_error failure{};
  return plugin_status(state_.api->fence(queue.owned.raw, event, &failure), failure);
}

bool StepRunner::has_fired(Pending& pending) const {
  if (pending.event == nullptr) return true;
  int32_t fired = 0;
  motley_error failure{};
  const motley_code code = state_.api->event_status(pending.event, &fired, &failure);
  if (fired != 0) pending.status = plugin_status(code, failure);
  return fired != 0;
}

// Extends each queue's run of fired events; whether any grew.
bool StepRunner::find_fired() {
  bool any = false;
  for (auto& [id, run] : runs_) {
    while (run.ready < run.pending.size() && has_fired(run.pending[run.ready])) {
      ++run.ready;
      any = true;
    }
  }
  return any;
}

bool StepRunner::publish() {
  if (!find_fired()) return false;
  // Looked at again until nothing is new: then what was found holds all that it depended on, in whichever queue, and
  // in the order of the calls nobody sees an event before those that it waited for.
  while (runs_.size() > 1 && find_fired()) {
  }
  std::vector<std::pair<Pending, Status*>> found;
  for (auto& [id, run] : runs_) {
    for (; run.ready > 0; --run.ready) {
      found.emplace_back(std::move(run.pending.front()), &run.unsaid);
      run.pending.pop_front();
    }
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.first.sequence < b.first.sequence; });
  for (auto& [pending, unsaid] : found) fire(pending, *unsaid);
  std::erase_if(runs_, [](const auto& entry) { return entry.second.pending.empty() && entry.second.unsaid.ok(); });
  if (memory_.header().bell_wanted.load(std::memory_order_seq_cst) != 0) ring_eventfd(bell_);
  return true;
}

void StepRunner::fire(Pending& pending, Status& unsaid) {
  EventSlot& slot = memory_.slot(pending.slot);
  slot.timed = 0;
  motley_event_times times{};
  times.struct_size = sizeof times;
  if (pending.event != nullptr) {
    if (state_.api->event_times != nullptr && state_.api->event_times(pending.event, &times, nullptr) == MOTLEY_OK) {
      slot.timed = 1, slot.start_ns = times.start_ns, slot.end_ns = times.end_ns;
    }
    events_[pending.slot] = {};
    state_.api->event_release(pending.event);
  } else if (pending.silent) {
    unsaid = pending.status;
  }
  if (!pending.silent && pending.status.ok()) pending.status = std::exchange(unsaid, ok_status());
  slot.code = pending.status.code();
  std::snprintf(slot.text, sizeof slot.text, "%s", pending.status.message().c_str());
  pending.job.reset();
  slot.state.store(pending.generation * 2 + 1, std::memory_order_seq_cst);
  if (slot.waiters.load(std::memory_order_seq_cst) != 0) futex_wake_all(slot.state);
  if (pending.queue != nullptr) --pending.queue->unfinished;
}

}  // namespace motley::worker
