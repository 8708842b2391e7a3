#include "planner/drift.hpp"

#include <algorithm>
#include <cmath>

#include "planner/step_costs.hpp"
#include "planner/workload.hpp"

namespace motley {
namespace {

constexpr double kFar = 1024;          // positions, where reading is looked at
constexpr double kSome = 16;           // rows, where what a row adds is looked at
constexpr uint32_t kColdWindows = 1;   // that say nothing: what runs first runs slower
constexpr uint32_t kUsualWindows = 4;  // after them, that say what the tables are off by
constexpr double kOffMost = 1.75;      // that tables are; noise of 15 % of those off by 1.4 makes 1.65
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
    for (size_t i = 0; i < stage.section_ns.size(); ++i) busy[plan.sections[i].owner] += stage.section_ns[i];
  }
  return busy;
}

}  // namespace

double BusyModel::of(const StepsByRows& done) const {
  double ns = 0;
  for (size_t k = 0; k < done.size() && !step_ns.empty(); ++k) {
    const StepsDone& some = done[k];
    const size_t at = std::min(k, step_ns.size() - 1), next = std::min(at + 1, step_ns.size() - 1);
    const double least = std::ldexp(1, static_cast<int>(at));
    ns += some.steps * step_ns[at] + (some.rows - some.steps * least) * (step_ns[next] - step_ns[at]) / least;
    ns += some.decoding * decoding_ns + (some.heads - some.steps) * head_ns;
    ns += some.reads * read_ns + some.chunk_reads * chunk_read_ns;
  }
  return ns;
}

Result<std::vector<BusyModel>> busy_models(const ModelShape& shape, const PlanInput& input, const Placement& placement,
                                           size_t lane, uint32_t rows_max) {
  if (lane >= placement.lanes.size()) return invalid_argument("lane {} of {}", lane, placement.lanes.size());
  ASSIGN_OR_RETURN(const LanePlan plan, lane_plan_of(shape, input, placement, lane));
  const auto chunk = [&](double rows, double context, double heads) {
    return busy_of(shape, input, plan,
                   {.decode_rows = 0, .chunk_rows = rows, .chunk_context = context, .head_rows = heads});
  };
  const auto decode = [&](double context) {
    return busy_of(shape, input, plan, {.decode_rows = kSome, .context = context, .head_rows = 1});
  };
  const auto some = chunk(kSome, 1, 1), far = chunk(kSome, kFar, 1), drawn = chunk(kSome, 1, kSome);
  const auto decoding = decode(1), decoding_far = decode(kFar);
  std::vector<BusyModel> models;
  for (const auto& [device, ns] : some) {
    const auto more = [device = device](const auto& with, const auto& without, double each) {
      return std::max(0.0, with.at(device) - without.at(device)) / each;
    };
    BusyModel& model = models.emplace_back();
    model.device = input.devices[device].name;
    model.decoding_ns = more(decoding, some, kSome);
    model.head_ns = more(drawn, some, kSome - 1);
    model.read_ns = more(decoding_far, decoding, kSome * (kFar - 1));
    model.chunk_read_ns = more(far, some, kSome * (kFar - 1));
  }
  for (double rows = 1; rows < 2 * std::max(2.0, double{1} * rows_max); rows *= 2) {
    const auto step = chunk(rows, 1, 1);
    size_t i = 0;
    for (const auto& [device, ns] : some) models[i++].step_ns.push_back(step.at(device));
  }
  return models;
}

DriftFactors only_slower(DriftFactors factors) {
  std::erase_if(factors, [](const auto& each) { return each.second <= 1; });
  return factors;
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
    if (device.chunk_context_ns) *device.chunk_context_ns *= factor;
    device.sample_ns = static_cast<int64_t>(static_cast<double>(device.sample_ns) * factor);
  }
  return input;
}

bool DriftWatch::Device::known() const { return told || seen >= kColdWindows + kUsualWindows; }

bool DriftWatch::tell(std::string_view name, double factor) {
  Device& device = devices_.try_emplace(std::string(name)).first->second;
  if (!(factor > 0) || !std::isfinite(factor)) return false;
  const bool news = far(factor, device.factor);
  device.begun = false;
  device.told = true;
  device.factor = factor;
  for (Since* since : {&device.look, &device.plan}) since->windows = far(factor, since->factor) ? options_.windows : 0;
  return news;
}

void DriftWatch::observe(std::string_view name, int64_t now_ns, double busy_ns, double predicted_ns) {
  Device& device = devices_.try_emplace(std::string(name)).first->second;
  const double busy = busy_ns - device.busy_ns, predicted = predicted_ns - device.predicted_ns;
  const bool anew = !device.begun || busy < 0 || predicted < 0;
  const bool full = now_ns - device.since_ns >= options_.window_ns && predicted >= options_.busy_ns_least;
  if (!anew && !full) return;
  if (!anew) close(device, busy, predicted);
  device.begun = true;
  device.since_ns = now_ns;
  device.busy_ns = busy_ns, device.predicted_ns = predicted_ns;
}

void DriftWatch::close(Device& device, double busy_ns, double predicted_ns) const {
  const double ratio = busy_ns / predicted_ns;
  if (!(ratio > 0) || !std::isfinite(ratio)) return;
  if (device.seen++ < kColdWindows) return;
  device.busy_sum_ns += busy_ns, device.predicted_sum_ns += predicted_ns;
  if (device.seen <= kColdWindows + kUsualWindows) {
    take_usual(device);
    return;
  }
  const double now = ratio / device.usual;
  // A jump counts at once, and is confirmed by the next window; what varies a little is smoothed.
  const bool jumps = far(now, device.factor);
  device.factor = jumps ? now : device.factor + kNewest * (now - device.factor);
  for (Since* since : {&device.look, &device.plan})
    since->windows = far(device.factor, since->factor) ? since->windows + 1 : 0;
}

// Tables that are off by little stay off by that; by more, the device was slower or faster from the start than when it
// was measured.
void DriftWatch::take_usual(Device& device) const {
  const double off = device.busy_sum_ns / device.predicted_sum_ns, known = device.told ? device.factor : 1;
  const bool changed = std::abs(std::log(off / known)) > std::log(kOffMost);
  device.usual = changed ? 1 : off / known;
  if (!changed || device.seen < kColdWindows + kUsualWindows) return;
  device.factor = off;
  for (Since* since : {&device.look, &device.plan}) since->windows = far(off, since->factor) ? options_.windows : 0;
}

bool DriftWatch::far(double a, double b) const { return std::abs(std::log(a / b)) > std::log(options_.changed_least); }

DriftFactors DriftWatch::factors() const {
  DriftFactors factors;
  for (const auto& [name, device] : devices_) {
    if (device.known()) factors.emplace(name, device.factor);
  }
  return factors;
}

DriftFactors DriftWatch::averages() const {
  DriftFactors averages = factors();
  for (auto& [name, factor] : averages) factor = devices_.find(name)->second.average();
  return averages;
}

bool DriftWatch::off_plan_on_average() const {
  return std::any_of(devices_.begin(), devices_.end(), [&](const auto& each) {
    return each.second.known() && far(each.second.average(), each.second.plan.factor);
  });
}

bool DriftWatch::any(Since Device::*since) const {
  return std::any_of(devices_.begin(), devices_.end(),
                     [&](const auto& each) { return (each.second.*since).windows >= options_.windows; });
}

bool DriftWatch::changed() const { return any(&Device::look); }

void DriftWatch::looked() {
  for (auto& [name, device] : devices_) device.look = {device.factor, 0};
}

bool DriftWatch::off_plan() const { return any(&Device::plan); }

void DriftWatch::plan_is_for(const DriftFactors& factors) {
  for (auto& [name, device] : devices_) {
    const auto known = factors.find(name);
    device.plan = {known == factors.end() ? 1 : known->second, 0};
    device.busy_sum_ns = device.predicted_sum_ns = 0;
  }
}

void DriftWatch::begin_anew() {
  for (auto& [name, device] : devices_) {
    device.begun = false;
    device.look.windows = device.plan.windows = 0;
  }
}

}  // namespace motley
