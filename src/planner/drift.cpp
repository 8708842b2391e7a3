#include "planner/drift.hpp"

#include <algorithm>
#include <cmath>

#include "planner/step_costs.hpp"
#include "planner/workload.hpp"

namespace motley {
namespace {

constexpr double kFar = 1024;          // positions, where reading is looked at
constexpr uint32_t kUsualWindows = 3;  // that say what the tables are off by
constexpr double kNewest = 0.5;        // weight of the last window in a factor

// By device, of one step.
std::map<size_t, double> busy_of(const ModelShape& shape, const PlanInput& input, const LanePlan& plan,
                                 const StepLoad& load) {
  const LinkTable links(input);
  const std::vector<size_t> twins = find_twins(input);
  const StepCosts costs(shape, input, links, twins, load);
  std::map<size_t, double> busy;
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    const StageCost stage = stage_cost(costs, plan, s, false);
    for (size_t i = 0; i < stage.busy_ns.size(); ++i) {
      busy[plan.stages[s].shards[i].device] += stage.busy_ns[i];
      busy[plan.stages[s].shards[i].kv_owner()] += stage.partner_ns[i];
    }
  }
  return busy;
}

}  // namespace

Result<std::vector<BusyModel>> busy_models(const ModelShape& shape, const PlanInput& input, const Placement& placement,
                                           uint32_t rows_max) {
  ASSIGN_OR_RETURN(const LanePlan plan, lane_plan_of(shape, input, placement));
  const double rows = std::max(2u, rows_max);
  const auto busy = [&](double r, double context) {
    return busy_of(shape, input, plan, {.decode_rows = r, .context = context, .head_rows = r});
  };
  const auto one = busy(1, 1), many = busy(rows, 1), far = busy(rows, kFar);
  std::vector<BusyModel> models;
  for (const auto& [device, ns] : one) {
    BusyModel model{input.devices[device].name, 0, 0, 0};
    model.per_row_ns = std::max(0.0, many.at(device) - ns) / (rows - 1);
    model.per_read_ns = std::max(0.0, far.at(device) - many.at(device)) / (rows * (kFar - 1));
    model.per_step_ns = std::max(0.0, ns - model.per_row_ns - model.per_read_ns);
    models.push_back(std::move(model));
  }
  return models;
}

PlanInput with_drift(PlanInput input, const DriftFactors& factors) {
  for (DeviceProfile& device : input.devices) {
    const auto found = factors.find(device.name);
    if (found == factors.end()) continue;
    const double factor = found->second;
    for (CostTable* table :
         {&device.attention, &device.ffn, &device.experts, &device.head, &device.embed, &device.layer}) {
      for (std::vector<double>& line : table->ns)
        for (double& ns : line) ns *= factor;
    }
    for (RowCurve* curve : {&device.context, &device.sequences})
      for (double& ns : curve->values) ns *= factor;
    device.chunk_context_ns *= factor;
    device.sample_ns = static_cast<int64_t>(static_cast<double>(device.sample_ns) * factor);
  }
  return input;
}

void DriftWatch::observe(std::string_view name, int64_t now_ns, double busy_ns, double predicted_ns) {
  Device& device = devices_.try_emplace(std::string(name)).first->second;
  const double busy = busy_ns - device.busy_ns, predicted = predicted_ns - device.predicted_ns;
  const bool anew = !device.begun || busy < 0 || predicted < 0;
  const bool full = now_ns - device.since_ns >= options_.window_ns && predicted >= options_.busy_ns_least;
  if (!anew && !full) return;
  if (!anew) close(device, busy / predicted);
  device.begun = true;
  device.since_ns = now_ns;
  device.busy_ns = busy_ns, device.predicted_ns = predicted_ns;
}

void DriftWatch::close(Device& device, double ratio) const {
  if (!(ratio > 0) || !std::isfinite(ratio)) return;
  if (device.seen < kUsualWindows) {
    device.usual = (device.usual * device.seen + ratio) / (device.seen + 1);
    ++device.seen;
    return;
  }
  const double now = ratio / device.usual;
  // A jump counts at once, and is confirmed by the next window; what varies a little is smoothed.
  const bool jumps = std::abs(std::log(now / device.factor)) > std::log(options_.changed_least);
  device.factor = jumps ? now : device.factor + kNewest * (now - device.factor);
  const bool differs = std::abs(std::log(device.factor / device.accepted)) > std::log(options_.changed_least);
  device.windows_changed = differs ? device.windows_changed + 1 : 0;
}

DriftFactors DriftWatch::factors() const {
  DriftFactors factors;
  for (const auto& [name, device] : devices_) {
    if (device.seen >= kUsualWindows) factors.emplace(name, device.factor);
  }
  return factors;
}

bool DriftWatch::changed() const {
  return std::any_of(devices_.begin(), devices_.end(),
                     [&](const auto& each) { return each.second.windows_changed >= options_.windows; });
}

void DriftWatch::begin_anew() {
  for (auto& [name, device] : devices_) {
    device.begun = false;
    device.windows_changed = 0;
  }
}

void DriftWatch::accept() {
  for (auto& [name, device] : devices_) {
    device.accepted = device.factor;
    device.windows_changed = 0;
  }
}

}  // namespace motley
