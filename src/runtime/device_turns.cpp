#include "runtime/device_turns.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "device/virtual_time.hpp"
#include "device/worker/worker_process.hpp"

namespace motley {
namespace {

constexpr size_t kAhead = 2;                  // that are enqueued on a device
constexpr int64_t kGraceNs = 500'000'000;     // a turn that is not stuck says first that its device is late
constexpr int64_t kGiveUpNs = 2'000'000'000;  // for a thread whose device was given up, to come back
constexpr std::chrono::milliseconds kLookEvery{100};

bool is_loss(const Status& status) {
  return status.code() == MOTLEY_UNAVAILABLE || status.code() == MOTLEY_DEADLINE_EXCEEDED;
}

// What the threads of one call share. It lives as long as the last of them.
struct Job {
  std::vector<DeviceTask> tasks;
  std::deque<DeviceTurn> turns;  // by task, as are the results
  std::mutex mutex;              // guards the two below
  std::condition_variable ended;
  std::vector<std::optional<Status>> results;

  void run(size_t task) {
    Status status;
    try {
      status = turns[task].run(tasks[task].work);
    } catch (const std::bad_alloc&) {
      status = error(MOTLEY_RESOURCE_EXHAUSTED, "no memory");
    }
    end(task, std::move(status));
  }
  void end(size_t task, Status status) {
    std::lock_guard lock(mutex);
    results[task] = std::move(status);
    ended.notify_all();
  }
  bool has_ended(size_t task) {
    std::lock_guard lock(mutex);
    return results[task].has_value();
  }
};

// Ends once all tasks have, or are given up.
Status wait_for(Job& job, const DeviceTurnOptions& options) {
  std::vector<bool> told(job.tasks.size());
  int64_t give_up_ns = INT64_MAX;
  std::unique_lock lock(job.mutex);
  for (;;) {
    const bool all = std::all_of(job.results.begin(), job.results.end(), [](const auto& r) { return r.has_value(); });
    const int64_t now_ns = system_clock().now_ns();
    for (size_t i = 0; i < told.size(); ++i) {
      const bool late = !job.results[i] && job.turns[i].due_ns() < now_ns - kGraceNs;
      if (told[i] || (!late && (!job.results[i] || !is_loss(*job.results[i])))) continue;
      told[i] = true;
      const Status why =
          late ? error(MOTLEY_DEADLINE_EXCEEDED, "it did not come back from a call in time") : *job.results[i];
      if (late) give_up_ns = std::min(give_up_ns, now_ns + kGiveUpNs);
      lock.unlock();
      if (options.lost) options.lost(job.tasks[i], why);
      lock.lock();
    }
    if (all) break;
    if (now_ns > give_up_ns) return error(MOTLEY_DEADLINE_EXCEEDED, "a device does not come back from a call");
    job.ended.wait_for(lock, kLookEvery);
  }
  for (size_t i = 0; i < job.results.size(); ++i)
    if (!job.results[i]->ok()) return job.results[i]->annotate(job.tasks[i].name);
  return ok_status();
}

}  // namespace

void DeviceTurn::begin_wait() {
  if (limit_ns_ != INT64_MAX) due_ns_ = system_clock().now_ns() + limit_ns_;
}

Status DeviceTurn::run(const std::function<Status(DeviceTurn&)>& work) {
  const VirtualTimeScope time(&now_ns_);
  begin_wait();
  ASSIGN_OR_RETURN(queue_, device_.create_queue());
  Status status = work(*this);
  if (status.ok()) status = finish();
  begin_wait();
  if (status.code() == MOTLEY_DEADLINE_EXCEEDED) due_ns_ = 0;  // who waits for the device below is let go at once
  under_way_.clear();
  queue_.reset();  // waits for what is enqueued
  due_ns_ = INT64_MAX;
  return status;
}

Status DeviceTurn::add(Result<EventHandle> event) {
  if (!event.ok()) return event.error();
  under_way_.push_back(*std::move(event));
  return under_way_.size() < kAhead ? ok_status() : wait_oldest();
}

Status DeviceTurn::finish() {
  while (!under_way_.empty()) RETURN_IF_ERROR(wait_oldest());
  kept_.clear();
  return ok_status();
}

Status DeviceTurn::wait_oldest() {
  begin_wait();
  const EventHandle oldest = std::move(under_way_.front());
  under_way_.pop_front();
  const uint64_t timeout_ns = limit_ns_ == INT64_MAX ? UINT64_MAX : static_cast<uint64_t>(limit_ns_);
  Status status = device_.wait(oldest, timeout_ns);
  if (status.code() == MOTLEY_DEADLINE_EXCEEDED && device_.worker() != nullptr && device_.worker()->at_work()) {
    begin_wait();  // on a machine that is short of cores
    status = device_.wait(oldest, timeout_ns);
  }
  if (status.code() == MOTLEY_DEADLINE_EXCEEDED) return error(MOTLEY_DEADLINE_EXCEEDED, "it did not end in time");
  begin_wait();
  if (!status.ok() || !virtual_time_) return status;
  if (const auto times = device_.times(oldest); times.ok()) now_ns_ = std::max(now_ns_, times->end_ns);
  return status;
}

Result<int64_t> run_on_devices(std::vector<DeviceTask> tasks, const DeviceTurnOptions& options, const Clock& clock) {
  const int64_t began_ns = system_clock().now_ns();
  const auto job = std::make_shared<Job>();  // shared with the threads, of which one may be left behind
  job->tasks = std::move(tasks);
  job->results.resize(job->tasks.size());
  for (const DeviceTask& task : job->tasks)
    job->turns.emplace_back(*task.device, options.limit_ns, options.virtual_time,
                            options.virtual_time ? clock.now_ns() : 0);
  std::vector<std::thread> threads(job->tasks.size());
  for (size_t i = 0; i < threads.size(); ++i) {
    try {
      threads[i] = std::thread([job, i] { job->run(i); });
    } catch (const std::system_error& refused) {
      job->end(i, error(MOTLEY_RESOURCE_EXHAUSTED, "no thread: {}", refused.what()));
    }
  }
  const Status status = wait_for(*job, options);
  for (size_t i = 0; i < threads.size(); ++i) {
    if (!threads[i].joinable()) continue;
    if (job->has_ended(i)) {
      threads[i].join();
    } else {
      threads[i].detach();
    }
  }
  RETURN_IF_ERROR(status);
  if (!options.virtual_time) return system_clock().now_ns() - began_ns;
  int64_t longest_ns = 0;
  for (const DeviceTurn& turn : job->turns) longest_ns = std::max(longest_ns, turn.virtual_ns());
  return longest_ns;
}

}  // namespace motley
