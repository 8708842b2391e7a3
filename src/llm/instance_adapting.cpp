// The plan follows its devices: one that becomes slower or faster than it was measured changes what it gets to do.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "llm/instance.hpp"
#include "planner/drift.hpp"

namespace motley {
namespace {

constexpr std::chrono::milliseconds kLookEvery{100};
constexpr double kWorthMoving = 1.2;          // of the tokens/s that the plan in force would still give
constexpr int64_t kSettleNs = 5'000'000'000;  // after a move, and twice as long after each of a series
constexpr int64_t kSettleNsMax = 300'000'000'000;

}  // namespace

// What devices say of themselves, against what a placement's steps should take them.
class Instance::Adapting {
 public:
  explicit Adapting(Instance* instance) : instance_(*instance) {}

  void run(const std::stop_token& stop) {
    std::mutex mutex;
    std::condition_variable_any wake;
    std::unique_lock lock(mutex);
    while (!stop.stop_requested()) {
      wake.wait_for(lock, stop, kLookEvery, [] { return false; });
      if (!stop.stop_requested() && look()) move();
    }
  }

 private:
  // Whether something has changed for good.
  bool look() {
    std::shared_ptr<const PlannedModel> planned;
    std::optional<Placement> placement;
    StepTotals totals;
    DeviceSet devices;
    {
      std::lock_guard lock(instance_.mutex_);
      if (instance_.runtime_ == nullptr || !instance_.in_force_) return false;
      planned = instance_.planned_;
      placement = instance_.in_force_->placement;
      totals = instance_.runtime_->totals();
      devices = instance_.devices_;
    }
    if (planned == nullptr || totals == totals_) return false;  // nobody asks for anything
    totals_ = totals;
    if (placement->epoch != epoch_) {
      auto models = busy_models(planned->shape, planned->input, *placement, instance_.runtime_options_.rows_max);
      if (!models.ok()) return false;
      models_ = *std::move(models);
      epoch_ = placement->epoch;
      watch_.begin_anew();
    }
    if (instance_.changing_) watch_.begin_anew();  // what is measured meanwhile is not of steps
    const StepsDone done{static_cast<double>(totals.steps), static_cast<double>(totals.rows),
                         static_cast<double>(totals.reads)};
    const int64_t now_ns = system_clock().now_ns();
    for (const BusyModel& model : models_) {
      const auto at = devices.find(model.device);
      if (!at || devices.lost(*at)) continue;
      const auto stats = devices.device(*at).stats();
      if (stats.ok()) watch_.observe(model.device, now_ns, static_cast<double>(stats->busy_ns), model.of(done));
    }
    return now_ns >= settled_ns_ && watch_.changed();
  }

  // Plans anew with what is known now; the better plan takes over if it is worth that.
  void move() {
    const Claim claim(instance_.changing_);
    if (!claim.held()) return;
    const KnownDevices known = instance_.known_devices();
    const auto planned = instance_.planned();
    Placement now;
    {
      std::lock_guard lock(instance_.mutex_);
      if (planned == nullptr || !instance_.in_force_) return;
      now = instance_.in_force_->placement;
    }
    const DriftFactors factors = watch_.factors();
    const PlanInput input = with_drift(without_lost(planned->input, known.devices), factors);
    auto best = plan(planned->shape, input, planned->request);
    const auto stays = report_on(planned->shape, input, planned->request, now);
    settled_ns_ = system_clock().now_ns() + settle_ns_;  // if nothing comes of it, it is tried again then
    if (!best.ok() || !stays.ok()) return;
    const double gain = best->predicted.tokens_per_s / std::max(stays->predicted.tokens_per_s, 1e-9);
    log_info("devices have changed their speed ({}); the best plan would be worth {:.2f} of this one",
             factors_text(factors), gain);
    if (gain < kWorthMoving) return watch_.accept();
    // As many blocks as before where they fit: then who keeps its heads keeps its pool.
    uint32_t& blocks = best->placement.lanes[0].kv_blocks;
    blocks = std::min(blocks, now.lanes[0].kv_blocks);
    const int64_t began_ns = system_clock().now_ns();
    const Status status = take_over(known, *planned, *std::move(best));
    if (!status.ok()) return log_warning("the plan stays as it is: {}", status.message());
    watch_.accept();
    const int64_t ended_ns = system_clock().now_ns();
    log_info("moved to {} in {:.0f} ms", instance_.device_text(), static_cast<double>(ended_ns - began_ns) / 1e6);
    settle_ns_ =
        moved_ns_ > 0 && ended_ns - moved_ns_ < 2 * settle_ns_ ? std::min(2 * settle_ns_, kSettleNsMax) : kSettleNs;
    moved_ns_ = ended_ns;
    settled_ns_ = ended_ns + settle_ns_;
  }

  // The weights that the plan needs are packed while the one in force serves.
  Status take_over(const KnownDevices& known, const PlannedModel& planned, PlanReport report) {
    report.placement.epoch = instance_.next_epoch();
    ASSIGN_OR_RETURN(auto made, instance_.build_runtime(report.placement));
    const auto prepared = std::make_shared<std::unique_ptr<RuntimeExecutor>>(std::move(made));
    PlannedModel next = planned;  // the tables stay as they were measured: factors are of them
    next.report = std::move(report);
    const auto shared = std::make_shared<const PlannedModel>(std::move(next));
    return instance_.engine_
        ->replace([this, known, shared, prepared] { return instance_.take_over(known, shared, std::move(*prepared)); })
        .take();
  }

  static std::string factors_text(const DriftFactors& factors) {
    std::string text;
    for (const auto& [device, factor] : factors)
      text += fmt::format("{}{} takes {:.2f} of its time", text.empty() ? "" : ", ", device, factor);
    return text;
  }

  Instance& instance_;
  DriftWatch watch_;
  std::vector<BusyModel> models_;
  Epoch epoch_ = 0;
  StepTotals totals_;
  int64_t moved_ns_ = 0, settled_ns_ = 0, settle_ns_ = kSettleNs;
};

void Instance::adapt(const std::stop_token& stop) { Adapting(this).run(stop); }

Epoch Instance::next_epoch() const {
  std::lock_guard lock(mutex_);
  return epoch_ + 1;
}

}  // namespace motley
