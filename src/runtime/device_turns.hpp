// Work on several devices at once that is no step: each on a thread and a queue of its own, within a limit.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "device/handles.hpp"

namespace motley {

// A device's part of it. Its thread's alone, but for due_ns().
class DeviceTurn {
 public:
  DeviceTurn(const Device& device, int64_t limit_ns, bool virtual_time, int64_t now_ns)
      : device_(device), limit_ns_(limit_ns), virtual_time_(virtual_time), began_ns_(now_ns), now_ns_(now_ns) {}

  const Device& device() const { return device_; }
  const QueueHandle& queue() const { return queue_; }
  // What was just enqueued there; waits for earlier work where much is under way.
  Status add(Result<EventHandle> event);
  // For all that was added. Nothing is kept any more.
  Status finish();
  // Until the device has ended what reads or writes it.
  void keep(std::shared_ptr<const void> memory) { kept_.push_back(std::move(memory)); }

  Status run(const std::function<Status(DeviceTurn&)>& work);
  // When the device is late, of system_clock(); INT64_MAX where nobody waits for it. Any thread.
  int64_t due_ns() const { return due_ns_.load(); }
  int64_t virtual_ns() const { return now_ns_ - began_ns_; }  // that it took

 private:
  void begin_wait();
  Status wait_oldest();

  const Device& device_;
  const int64_t limit_ns_;
  const bool virtual_time_;
  const int64_t began_ns_;
  int64_t now_ns_;
  std::vector<std::shared_ptr<const void>> kept_;  // shared with who uses it
  QueueHandle queue_;
  std::deque<EventHandle> under_way_;
  std::atomic<int64_t> due_ns_{INT64_MAX};
};

struct DeviceTask {
  std::string name;  // of the device
  const Device* device = nullptr;
  std::function<Status(DeviceTurn&)> work;  // owns all that it touches, but the device
};

struct DeviceTurnOptions {
  bool virtual_time = false;
  int64_t limit_ns = INT64_MAX;  // of what is enqueued at once; INT64_MAX: a device may take for ever
  // A device that is late, or answered so: whoever waits for it in a call is to be let go. On the calling thread.
  std::function<void(const DeviceTask&, const Status& why)> lost;
};

// Runs all, and answers how long that took (of virtual time, or of system_clock()), or the first failure. A thread that
// stays in a call of a device that was given up is left there, with what its work owns.
Result<int64_t> run_on_devices(std::vector<DeviceTask> tasks, const DeviceTurnOptions& options, const Clock& clock);

}  // namespace motley
