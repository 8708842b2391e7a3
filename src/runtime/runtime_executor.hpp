// RuntimeExecutor: the Executor over devices of this machine.
//
// Its lanes run side by side; what they need alike of a device, weights or a KV pool, is there once.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/clock.hpp"
#include "engine/executor.hpp"
#include "model/model.hpp"
#include "planner/placement.hpp"
#include "runtime/flight.hpp"
#include "runtime/holdings.hpp"
#include "runtime/kv_mover.hpp"
#include "runtime/lane_runner.hpp"
#include "runtime/runtime_options.hpp"
#include "runtime/step_totals.hpp"

namespace motley {

// What programs of a step need of the device for themselves where it holds the whole model, in bytes. UNIMPLEMENTED
// with the device's reason when it cannot run the model.
Result<uint64_t> workspace_bytes(const Model& model, const Device& device, const RuntimeOptions& options);

// What a device has done in an executor's life.
struct DriverReport {
  std::string device;
  DriverWork work;
  uint64_t weight_bytes = 0;   // resident
  std::string weight_formats;  // that weights were made, "F16,Q8_0"; empty: all are as in the file
  double weight_error = 0;     // of those: root mean square, relative
};

struct LostDevice {
  std::string name;
  bool hangs = false;  // it did not answer in time: without a worker that was killed it may still be at work
};

// How much may be packed in a memory that several devices share.
struct PackingLimit {
  std::map<std::string, double> devices;  // bytes that each holds for one of the model's
  uint64_t bytes = 0;
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
  Result<KvContents> save_kv(std::vector<KvBlock> blocks) override;
  Result<KvLoaded> load_kv(std::shared_ptr<const KvContents> contents, std::vector<KvMove> moves) override;
  std::vector<DriverReport> reports() const;
  // [lane] of steps that went well: each counts for a device once its own part of it has ended. Any thread.
  std::vector<TotalsByDevice> totals() const;
  // What an executor of the placement would hold packed, without the rest of it: whoever keeps it has it, when an
  // executor of the same holdings needs it. What a device has no room for is left out, and what is beyond `limit` if
  // nobody holds it yet. Other errors as of create().
  static Result<std::vector<std::shared_ptr<const PackedWeight>>> pack(const Model& model, const Placement& placement,
                                                                       std::span<const NamedDevice> devices,
                                                                       const RuntimeOptions& options,
                                                                       const PackingLimit& limit = {});
  // The devices whose loss ended this executor, the first one first; all of them once no step is under way. None where
  // they could not meet, and none is to blame. Their workers are killed at once, so that nobody waits for them. Any
  // thread.
  std::vector<LostDevice> lost_devices() const;

 private:
  RuntimeExecutor(const Model& model, const RuntimeOptions& options, const Clock& clock)
      : options_(options),
        clock_(clock),
        holdings_(options.holdings != nullptr ? options.holdings : std::make_shared<Holdings>(model)) {}
  void describe(const Model& model, const Placement& placement);
  void start();
  Status admit(const StepPlan& plan);
  Status health() const;
  void hand_in(Flight& flight);
  void make_mover();
  void lost(const std::string& device, WorkerProcess* worker, const Status& why);
  void broken(const Status& why);
  void abort_meetings();
  void watch(const std::stop_token& stop);

  const RuntimeOptions options_;
  const Clock& clock_;
  ExecutorDescription description_;
  const std::shared_ptr<Holdings> holdings_;

  std::vector<std::vector<uint32_t>> sections_;  // [lane] blocks of each of its pool's sections

  int64_t longest_limit_ns_ = 0;  // of the steps so far; the submitting thread's

  struct LaneState {
    uint32_t under_way = 0;
    bool ended = false;  // a step was handed in as lost: behind it none counts, though another way may have run it
    int64_t last_finished_ns = 0;
  };
  mutable std::mutex mutex_;  // guards the four below
  std::condition_variable_any begun_;
  std::vector<LaneState> states_;  // [lane]
  Status lost_;                    // a device answered UNAVAILABLE, or not at all: so does every later step
  std::vector<LostDevice> lost_devices_;
  std::vector<std::unique_ptr<LaneRunner>> lanes_;  // their threads use the above
  std::optional<KvMover> mover_;
  std::jthread watch_;  // last: it looks at the drivers
};

}  // namespace motley
