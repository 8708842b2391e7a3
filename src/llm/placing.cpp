#include "llm/placing.hpp"

#include <utility>

#include "base/file.hpp"
#include "llm/cost_cache.hpp"

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

Result<PlannedModel> plan_model(const Model& model, const DeviceSet& devices, const PlanSettings& settings,
                                const KvSettings& kv, const RuntimeOptions& runtime, const Progress& progress,
                                MeasureGate* gate, const PlanInput* have, const DriftFactors& drift) {
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
  const MeasureScope scope{have, settings.measure_again, waits ? 0 : settings.measure_limit_s};
  ASSIGN_OR_RETURN(MeasuredInput measured, measured_input(model, devices, measure, progress, scope));
  planned.input = std::move(measured.input);
  const PlanInput now = with_drift(planned.input, drift);
  if (settings.plan_file.empty()) {
    ASSIGN_OR_RETURN(planned.report, plan(planned.shape, now, planned.request));
    for (LeftOut& left : measured.left_out) planned.report.left_out.push_back(std::move(left));
    planned.report.simulated = devices.simulated();
    return planned;
  }
  auto placement = read_plan(text, planned.shape, planned.input, planned.request, planned.identity);
  if (!placement.ok()) return placement.error().annotate(settings.plan_file);
  auto report = report_on(planned.shape, now, planned.request, *placement);
  if (!report.ok()) return report.error().annotate(settings.plan_file);
  planned.report = *std::move(report);
  planned.report.simulated = devices.simulated();
  return planned;
}

}  // namespace motley
