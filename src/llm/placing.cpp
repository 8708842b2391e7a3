#include "llm/placing.hpp"

#include <utility>

#include "base/file.hpp"
#include "llm/cost_cache.hpp"
#include "runtime/lane_runner.hpp"

namespace motley {
namespace {

// What can be refused before anything is measured: `text` is the plan file's.
Status check_unmeasured(const PlannedModel& planned, const DeviceSet& devices, const PlanSettings& settings,
                        const std::string& text) {
  std::vector<std::string> names;
  PlanInput named;
  for (const MeasuredDevice& device : devices.measured()) {
    names.push_back(device.description.name);
    DeviceProfile& profile = named.devices.emplace_back();
    profile.name = device.description.name;
    const uint64_t caps = device.description.desc.caps;
    profile.attends = (caps & MOTLEY_CAP_PAGED_ATTENTION) != 0;
    profile.attends_partially = (caps & MOTLEY_CAP_PARTIAL_ATTENTION) != 0;
    profile.holds_vocabulary = (caps & MOTLEY_CAP_DYNAMIC_ROWS) != 0;
  }
  if (settings.plan_file.empty()) return check_forced(planned.request, names, planned.shape.layers.size());
  const auto placement = read_plan(text, planned.shape, named, planned.request, planned.identity);
  return placement.ok() ? ok_status() : placement.error().annotate(settings.plan_file);
}

}  // namespace

Status check_compiling(const Model& model, const DeviceSet& devices, const RuntimeOptions& runtime,
                       const PlanInput& input, const Placement& placement, std::string* beyond) {
  RuntimeOptions options = runtime;
  options.row_counts = row_counts_of(input);
  return compile_seconds(model, placement, devices.named(), options, beyond).error();
}

Result<PlanReport> plan_that_compiles(const Model& model, const DeviceSet& devices, const RuntimeOptions& runtime,
                                      const ModelShape& shape, const PlanInput& measured, const PlanRequest& request,
                                      const DriftFactors& drift, std::vector<Unmeasured>* without,
                                      const std::stop_token& stop) {
  for (PlanInput input = measured;;) {
    ASSIGN_OR_RETURN(PlanReport report, plan(shape, with_drift(input, drift), request, Effort::kFull, stop));
    std::string beyond;
    const Status compiles = check_compiling(model, devices, runtime, input, report.placement, &beyond);
    if (compiles.ok()) return report;
    if (beyond.empty() || without == nullptr) return compiles;
    input = without_devices(std::move(input), [&](const std::string& name) { return name == beyond; });
    without->push_back({{beyond, fmt::format("no plan with it keeps to its limits: {}", compiles.message())}, false});
  }
}

Result<PlannedModel> plan_model(const Model& model, const DeviceSet& devices, const PlanSettings& settings,
                                const KvSettings& kv, const RuntimeOptions& runtime, const Progress& progress,
                                MeasureGate* gate, const PlannedModel* have, const DriftFactors& drift) {
  PlannedModel planned;
  planned.identity = {model_digest(model), machine_of(devices)};
  ASSIGN_OR_RETURN(planned.shape, shape_of(model));
  planned.request =
      plan_request(settings, kv, model.config(), runtime.rows_max, most_step_buffers(model, devices, runtime));
  std::string text;
  if (!settings.plan_file.empty()) {
    if (settings.objective == Objective::kLatency)
      return invalid_argument("--objective latency and --plan: a plan is taken as it is; leave one of them out");
    ASSIGN_OR_RETURN(text, read_file(settings.plan_file, kPlanFileBytesMax));
  }
  RETURN_IF_ERROR(check_unmeasured(planned, devices, settings, text));
  MeasureOptions measure = measure_options(kv, runtime);
  measure.gate = gate;
  measure.brief = gate != nullptr;
  const bool waits = settings.forced() || !settings.plan_file.empty();
  MeasureScope scope;
  if (have != nullptr) scope.have = &have->input, scope.unmeasured = have->unmeasured;
  scope.again = settings.measure_again;
  scope.limit_s = waits ? 0 : settings.measure_limit_s;
  scope.may_go_without = !waits;
  ASSIGN_OR_RETURN(MeasuredInput measured, measured_input(model, devices, measure, progress, scope));
  planned.input = std::move(measured.input);
  planned.unmeasured = std::move(measured.unmeasured);
  if (settings.plan_file.empty()) {
    std::vector<Unmeasured> without;
    ASSIGN_OR_RETURN(planned.report,
                     plan_that_compiles(model, devices, runtime, planned.shape, planned.input, planned.request, drift,
                                        scope.may_go_without ? &without : nullptr));
    for (Unmeasured& each : without) {
      planned.input =
          without_devices(std::move(planned.input), [&](const std::string& name) { return name == each.left.device; });
      planned.unmeasured.push_back(std::move(each));
    }
    for (const Unmeasured& each : planned.unmeasured) planned.report.left_out.push_back(each.left);
    planned.report.simulated = devices.simulated();
    return planned;
  }
  const PlanInput now = with_drift(planned.input, drift);
  auto placement = read_plan(text, planned.shape, planned.input, planned.request, planned.identity);
  if (!placement.ok()) return placement.error().annotate(settings.plan_file);
  auto report = report_on(planned.shape, now, planned.request, *placement);
  if (!report.ok()) return report.error().annotate(settings.plan_file);
  planned.report = *std::move(report);
  planned.report.simulated = devices.simulated();
  return planned;
}

}  // namespace motley
