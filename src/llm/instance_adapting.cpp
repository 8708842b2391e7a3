// The plan follows its devices: one that becomes slower or faster than it was measured changes what it gets to do.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "llm/following.hpp"
#include "llm/instance.hpp"
#include "llm/serving_gate.hpp"

namespace motley {
namespace {

// A step that is under way counts for its device, not for its model: what a window is off by is at most one such time.
constexpr std::chrono::milliseconds kLookEvery{25}, kLookEveryIdle{100};

}  // namespace

class Instance::Adapting {
 public:
  Adapting(Instance* instance, std::stop_token stop)
      : instance_(*instance),
        stop_(std::move(stop)),
        following_(
            system_clock(), instance->runtime_options_.rows_max, [this] { return see(); },
            [this] { return wait(kLookEvery); },
            [this](const DriftFactors& factors) { instance_.set_drift(factors); }) {}

  void run() {
    while (wait(following_.idle() ? kLookEveryIdle : kLookEvery)) {
      if (following_.look(instance_.changing_, [this] { return instance_.planned_for(); })) move();
      if (!following_.idle() && following_.law().measuring_due()) measure_others();
    }
  }

 private:
  // False once nobody follows any more.
  bool wait(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, stop_, time, [] { return false; });
    return !stop_.stop_requested();
  }

  std::optional<ServedPlan> see() const {
    std::lock_guard lock(instance_.mutex_);
    if (instance_.runtime_ == nullptr || !instance_.in_force_ || instance_.planned_ == nullptr) return std::nullopt;
    return ServedPlan{instance_.planned_, instance_.in_force_->placement, instance_.runtime_->totals(),
                      [devices = instance_.devices_](const std::string& name) -> std::optional<double> {
                        const auto at = devices.find(name);
                        if (!at || devices.lost(*at)) return std::nullopt;
                        const auto stats = devices.device(*at).stats();
                        if (!stats.ok()) return std::nullopt;
                        return static_cast<double>(stats->busy_ns);
                      }};
  }

  // Between steps, devices that the plan leaves out.
  void measure_others() {
    const Claim claim(instance_.changing_);
    if (!claim.held()) return;
    const std::optional<ServedPlan> seen = see();
    if (!seen) return;
    const std::vector<std::string> used = devices_of(seen->placement);
    ServingGate gate(*instance_.engine_, stop_);
    MeasureOptions options = measure_options(instance_.kv_, instance_.runtime_options_);
    options.brief = true;
    options.wait_ns = measured_wait_ns(instance_.settings_.measure_limit_s, options.wait_ns);
    options.gate = &gate;
    DriftFactors factors;
    for (const MeasuredDevice& device : instance_.devices().measured()) {
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
    following_.law().measured(factors);
    instance_.set_drift(following_.law().factors());
  }

  // Going to the best plan whose programs keep to the limits of their devices.
  Result<Move> better_plan(const ServedPlan& seen, const DeviceSet& devices, const PlanInput& measured,
                           const DriftFactors& factors, uint64_t host_bytes) {
    const PlannedModel& planned = *seen.planned;
    std::vector<Unmeasured> without;
    ASSIGN_OR_RETURN(PlanReport best,
                     plan_that_compiles(instance_.model(), devices, instance_.runtime_options_, planned.shape, measured,
                                        planned.request, factors, &without, stop_));
    return move_to(planned.shape, measured, planned.request, seen.placement, std::move(best), factors, host_bytes);
  }

  // Plans anew with what is known now; the better plan takes over if it is worth that.
  void move() {
    const Claim claim(instance_.changing_);
    if (!claim.held()) return;
    const KnownDevices known = instance_.known_devices();
    const std::optional<ServedPlan> seen = see();
    if (!seen || seen->placement.epoch != following_.epoch()) return;  // another one, which was not looked at yet
    const PlannedModel& planned = *seen->planned;
    Adaptation& law = following_.law();
    const DriftFactors factors = law.factors();
    const PlanInput input = without_lost(planned.input, known.devices);
    const uint64_t host_bytes = instance_.runtime_options_.host_memory();
    auto better = better_plan(*seen, known.devices, input, factors, host_bytes);
    if (stop_.stop_requested()) return;
    log_info("devices are not as the plan was made for ({}); {}", factors_text(factors),
             better.ok() ? "the best plan: " + text_of(*better, law.horizon_ns()) : better.error().message());
    if (!(better.ok() ? law.judge(better->gain, better->cost) : law.judge(0))) return;
    better->report.simulated = known.devices.simulated();
    better->report.moved = text_of(*better, law.horizon_ns());
    const int64_t began_ns = system_clock().now_ns();
    PlannedModel next = planned;  // the tables stay as they were measured: factors are of them
    next.report = std::move(better->report);
    const Status status = instance_.change_to(known, next, stop_, nullptr,
                                              [&] { return following_.judge_again(input, next.report, host_bytes); });
    if (!status.ok()) {
      law.not_moved();
      if (!stop_.stop_requested()) log_warning("the plan stays as it is: {}", status.message());
      return;
    }
    law.moved();
    const std::optional<ServedPlan> now = see();  // none where a device was lost just now
    following_.moved_to(now ? now->placement.epoch : 0);
    log_info("moved to {} in {:.0f} ms", instance_.device_text(),
             static_cast<double>(system_clock().now_ns() - began_ns) / 1e6);
  }

  Instance& instance_;
  const std::stop_token stop_;
  std::mutex mutex_;  // of waiting alone
  std::condition_variable_any wake_;
  Following following_;
};

void Instance::adapt(const std::stop_token& stop) { Adapting(this, stop).run(); }

}  // namespace motley
