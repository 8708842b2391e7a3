#include <algorithm>
#include <cstdio>
#include <utility>

#include "base/config.hpp"
#include "base/log.hpp"
#include "commands.hpp"
#include "device/device_list.hpp"
#include "device/device_map.hpp"
#include "plan_rows.hpp"
#include "trace_signals.hpp"

namespace motley::apps {
namespace {

constexpr uint32_t kRoundsDefault = 4;  // prompts for each of those at once
constexpr uint32_t kWarmUpTokens = 8;

// Loads the row's engines and has them answer; what is there already goes first.
Status measure(const OpenPlan& plan, const EngineOptions& options, const EngineLoad& load, uint32_t repeat,
               PlanRow* row) {
  ASSIGN_OR_RETURN(const auto engines, Engines::open(plan, row->engines, options));
  EngineLoad warm_up = load;
  warm_up.prompts.resize(std::min<size_t>(load.prompts.size(), load.concurrency));
  warm_up.output_len = std::min(load.output_len, kWarmUpTokens);
  RETURN_IF_ERROR(engines->run(warm_up).error());
  std::vector<LoadSeen> runs;
  for (uint32_t i = 0; i < repeat; ++i) {
    log_info("{}: run {} of {}", row->name, i + 1, repeat);
    ASSIGN_OR_RETURN(LoadSeen seen, engines->run(load));
    runs.push_back(std::move(seen));
  }
  row->runs = std::move(runs);
  return ok_status();
}

// The plan's failure is the command's; a baseline's is a note in its row.
Status measure_all(const OpenPlan& plan, const EngineOptions& options, const EngineLoad& load, uint32_t repeat,
                   std::vector<PlanRow>* rows) {
  std::vector<std::string> keys;
  for (PlanRow& row : *rows) {
    const std::string& key = keys.emplace_back(placement_key(row));
    if (row.engines.empty()) continue;
    const auto same = static_cast<size_t>(std::find(keys.begin(), keys.end(), key) - keys.begin());
    if (same + 1 < keys.size()) {
      row.same_as = same;
      row.runs = (*rows)[same].runs;
      if (row.runs.empty()) row.note = (*rows)[same].note;
    } else {
      const Status status = measure(plan, options, load, repeat, &row);
      if (!status.ok()) row.note = "failed: " + status.message();
      if (!status.ok() && row.kind == "plan") return status;
    }
    if (row.kind == "plan" && row.runs.empty()) return error(MOTLEY_INTERNAL, "{}", row.note);
  }
  return ok_status();
}

std::vector<PlanRow> rows_of(std::vector<Baseline> baselines, const PlanReport& plan) {
  std::vector<PlanRow> rows;
  for (Baseline& each : baselines) {
    rows.push_back({std::string(baseline_name(each.kind)),
                    std::move(each.name),
                    std::move(each.engines),
                    std::move(each.note),
                    std::nullopt,
                    {}});
  }
  std::string left_out;
  for (const LeftOut& left : plan.left_out)
    left_out += fmt::format("{}{} is left out: {}", left_out.empty() ? "" : "; ", left.device, left.reason);
  rows.push_back({"plan", "Motley's plan", {plan}, std::move(left_out), std::nullopt, {}});
  return rows;
}

}  // namespace

Status bench_plan(const BenchPlanCommand& command) {
  const InstanceOptions& options = command.instance;
  const PlanSettings& planning = options.planning;
  PlanRowsTitle title;
  title.input_len = planning.prompt_len, title.output_len = planning.output_len;
  title.concurrency = planning.concurrency, title.repeat = command.repeat, title.seed = command.seed;
  title.num_prompts = command.num_prompts.value_or(kRoundsDefault * planning.concurrency);
  RETURN_IF_ERROR(check_prompts(title.num_prompts, title.input_len));
  const TraceSignals signals(options.trace, {SIGINT, SIGTERM});
  DeviceRegistry registry = DeviceRegistry::scan(plugin_directory());
  RETURN_IF_ERROR(map_devices(options.device_map, &registry));
  ASSIGN_OR_RETURN(auto listed, parse_device_list(registry, options.devices));
  for (const ListedDevice& device : listed) title.devices.push_back(device.description.name);
  ASSIGN_OR_RETURN(const OpenPlan plan, open_plan(options, std::move(listed)));
  const PlannedModel& planned = plan.planned;
  title.model = planned.shape.name;
  ASSIGN_OR_RETURN(auto made, baselines(planned.shape, planned.input, planned.request));
  std::vector<PlanRow> rows = rows_of(std::move(made), planned.report);
  EngineOptions engine = options.engine;
  engine.queue_limit = title.num_prompts;
  const EngineLoad load{random_prompts(plan.model->config().vocab_size, title.num_prompts, title.input_len, title.seed),
                        title.output_len, title.concurrency};
  RETURN_IF_ERROR(measure_all(plan, engine, load, command.repeat, &rows));
  std::printf("%s", rows_text(title, rows).c_str());
  if (!command.output_json.empty()) RETURN_IF_ERROR(write_file(command.output_json, rows_json(title, rows)));
  if (!command.svg_file.empty()) RETURN_IF_ERROR(write_file(command.svg_file, rows_svg(title, rows)));
  return ok_status();
}

}  // namespace motley::apps
