// RuntimeExecutor: the Executor over devices of this machine.
//
// One lane so far; its stages may have any number of shards on devices of any kind.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/clock.hpp"
#include "base/trace.hpp"
#include "device/handles.hpp"
#include "engine/executor.hpp"
#include "model/model.hpp"
#include "planner/placement.hpp"
#include "runtime/driver.hpp"
#include "runtime/flight.hpp"
#include "runtime/lane_links.hpp"

namespace motley {

struct RuntimeOptions {
  uint32_t rows_max = 2048;        // of one step
  uint32_t logit_rows_max = 1024;  // of one step
  uint32_t positions_max = 0;      // longest sequence; 0 = the model's context
  bool virtual_time = false;       // every device is simulated and keeps virtual time; times of results are virtual
  VirtualLink virtual_link;        // between drivers, with virtual_time
  // How long a device may be at a step of so many rows and positions read, what it waits for others not counted, before
  // it is lost; in nanoseconds; null = forever.
  std::function<int64_t(double rows, double reads)> step_limit_ns;
  Trace* trace = nullptr;  // borrowed; null = none
};

// An opened device under the name that the placement uses.
struct NamedDevice {
  std::string name;
  const Device* device = nullptr;
  std::vector<int> cores = {};  // that the device has for itself; empty = none, or all
  bool simulated = false;
  bool any_rows = true;  // false: it runs row counts it has compiled for
};

// What a step needs on the device beside weights and KV where it holds the whole model, in bytes. UNIMPLEMENTED with
// the device's reason when it cannot run the model.
Result<uint64_t> step_bytes(const Model& model, const Device& device, const RuntimeOptions& options);

// What a device has done in an executor's life.
struct DriverReport {
  std::string device;
  DriverWork work;
  uint64_t weight_bytes = 0;  // resident
};

struct LostDevice {
  std::string name;
  bool hangs = false;  // it did not answer in time: without a worker that was killed it may still be at work
};

// submit() by one thread; results are set on the drivers' threads. Borrowed: model (while alive), devices, clock.
class RuntimeExecutor : public Executor {
 public:
  // Packs the weights (and lets go of the file's pages), makes the KV pools, compiles the tapes. INVALID_ARGUMENT for a
  // placement that does not fit the model or names a device that is not there.
  static Result<std::unique_ptr<RuntimeExecutor>> create(const Model& model, const Placement& placement,
                                                         std::span<const NamedDevice> devices,
                                                         const RuntimeOptions& options,
                                                         const Clock& clock = system_clock());
  ~RuntimeExecutor() override;

  ExecutorDescription describe() const override { return description_; }
  Future<StepResult> submit(StepPlan plan) override;
  std::vector<DriverReport> reports() const;
  // The devices whose loss ended this executor, the first one first; all of them once no step is under way. None where
  // they could not meet, and none is to blame. Their workers are killed at once, so that nobody waits for them. Any
  // thread.
  std::vector<LostDevice> lost_devices() const;

 private:
  static constexpr uint32_t kSlots = 8192;

  RuntimeExecutor(const RuntimeOptions& options, const Clock& clock) : options_(options), clock_(clock) {}
  void describe(const Model& model, const Placement& placement, std::span<const NamedDevice> devices);
  Status make_drivers(const Model& model, const Placement& placement, std::span<const NamedDevice> devices);
  Result<std::shared_ptr<const DevicePart>> make_part(const Model& model, const Placement& placement,
                                                      const LanePart& part, const NamedDevice& device) const;
  DriverOptions driver_options(const NamedDevice& device) const;
  void start();
  template <typename Visit>
  void each_driver(const Visit& visit) {
    for (const auto& way : ways_) {
      for (const auto& driver : way) visit(*driver);
    }
  }
  Status admit(const StepPlan& plan);
  Status health() const;
  void finished(Flight& flight);
  void hand_in(Flight& flight);
  void lost(const Driver& driver, const Status& why);
  void broken(const Status& why);
  void abort_meetings();
  void watch(const std::stop_token& stop);

  const RuntimeOptions options_;
  const Clock& clock_;
  ExecutorDescription description_;

  int64_t longest_limit_ns_ = 0;  // of the steps so far; the submitting thread's

  mutable std::mutex mutex_;  // guards the six below
  std::condition_variable_any begun_;
  uint32_t under_way_ = 0;
  std::deque<std::shared_ptr<Flight>> flights_;  // in the order of submission; results go out in it
  bool handing_in_ = false;                      // a thread is at that
  Status lost_;  // a device answered UNAVAILABLE, or not at all: so does every later step
  std::vector<LostDevice> lost_devices_;
  int64_t last_finished_ns_ = 0;
  // Ways on which steps run side by side: drivers of all parts, by way. Their threads use the above.
  std::vector<std::vector<std::unique_ptr<Driver>>> ways_;
  size_t next_way_ = 0;  // the submitting thread's
  std::jthread watch_;   // last: it looks at the drivers
};

}  // namespace motley
