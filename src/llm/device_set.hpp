// DeviceSet: the devices of an instance, opened, under the names by which they were listed.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "device/device_list.hpp"
#include "device/handles.hpp"
#include "runtime/measure.hpp"
#include "runtime/runtime_executor.hpp"

namespace motley {

struct DeviceSetOptions {
  uint32_t threads = 0;  // of each host device; 0 = its default
  bool deterministic = false;
  bool virtual_time = false;
  bool isolate = false;                         // each device in a worker process of its own
  std::map<std::string, uint64_t> memory_caps;  // bytes by listed name
};

// What a device has done so far.
struct DeviceWork {
  std::string name;
  uint64_t programs = 0, rows = 0, bytes_moved = 0;
  double busy_s = 0;
};

// The process that a device runs in.
struct DeviceWorker {
  std::string device;
  pid_t pid = -1;
};

// Fixed once opened; a device that is lost stays in the set, marked. Thread-safe, but for work(), which one thread at a
// time may call: it asks the devices, and one that hangs keeps it waiting until its worker is killed.
class DeviceSet {
 public:
  // UNIMPLEMENTED for a device that lacks what this runtime asks of one, with its name; INVALID_ARGUMENT for a cap on a
  // device that is not listed.
  static Result<DeviceSet> open(std::vector<ListedDevice> listed, const DeviceSetOptions& options);

  size_t size() const { return devices_.size(); }
  const ListedDevice& listed(size_t i) const { return devices_[i]->listed; }
  const Device& device(size_t i) const { return devices_[i]->device; }
  const std::map<std::string, uint64_t>& memory_caps() const { return memory_caps_; }
  std::optional<size_t> find(std::string_view name) const;
  // Those that are not lost.
  std::vector<NamedDevice> named() const;
  std::vector<MeasuredDevice> measured() const;
  // Ends its worker, if it has one: what a device in this process still does cannot be ended.
  void mark_lost(std::string_view name);
  // Marks those that say so themselves, or whose worker has ended; their names.
  std::vector<std::string> mark_failed();
  bool has_worker(std::string_view name) const;
  // Of those that are not lost and have a worker process.
  std::vector<DeviceWorker> workers() const;
  bool lost(size_t i) const { return devices_[i]->lost.load(); }
  // Of a device that is lost: what it last said. One that gives no figures is marked.
  std::vector<DeviceWork> work();

 private:
  struct Opened {
    ListedDevice listed;
    Device device;
    std::atomic<bool> lost{false};
    DeviceWork work;
  };
  std::vector<std::unique_ptr<Opened>> devices_;
  std::map<std::string, uint64_t> memory_caps_;
};

}  // namespace motley
