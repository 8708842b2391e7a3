// The plan follows its devices: one that becomes slower or faster than it was measured changes what it gets to do.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "llm/instance.hpp"
#include "llm/serving_gate.hpp"
#include "llm/steps_done.hpp"
#include "planner/adaptation.hpp"

namespace motley {
namespace {

// A step that is under way counts for its device, not for its model: what a window is off by is at most one such time.
constexpr std::chrono::milliseconds kLookEvery{25}, kLookEveryIdle{100};

std::string factors_text(const DriftFactors& factors) {
  std::string text;
  for (const auto& [device, factor] : factors)
    text += fmt::format("{}{} takes {:.2f} of its time", text.empty() ? "" : ", ", device, factor);
  return text;
}

}  // namespace

// What devices say of themselves, against what a placement's steps should take them.
class Instance::Adapting {
 public:
  Adapting(Instance* instance, std::stop_token stop)
      : instance_(*instance), stop_(std::move(stop)), law_(system_clock()) {}

  void run() {
    std::mutex mutex;
    std::condition_variable_any wake;
    std::unique_lock lock(mutex);
    while (!stop_.stop_requested()) {
      wake.wait_for(lock, stop_, idle_ ? kLookEveryIdle : kLookEvery, [] { return false; });
      if (stop_.stop_requested()) continue;
      if (look()) move();
      if (!idle_ && law_.measuring_due()) measure_others();
    }
  }

 private:
  // What one look needs of the instance, all of the same moment.
  struct Seen {
    std::shared_ptr<const PlannedModel> planned;
    Placement placement;
    std::vector<TotalsByDevice> totals;
    DeviceSet devices;
  };
  std::optional<Seen> see() const {
    std::lock_guard lock(instance_.mutex_);
    if (instance_.runtime_ == nullptr || !instance_.in_force_ || instance_.planned_ == nullptr) return std::nullopt;
    return Seen{instance_.planned_, instance_.in_force_->placement, instance_.runtime_->totals(), instance_.devices_};
  }

  // Whether a better plan is to be looked for.
  bool look() {
    const std::optional<Seen> seen = see();
    idle_ = !seen || seen->totals == totals_;
    if (idle_) return false;  // nobody asks for anything
    const std::vector<TotalsByDevice> before = std::exchange(totals_, seen->totals);
    if (seen->placement.epoch != epoch_) {
      if (!take_models(*seen)) return false;
      epoch_ = seen->placement.epoch;
      law_.begin_anew();
      if (std::exchange(moved_to_, 0) != epoch_) law_.planned_for(instance_.planned_for());
    }
    if (totals_.size() != seen->placement.lanes.size()) return false;
    if (instance_.changing_) law_.begin_anew();  // what is measured meanwhile is not of steps
    for (const auto& [name, by_lane] : models_) {
      const auto at = seen->devices.find(name);
      if (!at || seen->devices.lost(*at)) continue;
      if (before.size() == totals_.size() && !has_done_more(name, before)) continue;
      double predicted_ns = 0;
      for (size_t lane = 0; lane < by_lane.size(); ++lane) {
        const auto done = totals_[lane].find(name);
        if (done != totals_[lane].end()) predicted_ns += by_lane[lane].of(steps_done(done->second));
      }
      const auto stats = seen->devices.device(*at).stats();
      if (stats.ok()) law_.observe(name, static_cast<double>(stats->busy_ns), predicted_ns);
    }
    instance_.set_drift(law_.factors());
    return law_.due();
  }

  // Looked at just behind the end of a step of its own, a device has little done that its model does not know of yet.
  bool has_done_more(const std::string& device, const std::vector<TotalsByDevice>& before) const {
    for (size_t lane = 0; lane < totals_.size(); ++lane) {
      const auto then = before[lane].find(device), now = totals_[lane].find(device);
      if (now != totals_[lane].end() && (then == before[lane].end() || then->second != now->second)) return true;
    }
    return false;
  }

  bool take_models(const Seen& seen) {
    models_.clear();
    for (size_t lane = 0; lane < seen.placement.lanes.size(); ++lane) {
      auto of_lane = busy_models(seen.planned->shape, seen.planned->input, seen.placement, lane,
                                 instance_.runtime_options_.rows_max);
      if (!of_lane.ok()) return false;
      for (BusyModel& model : *of_lane) {
        std::vector<BusyModel>& by_lane = models_[model.device];
        by_lane.resize(seen.placement.lanes.size());
        by_lane[lane] = std::move(model);
      }
    }
    return true;
  }

  // Between steps, devices that the plan leaves out.
  void measure_others() {
    const Claim claim(instance_.changing_);
    if (!claim.held()) return;
    const std::optional<Seen> seen = see();
    if (!seen) return;
    const std::vector<std::string> used = devices_of(seen->placement);
    ServingGate gate(*instance_.engine_, stop_);
    MeasureOptions options = measure_options(instance_.kv_, instance_.runtime_options_);
    options.brief = true;
    options.gate = &gate;
    DriftFactors factors;
    for (const MeasuredDevice& device : seen->devices.measured()) {
      const DeviceProfile* known = find_profile(seen->planned->input, device.description.name);
      if (known == nullptr || std::find(used.begin(), used.end(), known->name) != used.end()) continue;
      const auto factor = measure_slowdown(instance_.model(), device, *known, options);
      if (stop_.stop_requested()) return;
      if (factor.ok()) {
        factors.emplace(known->name, *factor);
      } else {
        log_info("what the plan leaves out is not looked at: {}", factor.error().message());
      }
    }
    law_.measured(factors);
    instance_.set_drift(law_.factors());
  }

  // Plans anew with what is known now; the better plan takes over if it is worth that.
  void move() {
    const Claim claim(instance_.changing_);
    if (!claim.held()) return;
    const KnownDevices known = instance_.known_devices();
    const std::optional<Seen> seen = see();
    if (!seen) return;
    const PlannedModel& planned = *seen->planned;
    const DriftFactors factors = law_.factors();
    auto better = better_plan(planned.shape, without_lost(planned.input, known.devices), planned.request,
                              seen->placement, factors, stop_);
    if (stop_.stop_requested()) return;
    log_info("devices have changed their speed ({}); {}", factors_text(factors),
             better.ok() ? "the best plan: " + text_of(*better, law_.horizon_ns()) : better.error().message());
    if (!(better.ok() ? law_.judge(better->gain, better->cost) : law_.judge(0))) return;
    better->report.simulated = known.devices.simulated();
    better->report.moved = text_of(*better, law_.horizon_ns());
    const int64_t began_ns = system_clock().now_ns();
    PlannedModel next = planned;  // the tables stay as they were measured: factors are of them
    next.report = std::move(better->report);
    const Status status = instance_.change_to(known, std::move(next), stop_);
    if (!status.ok()) {
      law_.not_moved();
      if (!stop_.stop_requested()) log_warning("the plan stays as it is: {}", status.message());
      return;
    }
    law_.moved();
    const std::optional<Seen> now = see();  // none where a device was lost just now
    moved_to_ = now ? now->placement.epoch : 0;
    log_info("moved to {} in {:.0f} ms", instance_.device_text(),
             static_cast<double>(system_clock().now_ns() - began_ns) / 1e6);
  }

  Instance& instance_;
  const std::stop_token stop_;
  Adaptation law_;
  std::map<std::string, std::vector<BusyModel>> models_;  // by device, [lane]
  Epoch epoch_ = 0, moved_to_ = 0;
  std::vector<TotalsByDevice> totals_;
  bool idle_ = true;
};

void Instance::adapt(const std::stop_token& stop) { Adapting(this, stop).run(); }

}  // namespace motley
