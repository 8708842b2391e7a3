#include "sim/queue.hpp"

#include <sys/prctl.h>

#include <cmath>
#include <cstring>

#include "kit/border.hpp"

namespace motley::sim {
namespace {

using kit::fail;
using kit::Outcome;

constexpr uint32_t kItemsMax = 4096;            // programs, copies and fences together
constexpr double kWorkMax_ns = 1e15;            // simulated time of one piece of work
constexpr unsigned long kTimerSlack_ns = 1000;  // a sleep ends this exactly; the system's default is 50 us
constexpr const char* kLost = "the simulated device is lost (a fault of its description)";
constexpr const char* kStarves = "others have taken the simulated device's memory (a fault of its description)";

// Even in [0, 1): a function of its arguments alone.
double draw(uint64_t seed, uint64_t queue, uint64_t sequence) {
  uint64_t z = seed;
  for (const uint64_t word : {queue, sequence}) {
    z = (z ^ word) + 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
  }
  return static_cast<double>(z >> 11) * 0x1p-53;
}

Outcome outcome_of(const std::function<void()>& run) {
  motley_error error{};
  const motley_code code = kit::guard(&error, run);
  return {code, code == MOTLEY_OK ? "" : error.text};
}

}  // namespace

Queue::Queue(Device* device) : device_(device), id_(device->next_queue()) {
  motley_queue* raw = nullptr;
  call([&](motley_error* error) { return sim::inner().queue_create(device->inner_device.get(), &raw, error); });
  inner_ = {raw, sim::inner().queue_destroy};
  worker_ = std::thread([this] { loop(); });
  device->add_queue(this);
}

Queue::~Queue() {
  device_->remove_queue(this);
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_one();
  worker_.join();
}

void Queue::wake() {
  { std::lock_guard lock(mutex_); }  // whoever looked before is asleep by now
  changed_.notify_one();
}

// In virtual time a program is unfinished until its end, or until the host has seen its event fire: how far the worker
// has come must not matter.
bool Queue::full(int64_t now_ns) {
  if (!device_->clock.is_virtual()) return programs_ >= device_->spec.queue_depth;
  while (!virtual_programs_.empty() &&
         (virtual_programs_.front().second <= now_ns || virtual_programs_.front().first <= progress_->seen()))
    virtual_programs_.pop_front();
  return virtual_programs_.size() >= device_->spec.queue_depth;
}

int64_t Queue::duration_ns(const Item& item, double bandwidth_share) const {
  const double wobble = 1 + device_->spec.jitter * (2 * draw(device_->spec.seed, id_, item.event->sequence) - 1);
  const double ns = item.work.seconds(bandwidth_share) * 1e9 * item.verdict.factor * wobble;
  const double reload_ns = item.reload ? device_->spec.rules.reload_us * 1e3 : 0;
  return std::llround(std::min(ns + reload_ns, kWorkMax_ns)) + item.verdict.delay_ns;
}

std::shared_ptr<Event> Queue::push(Work work) {
  device_->require_alive();
  const int64_t now_ns = device_->clock.now();
  Item item;
  {
    std::lock_guard lock(mutex_);
    if ((work.program && full(now_ns)) || unfinished_ >= kItemsMax)
      fail(MOTLEY_RESOURCE_EXHAUSTED, "the queue is full; wait for an earlier event");
  }
  item.work = std::move(work);
  if (item.work.program) item.verdict = device_->judge_program(std::max(now_ns, virtual_end_ns_));
  if (item.verdict.dies) fail(MOTLEY_UNAVAILABLE, "%s", kLost);
  item.verdict.hangs = item.verdict.hangs || hung_ || device_->hung;
  item.reload = item.work.program && device_->residents.load(item.work.name);
  device_->reloads += item.reload;
  item.event = std::make_shared<Event>();
  item.event->progress = progress_;
  item.event->sequence = ++sequence_;
  item.event->hangs = item.verdict.hangs;
  item.order = device_->accesses.next_order();
  if (device_->clock.is_virtual() && !item.verdict.hangs) schedule(item, now_ns);
  if (!item.verdict.dies && !item.verdict.hangs && item.refusal.empty())
    device_->accesses.add({id_, item.order, item.work.accesses, item.event, item.start_ns, item.end_ns});
  std::shared_ptr<Event> event = item.event;
  if (item.work.poison) std::memset(item.work.poison, 0xff, item.work.poison_bytes);
  {
    std::lock_guard lock(mutex_);
    ++unfinished_;
    programs_ += item.work.program;
    items_.push_back(std::move(item));
  }
  changed_.notify_one();
  return event;
}

void Queue::schedule(Item& item, int64_t now_ns) {
  const int64_t earliest_ns = std::max({now_ns, virtual_end_ns_, item.work.ready_ns});
  const int64_t duration = duration_ns(item, device_->bandwidth_share());
  const Timeline::Busy taken = item.work.engine->take_parts(earliest_ns, duration);
  item.start_ns = taken.begin_ns, item.paused_ns = taken.end_ns - taken.begin_ns - duration;
  item.end_ns = virtual_end_ns_ = item.event->virtual_end_ns = taken.end_ns;
  // That it dies is known now, and must not depend on when the worker gets there.
  item.verdict.dies = item.end_ns > device_->death_ns();
  if (item.verdict.dies) device_->lose();
  if (item.work.program) virtual_programs_.emplace_back(item.event->sequence, item.end_ns);
  device_->accesses.forget(now_ns);
  item.refusal =
      device_->accesses.conflict({id_, item.order, item.work.accesses, item.event, item.start_ns, item.end_ns}, true)
          .value_or("");
}

void Queue::fence(std::shared_ptr<const Event> event) {
  device_->require_alive();
  // The thread that waits for what never comes could not be ended.
  if (event->hangs) hung_ = true;
  if (hung_) return;
  virtual_end_ns_ = std::max(virtual_end_ns_, event->virtual_end_ns);
  {
    std::lock_guard lock(mutex_);
    if (unfinished_ >= kItemsMax) fail(MOTLEY_RESOURCE_EXHAUSTED, "the queue is full; wait for an earlier event");
    ++unfinished_;
    items_.emplace_back().fence = std::move(event);
  }
  changed_.notify_one();
}

void Queue::loop() {
  prctl(PR_SET_TIMERSLACK, kTimerSlack_ns, 0, 0, 0);
  for (;;) {
    Item item;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stop_ || !items_.empty(); });
      if (items_.empty()) return;
      item = std::move(items_.front());
      items_.pop_front();
    }
    Outcome outcome;
    if (item.fence)
      item.fence->wait();
    else
      outcome = item.verdict.hangs ? hang() : device_->clock.is_virtual() ? run_virtual(item) : run_wall(item);
    if (!item.fence && outcome.code == MOTLEY_OK && item.work.program) {
      device_->programs += 1, device_->rows += item.work.rows, device_->padded_rows += item.work.padded_rows;
      device_->flops += item.work.flops, device_->padded_flops += item.work.padded_flops;
      device_->busy_ns += static_cast<uint64_t>(outcome.end_ns - outcome.start_ns);
    }
    const bool program = item.work.program;
    item.work = {};
    if (!device_->clock.is_virtual()) device_->accesses.remove(item.order);
    {
      std::lock_guard lock(mutex_);
      --unfinished_;
      programs_ -= program;
    }
    // The place in the queue is free before anyone can learn that the work is done.
    if (item.event) item.event->fire(std::move(outcome));
  }
}

Outcome Queue::run_virtual(Item& item) {
  Outcome outcome;
  if (item.verdict.dies)
    outcome = {MOTLEY_UNAVAILABLE, kLost};
  else if (item.verdict.starves)
    outcome = {MOTLEY_RESOURCE_EXHAUSTED, kStarves};
  else if (!item.refusal.empty())
    outcome = {MOTLEY_FAILED_PRECONDITION, item.refusal};
  else
    outcome = outcome_of(item.work.run);
  outcome.start_ns = item.start_ns + item.paused_ns,
  outcome.end_ns = item.end_ns;  // as if in one piece, so that times add up
  return outcome;
}

Outcome Queue::run_wall(Item& item) {
  const int64_t now_ns = kit::monotonic_ns();
  if (device_->lost()) return {MOTLEY_UNAVAILABLE, kLost, now_ns, now_ns};
  if (item.verdict.starves) return {MOTLEY_RESOURCE_EXHAUSTED, kStarves, now_ns, now_ns};
  if (const auto refusal = device_->accesses.conflict({id_, item.order, item.work.accesses, item.event}, false))
    return {MOTLEY_FAILED_PRECONDITION, *refusal, now_ns, now_ns};
  const int64_t duration = duration_ns(item, device_->bandwidth_share());
  const int64_t start_ns = item.work.engine->take(now_ns, duration);
  device_->running += item.work.program;
  sleep_until(start_ns, false);
  Outcome outcome;
  if (item.work.program) outcome = outcome_of(item.work.run);
  sleep_until(start_ns + duration, item.verdict.delay_ns > 0);
  if (device_->lost())
    outcome = {MOTLEY_UNAVAILABLE, kLost};
  else if (!item.work.program)
    outcome = outcome_of(item.work.run);
  device_->running -= item.work.program;
  outcome.start_ns = start_ns, outcome.end_ns = kit::monotonic_ns();
  item.work.engine->extend(outcome.end_ns);
  return outcome;
}

Outcome Queue::hang() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return stop_ || device_->known_lost(); });
  if (device_->known_lost()) return {MOTLEY_UNAVAILABLE, kLost};
  return {MOTLEY_UNAVAILABLE, "the simulated device hangs (a fault of its description)"};
}

// Ends early when the device is lost, a stall also when the queue is destroyed.
void Queue::sleep_until(int64_t time_ns, bool stalled) {
  const std::chrono::steady_clock::time_point end{std::chrono::nanoseconds(std::min(time_ns, device_->death_ns()))};
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, end, [&] { return (stop_ && stalled) || device_->known_lost(); });
}

}  // namespace motley::sim
