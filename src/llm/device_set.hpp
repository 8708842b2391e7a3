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

// Which devices run in worker processes of their own. Their program is the process's own, which must be the motley
// command or one like it (WorkerOptions::program).
enum class Isolation {
  kNone,
  kAccelerators,  // those behind a vendor's driver, which may take its process along
  kAll,
};

struct DeviceSetOptions {
  uint32_t threads = 0;  // of each host device; 0 = its default
  bool deterministic = false;
  bool virtual_time = false;
  Isolation isolation = Isolation::kNone;
  double compile_seconds_max = 0;               // that a worker may compile, if that is more than it may anyway
  Quality quality = Quality::kExact;            // of the formats that weights are held in
  std::map<std::string, uint64_t> memory_caps;  // bytes by listed name
};

// "exact", "balanced" or "fast".
Result<Quality> parse_quality(std::string_view name);
std::string_view quality_name(Quality quality);

// The process that a device runs in.
struct DeviceWorker {
  std::string device;
  pid_t pid = -1;
};

// A value: which devices there are never changes, and copies share them; the last copy closes a device. One that is
// lost stays in the set, marked. Thread-safe.
class DeviceSet {
 public:
  // UNIMPLEMENTED for a device that lacks what this runtime asks of one, with its name; INVALID_ARGUMENT for a cap on a
  // device that is not listed.
  static Result<DeviceSet> open(std::vector<ListedDevice> listed, const DeviceSetOptions& options);
  // These devices and `more`, opened in the same way. One that has the name of a lost one takes its place.
  // ALREADY_EXISTS: it is here and not lost; FAILED_PRECONDITION: it hangs in this process; INVALID_ARGUMENT: it shares
  // cores with another that is not lost.
  Result<DeviceSet> with(std::vector<ListedDevice> more) const;

  size_t size() const { return devices_.size(); }
  const ListedDevice& listed(size_t i) const { return devices_[i]->listed; }
  const Device& device(size_t i) const { return devices_[i]->device; }
  const DeviceSetOptions& options() const { return options_; }
  const std::map<std::string, uint64_t>& memory_caps() const { return options_.memory_caps; }
  std::optional<size_t> find(std::string_view name) const;
  // Those that are not lost.
  std::vector<NamedDevice> named() const;
  // The names of those that are simulated, lost or not.
  std::vector<std::string> simulated() const;
  bool has_accelerators() const;
  std::vector<MeasuredDevice> measured() const;
  // Ends its worker, if it has one: what a device in this process still does (`at_work`) cannot be ended.
  void mark_lost(std::string_view name, bool at_work = false);
  // Marks those that say so themselves, or whose worker has ended; their names. Asks the devices: one that hangs keeps
  // it waiting until its worker is killed.
  std::vector<std::string> mark_failed();
  bool has_worker(std::string_view name) const;
  // Of those that are not lost and have a worker process.
  std::vector<DeviceWorker> workers() const;
  bool lost(size_t i) const { return devices_[i]->lost.load(); }

 private:
  struct Opened {
    ListedDevice listed;
    Device device;
    std::atomic<bool> lost{false}, at_work{false};
    std::shared_ptr<BusyTime> busy = std::make_shared<BusyTime>();
    std::shared_ptr<UncompiledRows> uncompiled = std::make_shared<UncompiledRows>(listed.description.name);
  };
  static Result<std::shared_ptr<Opened>> open_one(ListedDevice listed, const DeviceSetOptions& options);

  std::vector<std::shared_ptr<Opened>> devices_;  // shared by the copies of the set
  uint64_t program_bytes_max(const DeviceDescription& device) const;
  Status take_caps(const std::map<std::string, uint64_t>& caps);

  DeviceSetOptions options_;
};

}  // namespace motley
