// How long the planner takes, and how near its plans come to the bound of one lane, on the fleets of benchmarks/fleets:
// the tables of docs/benchmarks.md and docs/planning.md. Thread CPU time, so that other work on the machine counts
// little.
//   tools/build release planner_benchmark && build/bin/planner_benchmark [RUNS [FLEET [CONCURRENCY]]]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <sstream>
#include <string_view>
#include <vector>

#include "base/check.hpp"
#include "planner/bound.hpp"
#include "planner/planner_test_fleet.hpp"
#include "planner/profile_json.hpp"
#include "planner/search.hpp"

namespace {

using namespace motley;

double cpu_ms() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6;
}

// The median of `runs` runs.
template <typename Run>
double median_ms(int runs, const Run& run) {
  std::vector<double> took;
  for (int i = 0; i < runs; ++i) {
    const double began = cpu_ms();
    run();
    took.push_back(cpu_ms() - began);
  }
  std::sort(took.begin(), took.end());
  return took[took.size() / 2];
}

std::string text_of(const PlanReport& report) {
  std::string text;
  size_t widest = 0;
  if (report.lanes.size() > 1)
    return fmt::format("{} replicas of {} devices in all", report.lanes.size(), report.devices.size());
  const auto& stages = report.placement.lanes[0].stages;
  for (const Stage& stage : stages) widest = std::max(widest, stage.shards.size());
  return fmt::format("{} devices, {} stages of at most {}, {} in flight", report.devices.size(), stages.size(), widest,
                     std::max(1u, report.placement.lanes[0].micro_batches));
}

}  // namespace

int main(int argc, char** argv) {
  const int runs = argc > 1 ? std::max(1, std::atoi(argv[1])) : 5;
  const std::string_view only = argc > 2 ? argv[2] : "";
  const int only_concurrency = argc > 3 ? std::atoi(argv[3]) : 0;
  std::puts(
      "| fleet | streams | tokens/s | replayed | bound | gap | first plan | whole plan | the plan "
      "|\n|---|---|---|---|---|---|---|---|---|");
  for (const testing::FleetFile& fleet : testing::fleet_files()) {
    if (!only.empty() && fleet.name != only) continue;
    std::ifstream file(std::string(MOTLEY_SOURCE_DIR) + "/benchmarks/fleets/" + fleet.name);
    std::stringstream text;
    text << file.rdbuf();
    const auto input = read_plan_input(text.str());
    CHECK(input.ok(), "{}: {}", fleet.name, input.error().message());
    for (const uint32_t concurrency : {1u, 4u, 16u, 64u, 256u}) {
      if (only_concurrency > 0 && concurrency != static_cast<uint32_t>(only_concurrency)) continue;
      PlanRequest request;
      request.concurrency = concurrency;
      const auto report = plan(fleet.model, *input, request);
      CHECK(report.ok(), "{}: {}", fleet.name, report.error().message());
      const double first = median_ms(runs, [&] { (void)plan(fleet.model, *input, request, Effort::kFirst); });
      const double full = median_ms(runs, [&] { (void)plan(fleet.model, *input, request); });
      const double replayed = testing::replayed_tokens_per_s(fleet.model, *input, request, *report, 1000);
      Predictor predictor(fleet.model, *input, request);
      const double bound = report->lanes.size() > 1 ? tokens_per_s_bound(&predictor) : report->bound_tokens_per_s;
      std::printf("| %s | %u | %.1f | %.1f | %.1f | %.1f %% | %.1f ms | %.0f ms | %s |\n", fleet.name.c_str(),
                  concurrency, report->predicted.tokens_per_s, replayed, bound,
                  100 * (1 - report->predicted.tokens_per_s / bound), first, full, text_of(*report).c_str());
    }
  }
  return 0;
}
