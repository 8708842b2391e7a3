// What the planner predicts of a step beside what it takes, on this machine and by the wall clock:
//   prediction MODEL PAIRS [f16] [ROWS] DEVICES...
// f16: KV as engines have it unless told, in place of f32. ROWS: of the largest step, a prompt's (512).
// e.g. `prediction model.gguf 20 CPU:0/cores=0-7,CPU:0/cores=8-15 SIM:gpu-like,CPU:0/cores=0-3`. For each list of
// devices one or several placements (each device alone, tensor parallel and as a pipeline, even and uneven), and for
// each of them several steps. A pair: the devices are measured anew, and each step is predicted from that and run; its
// time is the median of a few runs one after another. A configuration (list, placement, step) counts with the median of
// its pairs' ratios.
//   tools/build release prediction plugins && build/bin/prediction ...
// SPDX-License-Identifier: Apache-2.0
#include "planner/prediction.hpp"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>

#include "base/check.hpp"
#include "base/config.hpp"
#include "llm/planning.hpp"
#include "model/model.hpp"
#include "planning/placements.hpp"
#include "planning/step_shape.hpp"

namespace motley::testing {
namespace {

constexpr int kRuns = 3, kRunsMax = 40;  // of a step; many of a short one
constexpr int kRunsBefore = 3;           // that do not count: a GPU records a step when it comes again
constexpr double kRunsMs = 40;

struct Asked {
  int32_t kv_dtype = MOTLEY_F32;
  uint32_t rows_max = 512;
};

struct Named {
  std::string name;
  Placement placement;
};

struct Configuration {
  std::vector<double> ratios;  // predicted / taken
  std::vector<double> took_ms;
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<long>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

std::vector<Named> placements_on(const ModelShape& shape, const DeviceSet& devices) {
  std::vector<Named> all;
  for (size_t d = 0; d < devices.size(); ++d)
    all.push_back({devices.listed(d).description.name, on_one(shape, devices, d)});
  if (devices.size() < 2) return all;
  const std::vector<double> even(devices.size(), 1);
  std::vector<double> uneven = even;
  uneven[0] = 3;
  for (const auto& [name, shares] : {std::pair{"even", even}, std::pair{"3 : 1", uneven}}) {
    all.push_back({fmt::format("tensor parallel, {}", name), in_parallel(shape, devices, shares)});
    all.push_back({fmt::format("pipeline, {}", name), in_line(shape, devices, shares)});
  }
  return all;
}

std::string text_of(const StepShape& step) {
  std::string text;
  if (step.decode_rows > 0) text = fmt::format("{} x decode at {}", step.decode_rows, step.context);
  if (step.chunk_rows > 0) text += fmt::format("{}{} prompt rows", text.empty() ? "" : ", ", step.chunk_rows);
  return text;
}

// Of one step. A lane of one stage has the next one waiting, as the engine sees to it; in a pipeline a step runs alone.
double step_ms(RuntimeExecutor* executor, const Named& named, const StepShape& shape, StepId* step) {
  const size_t ahead = named.placement.lanes[0].stages.size() == 1 ? 2 : 1;
  std::deque<Future<StepResult>> flying;
  const auto take = [&] {
    const StepResult result = flying.front().take();
    flying.pop_front();
    CHECK(result.status.ok(), "{}", result.status.message());
  };
  const auto now_ms = [] {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  std::vector<double> took;
  double began = now_ms(), spent = 0;
  for (int run = 1 - kRunsBefore; run <= kRuns || (spent < kRunsMs && run <= kRunsMax); ++run) {
    while (flying.size() < ahead) flying.push_back(executor->submit(step_plan(shape, 1, ++*step)));
    take();
    const double ended = now_ms();
    if (run > 0) took.push_back(ended - began), spent += ended - began;
    began = ended;
  }
  while (!flying.empty()) take();
  return median(std::move(took));
}

// A position of each block that the steps read, which is a page or more of each head: memory that was never written
// lies nowhere, and is read too fast.
void write_kv(RuntimeExecutor* executor, StepId* step) {
  constexpr uint32_t kAtOnce = 64;
  for (uint32_t first = 0; first < kKvBlocks; first += kAtOnce) {
    StepPlan plan = step_plan({.decode_rows = kAtOnce, .context = 1}, 1, ++*step);
    for (BlockId& block : plan.blocks) block += static_cast<BlockId>(first);
    const StepResult result = executor->submit(std::move(plan)).take();
    CHECK(result.status.ok(), "{}", result.status.message());
  }
}

// One pair of every configuration of a list of devices.
void measure_pair(const Model& model, const ModelShape& shape, const DeviceSet& devices, const Asked& asked,
                  std::map<std::pair<std::string, std::string>, Configuration>* all) {
  const std::vector<StepShape> steps = {{.decode_rows = 1, .context = 128},
                                        {.decode_rows = 4, .context = 512},
                                        {.decode_rows = 16, .context = 256},
                                        {.decode_rows = 32, .context = 512},
                                        {.decode_rows = 64, .context = 128},
                                        {.chunk_rows = 128, .chunk_end = 128},
                                        {.chunk_rows = asked.rows_max, .chunk_end = asked.rows_max},
                                        {.decode_rows = 8, .context = 256, .chunk_rows = 120, .chunk_end = 240}};
  MeasureOptions measure;
  measure.rows_max = asked.rows_max;
  measure.kv_dtype = asked.kv_dtype;
  const auto input = measure_input(model, devices, measure, [](const std::string&) {});
  CHECK(input.ok(), "{}", input.error().message());
  for (Named& named : placements_on(shape, devices)) {
    named.placement.kv_dtype = asked.kv_dtype;
    RuntimeOptions options;
    options.rows_max = asked.rows_max;
    options.logit_rows_max = 64;
    auto executor = RuntimeExecutor::create(model, named.placement, devices.named(), options);
    CHECK(executor.ok(), "{}", executor.error().message());
    StepId step = 0;
    write_kv(executor->get(), &step);
    for (const StepShape& shape_of_step : steps) {
      const auto predicted = predict_step_ns(shape, input->input, named.placement, shape_of_step.load());
      CHECK(predicted.ok(), "{}", predicted.error().message());
      const double took = step_ms(executor->get(), named, shape_of_step, &step);
      Configuration& configuration = (*all)[{named.name, text_of(shape_of_step)}];
      configuration.took_ms.push_back(took);
      configuration.ratios.push_back(*predicted / 1e6 / took);
      std::fprintf(stderr, "%s; %s; predicted %.3f ms, took %.3f ms\n", named.name.c_str(),
                   text_of(shape_of_step).c_str(), *predicted / 1e6, took);
    }
  }
}

int run(const char* path, int pairs, const Asked& asked, const std::vector<std::string>& lists) {
  const auto model = Model::load(path);
  CHECK(model.ok(), "{}", model.error().message());
  const auto shape = shape_of(**model);
  CHECK(shape.ok(), "{}", shape.error().message());
  const DeviceRegistry registry = DeviceRegistry::scan(plugin_directory());
  size_t all = 0, near = 0, far = 0;
  for (const std::string& list : lists) {
    auto listed = parse_device_list(registry, list);
    CHECK(listed.ok(), "{}", listed.error().message());
    const auto devices = DeviceSet::open(*std::move(listed), {});
    CHECK(devices.ok(), "{}", devices.error().message());
    std::map<std::pair<std::string, std::string>, Configuration> configurations;
    for (int pair = 0; pair < pairs; ++pair) {
      measure_pair(**model, *shape, *devices, asked, &configurations);
      std::fprintf(stderr, "%s: pair %d of %d\n", list.c_str(), pair + 1, pairs);
    }
    std::printf("%s, %d pairs\n%-26s %-34s %9s %9s %s\n", list.c_str(), pairs, "placement", "step", "took ms",
                "predicted", "quartiles");
    for (auto& [name, configuration] : configurations) {
      std::vector<double>& ratios = configuration.ratios;
      const double ratio = median(ratios);
      std::sort(ratios.begin(), ratios.end());
      ++all;
      near += std::abs(ratio - 1) <= 0.1 ? 1 : 0;
      far += std::abs(ratio - 1) > 0.2 ? 1 : 0;
      std::printf("%-26s %-34s %9.2f %+8.1f%% %+.1f .. %+.1f%%\n", name.first.c_str(), name.second.c_str(),
                  median(configuration.took_ms), 100 * (ratio - 1), 100 * (ratios[ratios.size() / 4] - 1),
                  100 * (ratios[3 * ratios.size() / 4] - 1));
    }
  }
  std::printf("%zu configurations: %zu within 10 %%, %zu farther than 20 %%\n", all, near, far);
  return 0;
}

}  // namespace
}  // namespace motley::testing

int main(int argc, char** argv) {
  motley::testing::Asked asked;
  int at = 3;
  if (at < argc && argv[at] == std::string_view("f16")) asked.kv_dtype = MOTLEY_F16, ++at;
  if (at < argc) {
    const std::string_view rows = argv[at];
    const auto [end, error] = std::from_chars(rows.begin(), rows.end(), asked.rows_max);
    if (error == std::errc() && end == rows.end()) ++at;
  }
  if (at >= argc || std::atoi(argv[2]) < 1 || asked.rows_max <= 128 ||
      asked.rows_max > motley::testing::kKvBlocks * motley::testing::kKvBlockSize) {
    std::fprintf(stderr, "usage: prediction MODEL PAIRS [f16] [ROWS: more than 128] DEVICES...\n");
    return 2;
  }
  return motley::testing::run(argv[1], std::atoi(argv[2]), asked, {argv + at, argv + argc});
}
