// Instance: a model being served, from file to engine.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/status.hpp"
#include "base/trace.hpp"
#include "device/registry.hpp"
#include "engine/engine.hpp"
#include "llm/device_set.hpp"
#include "llm/placing.hpp"
#include "llm/planning.hpp"
#include "llm/text_model.hpp"
#include "model/model.hpp"
#include "planner/drift.hpp"
#include "planner/move_cost.hpp"
#include "planner/placement.hpp"
#include "runtime/runtime_executor.hpp"
#include "text/chat_template.hpp"
#include "text/tokenizer.hpp"

namespace motley {

// What came of adding devices.
struct AddedDevices {
  std::vector<std::string> names;  // as listed
  std::string note;                // what the plan does with them, and with what was forced; one line
};

// What a device has done for steps so far, of all executors, as runtime/driver.hpp counts: nothing of what was
// measured. One that was lost and came back counts on.
struct DeviceWork {
  std::string name;
  uint64_t programs = 0, rows = 0, bytes_moved = 0;
  double busy_s = 0;
  bool lost = false, in_force = false;  // in_force: the plan uses it
  bool simulated = false;
  std::string weight_formats;  // as DriverReport
  double weight_error = 0;
  motley_device_stats own{};  // by its own count since it was opened, whatever it did
};

struct InstanceOptions {
  std::filesystem::path model;
  std::string devices = "auto";
  std::string device_map;                         // names that simulated devices have there; device_map.hpp
  std::map<std::string, uint64_t> device_memory;  // bytes that a listed device may use at most
  PlanSettings planning;
  Isolation isolation = Isolation::kNone;
  // Where no plan is forced or given: serve before all devices can. Those that are not measured yet are measured
  // between the steps of the first that the model fits; those that compile for long do so while the best plan of the
  // others serves. Then the best plan takes over.
  bool serve_first = false;
  // Where nothing is forced and there are several devices: plan anew when their speed changes, and move.
  bool adapt = false;
  std::string kv_cache_dtype = "auto";  // auto (= float16), float32, float16, bfloat16, fp8, int8; f32, f16, bf16
  uint64_t kv_cache_memory_bytes = 0;   // 0: see apps/cli.cpp
  uint32_t block_size = 16;
  uint32_t threads = 0;  // 0 = the device's default
  bool deterministic = false;
  std::string quality = "exact";   // of weights: parse_quality()
  std::string chat_template_file;  // "" = the model's own
  Trace* trace = nullptr;          // borrowed, outlives the instance; null = none
  std::function<uint64_t()> host_memory = [] { return host_memory_available(); };  // as of RuntimeOptions
  EngineOptions engine;  // max_model_len 0 = the model's context, lowered to what the pool holds
};

// What the runtime of such an instance is made for, but for what its placement decides.
RuntimeOptions runtime_options(const InstanceOptions& options, const ModelConfig& model);

// Owns everything a model needs to run. Its parts are as thread-safe as each says.
class Instance {
 public:
  // Any failure is one line that names the file, option or device and the remedy.
  static Result<std::unique_ptr<Instance>> open(const InstanceOptions& options);
  ~Instance();

  const Model& model() const { return *text_.model; }
  const Tokenizer& tokenizer() const { return *text_.tokenizer; }
  // Null when the model has no template; template_error() then says what to do.
  const ChatTemplate* chat_template() const { return chat_template_.get(); }
  const Status& template_error() const { return template_error_; }
  Engine& engine() { return *engine_; }
  // What the instance was started with; a lost device changes what is in force, and it is logged.
  const Placement& placement() const { return placement_; }
  // Null where there was nothing to choose, one device, or until the devices are measured. Thread-safe.
  std::shared_ptr<const PlannedModel> planned() const;
  // As it is now. Thread-safe.
  DeviceSet devices() const;
  // The devices that the plan in force uses, by name; and for people: "CPU:0", "CPU:0/cores=0 + CPU:0/cores=1".
  // Thread-safe.
  std::vector<std::string> devices_in_force() const;
  std::string device_text() const;
  // Opens devices (names or lists as in InstanceOptions; a lost one is opened anew), measures what is not known of them
  // while requests run, plans anew over all, and has the plan take over between two steps: no request notices but by
  // the pause. What was forced at the start is kept where the devices allow it, else given up, which the note says. Any
  // failure leaves everything as it was. Any thread; UNAVAILABLE while another change, or the first measuring, is under
  // way.
  Result<AddedDevices> add_devices(const std::vector<std::string>& names);
  // Has add_devices() under way and later ones fail with CANCELLED, and ends the first measuring. Any thread.
  void end_changes() {
    changes_.request_stop();
    planning_.request_stop();
    adapting_.request_stop();
  }
  // What each device has done so far, in the order of the list. Asks which are lost, as DeviceSet::mark_failed().
  // Thread-safe.
  std::vector<DeviceWork> device_work();
  // A picture of the plan in force, for a terminal (UTF-8, ends with a newline); "" where there was nothing to choose.
  // Changes when a device is lost. Thread-safe.
  std::string plan_picture() const;
  // The worker processes of the devices that are not lost. Thread-safe.
  std::vector<DeviceWorker> workers() const { return devices().workers(); }

 private:
  class Adapting;
  // True where it was false before, or is this thread's already; false again at the end of the scope.
  class Claim {
   public:
    explicit Claim(std::atomic<bool>& flag, bool own = false) : flag_(flag), held_(!flag.exchange(true) || own) {}
    ~Claim() {
      if (held_) flag_ = false;
    }
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;
    bool held() const { return held_; }

   private:
    std::atomic<bool>& flag_;
    const bool held_;
  };
  Instance(TextModel text, DeviceRegistry registry);
  Status load_template(const std::string& file);
  Status open_devices(const InstanceOptions& options);
  Status place(const InstanceOptions& options);
  Result<Placement> alone_on(const DeviceSet& devices, size_t index, bool leaves_room = false) const;
  Status place_first();
  Status place_together(bool may_serve_first = false);
  Result<std::vector<std::string>> slow_to_compile(const PlannedModel& planned) const;
  Status serve_while_compiling(PlannedModel* planned, const std::vector<std::string>& slow);
  Result<PlannedModel> plan_without(const PlannedModel& planned, const std::vector<std::string>& names) const;
  static void tell(const PlanReport& report);
  void plan_later(const std::stop_token& stop);
  std::optional<PlannedModel> plan_without_compiler(const PlannedModel& tried, const std::string& device,
                                                    const Status& why) const;
  Result<std::vector<ListedDevice>> listed_anew(const std::vector<std::string>& names) const;
  Result<PlannedModel> plan_over(const DeviceSet& devices, const std::vector<std::string>& added, std::string* note);
  // The devices that a change begins with. It is refused where they were started anew before it is made.
  struct KnownDevices {
    DeviceSet devices;
    uint64_t restarts = 0;
  };
  KnownDevices known_devices() const;
  Status check_known(const KnownDevices& known) const;
  Status check_take_over(const KnownDevices& known, const Placement& placement) const;
  // `prepared`: an executor of the plan, to be taken if the epoch is still the one it was made for; null = none.
  Result<Executor*> take_over(const KnownDevices& known, const std::shared_ptr<const PlannedModel>& planned,
                              std::unique_ptr<RuntimeExecutor> prepared = nullptr);
  // What is made of a plan while another is in force: no executor where there is no room for both; weights then.
  struct Prepared {
    std::unique_ptr<RuntimeExecutor> executor;
    std::vector<std::shared_ptr<const PackedWeight>> weights;  // shared with executors
  };
  Result<Executor*> take_over_with_room(const KnownDevices& known, const std::shared_ptr<const PlannedModel>& planned,
                                        Prepared* prepared);
  PlanReport report_in_force() const;
  struct RoomOnHost {
    HostRoom room = HostRoom::kNone;
    PackingLimit weights;  // beside the plan in force
    std::string why;       // there is no more than that
  };
  RoomOnHost room_on_host(const PlannedModel& next) const;
  Result<Prepared> prepare(const KnownDevices& known, const PlannedModel& next, const RuntimeOptions& options) const;
  Status change_to(const KnownDevices& known, PlannedModel next, const std::stop_token& stop,
                   std::string* failed = nullptr, const std::function<Status()>& still_wanted = {});
  // Follows the devices' speed until stopped.
  void adapt(const std::stop_token& stop);
  Epoch next_epoch() const;
  // By the name of the device: as far as it is known.
  DriftFactors drift() const;
  DriftFactors planned_for() const;  // what drift() was when the plan in force came
  void set_drift(DriftFactors factors);
  // What is known of the devices that are not lost, as they are now.
  PlanInput input_now(const PlannedModel& known, const DeviceSet& devices) const;
  // `planned`: what is known of the devices, or null.
  Result<RuntimeOptions> options_for(const Placement& placement, const DeviceSet& devices, const PlannedModel* planned,
                                     const std::stop_token& stop = {}) const;
  // With the report, if any, of the placement: it is in force then.
  Status make_runtime(const Placement& placement, std::unique_ptr<RuntimeExecutor> prepared = nullptr,
                      PlanReport* report = nullptr);
  Status serve_on_any(const Status& why);
  void count_work(std::map<std::string, DriverWork>* work) const;
  void drop_runtime();
  bool restart_workers(std::string_view why);
  Result<Executor*> recover(const Status& why);
  Status serve_on_what_is_left(const Status& why);
  Status put_in_force(PlanReport report, std::unique_ptr<RuntimeExecutor> prepared = nullptr);
  Status start(const InstanceOptions& options);

  TextModel text_;
  DeviceRegistry registry_;
  std::unique_ptr<ChatTemplate> chat_template_;
  Status template_error_;
  RuntimeOptions runtime_options_;
  PlanSettings settings_;
  KvSettings kv_;
  Placement placement_;
  Epoch epoch_ = 0;
  bool plans_later_ = false;
  std::optional<PlannedModel> next_;      // what takes over once it is compiled; plan_later()'s
  std::vector<int64_t> restarted_at_ns_;  // of system_clock(); the engine's thread of replacements only
  std::shared_ptr<Holdings> holdings_;
  std::atomic<bool> changing_{false};  // one changes the devices, or measures them for the first time
  std::stop_source changes_;
  mutable std::mutex mutex_;  // guards what follows, which other threads look at
  DeviceSet devices_;
  uint64_t restarts_ = 0;  // of workers, where what was left could not serve
  std::shared_ptr<const PlannedModel> planned_;
  std::optional<PlanReport> in_force_;
  DriftFactors drift_, planned_for_;        // of what was measured
  std::map<std::string, DriverWork> work_;  // by executors that are gone
  DeviceSet runtime_devices_;               // which runtime_ uses
  std::unique_ptr<RuntimeExecutor> runtime_;

  std::unique_ptr<Engine> engine_;
  std::jthread planning_;  // plan_later(); ends before the engine
  std::jthread adapting_;  // adapt(); likewise
};

// "float16" and the like to motley_dtype; INVALID_ARGUMENT lists the names.
Result<int32_t> parse_kv_dtype(std::string_view name);

}  // namespace motley
