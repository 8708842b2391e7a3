// What the planner predicts of a step is what it takes.
#include "planner/prediction.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "model/random_model.hpp"
#include "planning/placements.hpp"
#include "planning/sharing.hpp"
#include "planning/virtual_run.hpp"

namespace motley::testing {
namespace {

constexpr uint32_t kRowsMax = 64;
#ifdef MOTLEY_SANITIZED
constexpr size_t kEveryMachine = 2;  // ten times slower: every other one
#else
constexpr size_t kEveryMachine = 1;
#endif

struct Named {
  std::string name;
  Placement placement;
};

std::vector<Named> placements_on(const ModelShape& shape, const VirtualMachine& machine) {
  std::vector<Named> all;
  for (size_t d = 0; d < machine.size(); ++d)
    all.push_back({"device " + std::to_string(d), on_one(shape, machine.devices(), d)});
  const std::vector<std::vector<double>> shares = machine.size() == 2
                                                      ? std::vector<std::vector<double>>{{1, 1}, {2, 1}, {10, 1}}
                                                      : std::vector<std::vector<double>>{{1, 1, 1}, {4, 2, 1}};
  for (const auto& share : shares) {
    std::string text;
    for (const double s : share) text += fmt::format("{}{}", text.empty() ? "" : ":", s);
    all.push_back({"parallel " + text, in_parallel(shape, machine.devices(), share)});
    all.push_back({"line " + text, in_line(shape, machine.devices(), share)});
  }
  StageParts mixed{1, {{0, 1, 0, 1}, {1, 1, 1, 0}}};
  all.push_back({"unlike shares", place(shape, machine.devices(), {mixed})});
  if (machine.size() == 3) {
    StageParts two{2, {{0, 2, 2, 1}, {1, 1, 1, 1}}}, one{1, {{2}}};
    all.push_back({"two then one", place(shape, machine.devices(), {two, one})});
    all.push_back({"one then two", place(shape, machine.devices(), {one, two})});
  }
  return all;
}

std::vector<std::vector<SimDevice>> machines() {
  const SimDevice gpu{.kind = "gpu",
                      .gflops = 40,
                      .attention_gflops = 20,
                      .bandwidth_gb_s = 2,
                      .half_rows = 6,
                      .dispatch_us = 12,
                      .link_gb_s = 0.5,
                      .link_latency_us = 8};
  const SimDevice cpu{.kind = "cpu",
                      .gflops = 4,
                      .attention_gflops = 4,
                      .bandwidth_gb_s = 0.8,
                      .half_rows = 1,
                      .dispatch_us = 1,
                      .link_gb_s = 4,
                      .link_latency_us = 0.2};
  const SimDevice npu{.kind = "npu",
                      .gflops = 60,
                      .attention_gflops = 3,
                      .bandwidth_gb_s = 0.5,
                      .half_rows = 16,
                      .dispatch_us = 40,
                      .link_gb_s = 0.2,
                      .link_latency_us = 20};
  return {{gpu, cpu}, {gpu, npu}, {cpu, npu}, {gpu, scaled(gpu, 0.4)}, {gpu, cpu, npu}, {cpu, cpu, cpu}};
}

TEST(Prediction, StepsTakeWhatWasPredicted) {
  const RandomModel random(sharing_model());
  const Model& model = random.model();
  const auto shape = shape_of(model);
  ASSERT_TRUE(shape.ok());
  const std::vector<StepShape> steps = {{.decode_rows = 1, .context = 20},
                                        {.decode_rows = 3, .context = 200},
                                        {.decode_rows = 8, .context = 33},
                                        {.decode_rows = 24, .context = 64},
                                        {.chunk_rows = 40, .chunk_end = 40},
                                        {.chunk_rows = 64, .chunk_end = 256},
                                        {.decode_rows = 6, .context = 100, .chunk_rows = 20, .chunk_end = 60}};
  size_t all = 0, near = 0;
  double worst = 0;
  const auto all_machines = machines();
  for (size_t m = 0; m < all_machines.size(); m += kEveryMachine) {
    const std::vector<SimDevice>& devices = all_machines[m];
    const VirtualMachine machine(devices, {.latency_ns = 3000, .ns_per_byte = 0.5});
    const PlanInput input = machine.measure(model, kRowsMax);
    for (const Named& named : placements_on(*shape, machine)) {
      VirtualRun run(model, machine, named.placement, kRowsMax);
      for (const StepShape& step : steps) {
        const auto predicted = predict_step_ns(*shape, input, named.placement, step.load());
        ASSERT_TRUE(predicted.ok()) << predicted.error().message();
        run.step_ns(step);  // the one before may have left copies behind
        const auto took = static_cast<double>(run.step_ns(step));
        const double off = *predicted / took - 1;
        ++all;
        near += std::abs(off) <= 0.1 ? 1 : 0;
        worst = std::max(worst, std::abs(off));
        if (std::abs(off) > 0.1)
          std::printf("%s of %zu devices, %u rows at %u, %u prompt rows: predicted %.1f us, took %.1f us: %+.1f %%\n",
                      named.name.c_str(), devices.size(), step.decode_rows, step.context, step.chunk_rows,
                      *predicted / 1e3, took / 1e3, 100 * off);
      }
    }
  }
  std::printf("%zu configurations: %zu within 10 %%, worst %.1f %%\n", all, near, 100 * worst);
  EXPECT_GE(static_cast<double>(near), 0.9 * static_cast<double>(all));
  EXPECT_LE(worst, 0.2);
}

// On a device whose memory the host does not see, the copy of a step's tokens goes before the next step's programs.
TEST(Prediction, TokensDoNotWaitForTheStepBehind) {
  const RandomModel random(sharing_model());
  const auto shape = shape_of(random.model());
  ASSERT_TRUE(shape.ok());
  const VirtualMachine machine({machines()[0][0]}, {.latency_ns = 3000, .ns_per_byte = 0.5});
  VirtualRun run(random.model(), machine, on_one(*shape, machine.devices(), 0), kRowsMax);
  const StepShape step{.decode_rows = 8, .context = 33};
  for (int i = 0; i < 4; ++i) {
    const auto [first, second] = run.two_steps_ns(step);
    EXPECT_GT(second, 0.6 * static_cast<double>(first));
    EXPECT_LT(second, 1.6 * static_cast<double>(first));
  }
}

}  // namespace
}  // namespace motley::testing
