// What happens to an instance's devices while it serves: they are measured, lost, added.
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <utility>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "llm/instance.hpp"
#include "llm/serving_gate.hpp"
#include "planner/plan.hpp"
#include "planner/plan_picture.hpp"

namespace motley {
namespace {

constexpr int64_t kPatienceWithTheLast = 10;  // nobody takes over from it, and it may be slow only
constexpr size_t kRestartsMax =
    4;  // within kRestartsWithinNs: more, and what they are given to do may be what ends them
constexpr int64_t kRestartsWithinNs = 60'000'000'000;
constexpr size_t kDevicesPlannedFully = 4;  // while requests wait: with more, the first good plan is taken

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// As the command line says it; "" where nothing is forced.
std::string forced_text(const PlanSettings& settings) {
  std::vector<std::string> options;
  if (!settings.plan_file.empty()) options.push_back("--plan " + settings.plan_file);
  for (const auto& [name, size] : {std::pair{"--tensor-parallel-size", settings.tensor_parallel_size},
                                   std::pair{"--pipeline-parallel-size", settings.pipeline_parallel_size}}) {
    if (size > 0) options.push_back(fmt::format("{} {}", name, size));
  }
  if (settings.use_all_devices) options.emplace_back("--use-all-devices");
  return fmt::format("{}", fmt::join(options, " "));
}

PlanSettings without_force(PlanSettings settings) {
  settings.tensor_parallel_size = settings.pipeline_parallel_size = 0;
  settings.use_all_devices = false;
  settings.plan_file.clear();
  return settings;
}

void log_progress(const std::string& what) { log_info("{}", what); }

}  // namespace

DeviceSet Instance::devices() const {
  std::lock_guard lock(mutex_);
  return devices_;
}

// ---- measuring while requests run

// Measures while the first device serves, if that is not done, and then has the best plan take over. A device that
// fails meanwhile is lost, and it is tried without: each turn has one less.
void Instance::plan_later(const std::stop_token& stop) {
  const Claim claim(changing_, true);
  std::optional<PlannedModel> next = std::exchange(next_, std::nullopt);
  const auto plan_now = [&](const KnownDevices& known) -> Result<PlannedModel> {
    if (next) return *std::exchange(next, std::nullopt);
    ServingGate gate(*engine_, stop);
    return plan_model(model(), known.devices, settings_, kv_, runtime_options_, log_progress, &gate);
  };
  Status status;
  bool again = false;
  do {
    std::string failed;
    const KnownDevices known = known_devices();
    auto planned = plan_now(known);
    if (stop.stop_requested()) return;
    status = planned.error();
    std::optional<PlannedModel> tried;
    if (planned.ok()) {
      tell(planned->report);
      tried = *planned;
      status = change_to(known, *std::move(planned), stop, &failed);
    }
    if (stop.stop_requested()) return;
    const std::vector<std::string> lost = status.ok() ? std::vector<std::string>() : devices().mark_failed();
    again = !lost.empty();
    if (again) log_warning("{} lost: {}; planning without", fmt::join(lost, ", "), status.message());
    if (status.ok() || again || !tried) continue;
    next = plan_without_compiler(*tried, failed, status);
    again = next.has_value();
  } while (again);
  if (status.ok()) {
    log_info("the devices are measured and loaded; the plan takes over");
  } else {
    log_warning("no plan over the other devices: {}; serving goes on as it is", status.message());
  }
}

// Where a plan could not be made because the programs of `device` did not compile: the best one without it. None where
// that is not why, or where it must serve.
std::optional<PlannedModel> Instance::plan_without_compiler(const PlannedModel& tried, const std::string& device,
                                                            const Status& why) const {
  for (const Code other : {MOTLEY_RESOURCE_EXHAUSTED, MOTLEY_UNAVAILABLE, MOTLEY_CANCELLED, MOTLEY_DEADLINE_EXCEEDED})
    if (why.code() == other) return std::nullopt;
  const std::vector<DeviceProfile>& known = tried.input.devices;
  const bool compiles = std::any_of(known.begin(), known.end(), [&](const DeviceProfile& each) {
    return each.name == device && !each.buckets.empty();
  });
  if (!compiles || settings_.forced() || !settings_.plan_file.empty()) return std::nullopt;
  auto planned = plan_without(tried, {device});
  if (!planned.ok()) return std::nullopt;
  planned->report.left_out.push_back({device, fmt::format("no plan with it could be made: {}", why.message())});
  log_warning("no plan with {}: {}; planning without", device, why.message());
  return *std::move(planned);
}

Instance::KnownDevices Instance::known_devices() const {
  std::lock_guard lock(mutex_);
  return {devices_, restarts_};
}

// With the lock: whether a change may be made that began with these.
Status Instance::check_known(const KnownDevices& known) const {
  if (known.restarts == restarts_) return ok_status();
  return error(MOTLEY_UNAVAILABLE, "devices were lost and started anew meanwhile; try again");
}

Status Instance::check_take_over(const KnownDevices& known, const Placement& placement) const {
  {
    std::lock_guard lock(mutex_);
    RETURN_IF_ERROR(check_known(known));
  }
  for (const std::string& name : devices_of(placement)) {
    const auto found = known.devices.find(name);
    if (!found || known.devices.lost(*found)) return error(MOTLEY_UNAVAILABLE, "device {} was lost meanwhile", name);
  }
  return ok_status();
}

// On a thread of the engine's, while no step is under way: the devices, and the plan over them. Nothing changes where
// that fails.
Result<Executor*> Instance::take_over(const KnownDevices& known, const std::shared_ptr<const PlannedModel>& planned,
                                      std::unique_ptr<RuntimeExecutor> prepared) {
  RETURN_IF_ERROR(check_take_over(known, planned->report.placement));
  DeviceSet devices_before = known.devices;
  auto planned_before = planned;
  const auto exchange = [&] {
    std::lock_guard lock(mutex_);
    std::swap(devices_, devices_before);
    std::swap(planned_, planned_before);
  };
  exchange();
  const Status status = put_in_force(planned->report, std::move(prepared));
  if (status.ok()) return runtime_.get();
  exchange();
  return status;
}

// The same where there is no room for what two executors need at once: the one in service ends first, and with it its
// weights, but for those that are prepared; what else the plan needs is packed. Null where nothing can serve any more.
Result<Executor*> Instance::take_over_with_room(const KnownDevices& known,
                                                const std::shared_ptr<const PlannedModel>& planned,
                                                Prepared* prepared) {
  RETURN_IF_ERROR(check_take_over(known, planned->report.placement));
  PlanReport before = report_in_force();
  std::unique_ptr<RuntimeExecutor> ended;
  {
    std::lock_guard lock(mutex_);
    count_work(&work_);
    ended = std::move(runtime_);
  }
  ended.reset();
  const auto taken = take_over(known, planned);
  prepared->weights.clear();  // the plan has them, or the one before needs the room
  if (taken.ok()) return taken;
  log_warning("{}; back to the plan before", taken.error().message());
  Status back = put_in_force(std::move(before));
  if (!back.ok()) back = serve_on_any(back);
  if (back.ok()) return runtime_.get();
  log_error("nothing can serve any more: {}", back.message());
  return nullptr;
}

// Without predictions where nothing is known of the device that serves.
PlanReport Instance::report_in_force() const {
  std::lock_guard lock(mutex_);
  if (in_force_) return *in_force_;
  PlanReport report;
  report.placement = placement_;
  return report;
}

// What the host's memory lets the next plan do beside the one in force.
Instance::RoomOnHost Instance::room_on_host(const PlannedModel& next) const {
  PlanReport now = report_in_force();
  if (now.devices.empty()) {  // one device served before it was measured
    auto known = report_on(next.shape, next.input, next.request, now.placement);
    if (known.ok()) now = *std::move(known);
  }
  const HostNeed need = host_need(next.shape, next.input, next.request, now, next.report);
  const uint64_t available = runtime_options_.host_memory();
  RoomOnHost room{host_room(need, available), {{}, available}, {}};
  for (const DeviceProfile& device : next.input.devices)
    if (!device.own_memory) room.weights.devices.emplace(device.name, device.packed_ratio);
  room.why = fmt::format(
      "of the host's memory {} are free, and the next plan needs {} more for weights and steps and {} for KV; {} come "
      "free with the one in service",
      bytes_text(available), bytes_text(need.packed_bytes), bytes_text(need.grown_bytes), bytes_text(need.freed_bytes));
  return room;
}

// What can be made of the plan beside the one in force: an executor, or, where the devices or the host have no room for
// both, as many of its weights as there is room for, and those that stay.
Result<Instance::Prepared> Instance::prepare(const KnownDevices& known, const PlannedModel& next,
                                             const RuntimeOptions& options) const {
  const Placement& placement = next.report.placement;
  const RoomOnHost host = room_on_host(next);
  if (host.room == HostRoom::kNone) return error(MOTLEY_RESOURCE_EXHAUSTED, "{}", host.why);
  Prepared prepared;
  if (host.room == HostRoom::kInstead) {
    log_info("the host has no room for both plans at once: the one in service will end before the other begins: {}",
             host.why);
    ASSIGN_OR_RETURN(prepared.weights,
                     RuntimeExecutor::pack(model(), placement, known.devices.named(), options, host.weights));
    return prepared;
  }
  auto made = RuntimeExecutor::create(model(), placement, known.devices.named(), options);
  keep_uncompiled(model(), known.devices, measure_options(kv_, runtime_options_));
  if (made.error().code() == MOTLEY_RESOURCE_EXHAUSTED) {
    log_info("the devices have no room for both plans at once: the one in service will end before the other begins");
    ASSIGN_OR_RETURN(prepared.weights, RuntimeExecutor::pack(model(), placement, known.devices.named(), options));
    return prepared;
  }
  ASSIGN_OR_RETURN(prepared.executor, std::move(made));
  return prepared;
}

// The next plan takes over from the one in force while requests run. Its weights are packed, its programs compiled and
// its pools made beside those in service; where there is no room for both, as many of its weights as there is room for,
// and the rest once the plan in force has ended. `failed`: the device whose part could not be made beside it.
// `still_wanted`: asked once that is done; nothing changes where it is not.
Status Instance::change_to(const KnownDevices& known, PlannedModel next, const std::stop_token& stop,
                           std::string* failed, const std::function<Status()>& still_wanted) {
  next.report.placement.epoch = next_epoch();
  const auto planned = std::make_shared<const PlannedModel>(std::move(next));
  ASSIGN_OR_RETURN(RuntimeOptions options, options_for(planned->report.placement, known.devices, planned.get(), stop));
  if (failed != nullptr) options.part_failed = [failed](const std::string& device) { *failed = device; };
  const uint64_t packed_before = holdings_->packed_bytes();
  ASSIGN_OR_RETURN(Prepared made, prepare(known, *planned, options));
  const uint64_t beside = holdings_->packed_bytes();
  if (still_wanted) RETURN_IF_ERROR(still_wanted());
  const auto prepared = std::make_shared<Prepared>(std::move(made));
  const auto take = [this, known, planned, prepared]() -> Result<Executor*> {
    if (prepared->executor == nullptr) return take_over_with_room(known, planned, prepared.get());
    return take_over(known, planned, std::move(prepared->executor));
  };
  const auto pools =
      prepared->executor == nullptr ? std::vector<KvPoolDescription>() : prepared->executor->describe().pools;
  RETURN_IF_ERROR(engine_->replace(take, pools).take());
  if (this->planned() != planned)  // where room was made, it may be back at the plan before
    return error(MOTLEY_UNAVAILABLE, "there is no room for the next plan");
  log_info("the next plan is in force; of its weights {} were packed beside the steps, {} in the pause",
           bytes_text(beside - packed_before), bytes_text(holdings_->packed_bytes() - beside));
  return ok_status();
}

// ---- a device is added

// What `names` mean: a lost device by its name, others as in a list.
Result<std::vector<ListedDevice>> Instance::listed_anew(const std::vector<std::string>& names) const {
  const DeviceSet devices = this->devices();
  std::vector<ListedDevice> listed;
  std::vector<std::string> present, others;
  for (size_t i = 0; i < devices.size(); ++i) present.push_back(devices.listed(i).description.name);
  for (const std::string& name : names) {
    size_t i = 0;
    while (i < devices.size() && !(devices.lost(i) && same_device(present[i], name))) ++i;
    const bool back = i < devices.size() && std::none_of(listed.begin(), listed.end(), [&](const ListedDevice& each) {
                        return each.description.name == present[i];
                      });
    if (back) {
      listed.push_back(devices.listed(i));
    } else {
      others.push_back(name);
    }
  }
  if (others.empty()) return listed;
  ASSIGN_OR_RETURN(auto parsed, parse_device_lists(registry_, others, present));
  std::move(parsed.begin(), parsed.end(), std::back_inserter(listed));
  return listed;
}

// With what was forced where that is possible, else without; `note` says which. Measures those of the added devices
// that are not known, and none that could not be measured before.
Result<PlannedModel> Instance::plan_over(const DeviceSet& devices, const std::vector<std::string>& added,
                                         std::string* note) {
  std::optional<PlannedModel> known;
  if (const auto planned = this->planned()) {
    known = *planned;
    std::erase_if(known->unmeasured, [&](const Unmeasured& each) { return contains(added, each.left.device); });
  }
  ServingGate gate(*engine_, changes_.get_token());
  const auto plan_with = [&](const PlanSettings& settings) {
    return plan_model(model(), devices, settings, kv_, runtime_options_, log_progress, &gate, known ? &*known : nullptr,
                      drift());
  };
  const std::string forced = forced_text(settings_);
  auto planned = plan_with(settings_);
  const Code code = planned.error().code();
  if (forced.empty() || (!planned.ok() && code != MOTLEY_INVALID_ARGUMENT && code != MOTLEY_RESOURCE_EXHAUSTED))
    return planned;
  if (planned.ok()) {
    *note = forced + " is kept";
    return planned;
  }
  *note = fmt::format("{} is given up: {}", forced, planned.error().message());
  return plan_with(without_force(settings_));
}

Result<AddedDevices> Instance::add_devices(const std::vector<std::string>& names) {
  const Claim claim(changing_);
  if (!claim.held())
    return error(MOTLEY_UNAVAILABLE, "the devices are being measured or changed just now; try again once that is done");
  if (changes_.stop_requested()) return error(MOTLEY_CANCELLED, "the server ends");
  KnownDevices known = known_devices();
  known.devices.mark_failed();  // one that has died, and nobody has noticed yet, may be meant
  ASSIGN_OR_RETURN(std::vector<ListedDevice> more, listed_anew(names));
  AddedDevices added;
  for (const ListedDevice& each : more) added.names.push_back(each.description.name);
  ASSIGN_OR_RETURN(known.devices, known.devices.with(std::move(more)));
  ASSIGN_OR_RETURN(PlannedModel made, plan_over(known.devices, added.names, &added.note));
  tell(made.report);
  const std::vector<std::string> used = devices_of(made.report.placement);
  for (const LeftOut& left : made.report.left_out) {
    if (!contains(added.names, left.device)) continue;
    added.note += fmt::format("{}{} is idle: {}", added.note.empty() ? "" : "; ", left.device, left.reason);
  }
  const bool used_now = std::any_of(added.names.begin(), added.names.end(),
                                    [&](const std::string& name) { return contains(used, name); });
  if (used_now) {
    RETURN_IF_ERROR(change_to(known, std::move(made), changes_.get_token()));
  } else {  // the plan in force stays; when a device of it is lost, the new one is there
    std::lock_guard lock(mutex_);
    RETURN_IF_ERROR(check_known(known));
    devices_ = known.devices;
    planned_ = std::make_shared<const PlannedModel>(std::move(made));
  }
  log_info("{} added; serving on {}{}{}", fmt::join(added.names, ", "), device_text(), added.note.empty() ? "" : "; ",
           added.note);
  return added;
}

// ---- executors, one after another

Epoch Instance::next_epoch() const {
  std::lock_guard lock(mutex_);
  return epoch_ + 1;
}

DriftFactors Instance::planned_for() const {
  std::lock_guard lock(mutex_);
  return planned_for_;
}

DriftFactors Instance::drift() const {
  std::lock_guard lock(mutex_);
  return drift_;
}

void Instance::set_drift(DriftFactors factors) {
  std::lock_guard lock(mutex_);
  drift_ = std::move(factors);
}

PlanInput Instance::input_now(const PlannedModel& known, const DeviceSet& devices) const {
  return with_drift(without_lost(known.input, devices), drift());
}

Result<RuntimeOptions> Instance::options_for(const Placement& placement, const DeviceSet& devices,
                                             const PlannedModel* planned, const std::stop_token& stop) const {
  RuntimeOptions options = runtime_options_;
  options.holdings = holdings_;
  options.stop = stop;
  if (planned == nullptr) return options;
  options.row_counts = row_counts_of(planned->input);
  const PlanInput left = with_drift(without_lost(planned->input, devices), only_slower(drift()));
  if (!left.devices.empty()) {  // else one serves that took too long to measure, however long its steps take
    ASSIGN_OR_RETURN(options.step_limit_ns, step_limit(planned->shape, left, placement, options.rows_max));
  }
  if (left.devices.size() == 1) {
    options.step_limit_ns = [limit = options.step_limit_ns](double rows, double reads) {
      return kPatienceWithTheLast * limit(rows, reads);
    };
    options.kv_limit_ns *= kPatienceWithTheLast;
  }
  return options;
}

Status Instance::make_runtime(const Placement& placement, std::unique_ptr<RuntimeExecutor> prepared,
                              PlanReport* report) {
  DeviceSet devices_before = devices();  // outlives the executor that uses it
  std::unique_ptr<RuntimeExecutor> runtime = std::move(prepared);
  if (runtime == nullptr || runtime->describe().epoch != placement.epoch) {
    runtime.reset();
    ASSIGN_OR_RETURN(const RuntimeOptions options, options_for(placement, devices_before, planned().get()));
    auto made = RuntimeExecutor::create(model(), placement, devices_before.named(), options);
    keep_uncompiled(model(), devices_before, measure_options(kv_, runtime_options_));
    ASSIGN_OR_RETURN(runtime, std::move(made));
  }
  std::lock_guard lock(mutex_);  // whoever looks sees all of one plan
  count_work(&work_);
  std::swap(runtime_devices_, devices_before);
  std::swap(runtime_, runtime);
  epoch_ = placement.epoch;
  if (report == nullptr) return ok_status();
  in_force_ = std::move(*report);
  planned_for_ = drift_;
  return ok_status();
}

// With the lock: adds the figures of the executor that is there.
void Instance::count_work(std::map<std::string, DriverWork>* work) const {
  if (runtime_ == nullptr) return;
  for (const DriverReport& report : runtime_->reports()) {
    (*work)[report.device] += report.work;
  }
}

// Ends the executor, which has lost devices; other threads may be reading its figures until then.
void Instance::drop_runtime() {
  bool at_work = false;  // a device in this process that hangs may go on writing to what the executor owns
  for (const LostDevice& lost : runtime_->lost_devices()) {
    const bool stays = lost.hangs && !runtime_devices_.has_worker(lost.name);
    runtime_devices_.mark_lost(lost.name, stays);  // first: with its worker gone, nothing below waits for it
    at_work |= stays;
  }
  devices().mark_failed();
  std::unique_ptr<RuntimeExecutor> ended;
  {
    std::lock_guard lock(mutex_);
    count_work(&work_);
    ended = std::move(runtime_);
  }
  if (!at_work) return;
  static_cast<void>(ended.release());  // that is never freed then, nor are its devices
  static_cast<void>(new DeviceSet(runtime_devices_));
}

// Where what is left cannot serve: opens anew those of the lost that had a worker, as add_devices() does. False where
// none came back, or where that was tried kRestartsMax times a short while ago.
bool Instance::restart_workers(std::string_view why) {
  const int64_t now_ns = system_clock().now_ns();
  std::erase_if(restarted_at_ns_, [&](int64_t at_ns) { return at_ns + kRestartsWithinNs <= now_ns; });
  if (changes_.stop_requested() || restarted_at_ns_.size() == kRestartsMax) return false;
  restarted_at_ns_.push_back(now_ns);
  DeviceSet next = devices();
  bool any = false;
  for (size_t i = 0; i < next.size(); ++i) {
    const ListedDevice lost = next.listed(i);
    if (!next.lost(i) || !next.has_worker(lost.description.name)) continue;
    auto opened = next.with({lost});
    if (opened.ok()) {
      next = *std::move(opened);
      any = true;
      log_warning("{}: {} is started anew", why, lost.description.name);
    } else {
      log_warning("{}, and {}", why, opened.error().message());
    }
  }
  std::lock_guard lock(mutex_);
  devices_ = next;
  ++restarts_;
  return any;
}

// On a thread of the engine's, while no step is under way: the same model over what is left.
Result<Executor*> Instance::recover(const Status& why) {
  const bool blamed = !runtime_->lost_devices().empty();
  log_warning("{}; planning {}", why.message(), blamed ? "without it" : "anew");
  const int64_t began_ns = system_clock().now_ns();
  drop_runtime();
  const int64_t dropped_ns = system_clock().now_ns();
  RETURN_IF_ERROR(serve_on_any(why));
  const int64_t ready_ns = system_clock().now_ns();
  log_info("loaded anew on {} in {:.0f} ms, after {:.0f} ms for letting go of what was there", device_text(),
           static_cast<double>(ready_ns - dropped_ns) / 1e6, static_cast<double>(dropped_ns - began_ns) / 1e6);
  return runtime_.get();
}

// On whatever serves, and as often as it takes. What has failed may be marked by others, too.
Status Instance::serve_on_any(const Status& why) {
  devices().mark_failed();
  for (;;) {
    const bool none = devices().named().empty();
    const std::string_view what = none ? "no device is left" : "the devices that are left cannot serve";
    const Status status = none ? why : serve_on_what_is_left(why);
    if (status.ok()) return status;
    // A device that fails while it is loaded is lost too. Each turn has one less.
    const std::vector<std::string> failed = devices().mark_failed();
    if (!failed.empty()) {
      log_warning("{}; planning without {}", status.message(), fmt::join(failed, ", "));
    } else if (!restart_workers(what)) {
      return error(MOTLEY_UNAVAILABLE, "{}: {}", what, status.message());
    }
  }
}

// Plans over the devices that are not lost, and loads the plan.
Status Instance::serve_on_what_is_left(const Status& why) {
  const DeviceSet devices = this->devices();
  const auto known = planned();
  if (known == nullptr ||
      without_lost(known->input, devices).devices.empty()) {  // not measured: any that the model fits
    for (size_t i = 0; i < devices.size(); ++i) {
      if (devices.lost(i)) continue;
      auto placement = alone_on(devices, i);
      if (!placement.ok()) continue;
      PlanReport report;  // of which nothing is predicted
      report.placement = *std::move(placement);
      return put_in_force(std::move(report));
    }
    return why.annotate("the model fits no other device alone");
  }
  PlanSettings settings = settings_;  // what was forced cannot be any more
  settings.tensor_parallel_size = settings.pipeline_parallel_size = 0;
  settings.use_all_devices = false;
  const PlanRequest request =
      plan_request(settings, kv_, model().config(), runtime_options_.rows_max, known->request.buffers);
  const PlanInput left = input_now(*known, devices);
  const int64_t began_ns = system_clock().now_ns();
  const Effort effort = left.devices.size() <= kDevicesPlannedFully ? Effort::kFull : Effort::kFirst;
  ASSIGN_OR_RETURN(PlanReport report, plan(known->shape, left, request, effort));
  report.simulated = devices.simulated();
  ASSIGN_OR_RETURN(const double rate, prefill_rate(known->shape, left, report.placement, runtime_options_.rows_max));
  log_info("planned anew in {:.0f} ms; {:.0f} tokens of prompts per second predicted",
           static_cast<double>(system_clock().now_ns() - began_ns) / 1e6, rate);
  return put_in_force(std::move(report));
}

Status Instance::put_in_force(PlanReport report, std::unique_ptr<RuntimeExecutor> prepared) {
  report.placement.epoch = epoch_ + 1;
  const Placement placement = report.placement;
  return make_runtime(placement, std::move(prepared), &report);
}

// ---- what is told of them

std::vector<std::string> Instance::devices_in_force() const {
  std::lock_guard lock(mutex_);
  return devices_of(in_force_ ? in_force_->placement : placement_);
}

std::string Instance::device_text() const {
  const DeviceSet devices = this->devices();
  std::vector<std::string> shown = devices_in_force();
  for (std::string& name : shown) {
    if (const auto found = devices.find(name)) name = shown_name(devices.listed(*found).description);
  }
  return fmt::format("{}", fmt::join(shown, " + "));
}

std::string Instance::plan_picture() const {
  std::lock_guard lock(mutex_);
  return in_force_ && planned_ != nullptr ? plan_text(*in_force_, planned_->shape) : "";
}

std::vector<DeviceWork> Instance::device_work() {
  DeviceSet devices = this->devices();
  devices.mark_failed();  // without the lock: recover() ends a device that hangs
  const std::vector<std::string> used = devices_in_force();
  std::map<std::string, DriverWork> done;
  std::map<std::string, DriverReport> reports;
  {
    std::lock_guard lock(mutex_);
    done = work_;
    count_work(&done);
    for (const DriverReport& report : runtime_ == nullptr ? std::vector<DriverReport>() : runtime_->reports())
      reports[report.device] = report;
  }
  std::vector<DeviceWork> work;
  for (size_t i = 0; i < devices.size(); ++i) {
    const std::string& name = devices.listed(i).description.name;
    const DriverWork& of_steps = done[name];
    const auto own = devices.device(i).stats();
    work.push_back({name, of_steps.programs, of_steps.rows, of_steps.bytes_moved,
                    static_cast<double>(of_steps.busy_ns) / 1e9, devices.lost(i),
                    !devices.lost(i) && contains(used, name), devices.listed(i).description.desc.simulated != 0,
                    reports[name].weight_formats, reports[name].weight_error, own.ok() ? *own : motley_device_stats{}});
  }
  return work;
}

}  // namespace motley
