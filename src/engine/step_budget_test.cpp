#include "engine/step_budget.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace motley {
namespace {

TEST(StepBudget, UnknownCost_GivesTheDefault) {
  EXPECT_EQ(StepBudget({}, 0, 4096).rows(), kBudgetRowsUnknown);
  EXPECT_EQ(StepBudget({}, 0, 100).rows(), 100u);
}

TEST(StepBudget, DeclaredCost_FillsTheTargetTimeAndNoMore) {
  const StepCost cost{.fixed_ns = 10e6, .per_row_ns = 0.5e6, .per_context_ns = 100};
  const StepBudget budget(cost, 0, 4096);
  for (const uint32_t position : {0u, 500u, 5000u}) {
    const uint32_t rows = budget.rows_beside(20, 4000, position);
    const auto time = [&](uint32_t n) { return cost.predict_ns(20 + n, 4000 + positions_read(n, position + n)); };
    EXPECT_LE(time(rows), kStepTargetNs);
    EXPECT_GT(time(rows + 1), kStepTargetNs);
  }
}

TEST(StepBudget, SlowDevice_StillMovesPromptsOn) {
  EXPECT_EQ(StepBudget({.fixed_ns = 1e9, .per_row_ns = 1e9, .per_context_ns = 0}, 0, 4096).rows(), kBudgetRowsMin);
}

TEST(StepBudget, OwnBudget_IsKeptWhateverIsMeasured) {
  StepBudget budget({}, 96, 4096);
  budget.observe(96, 1000, 5e9);
  EXPECT_EQ(budget.rows(), 96u);
  EXPECT_EQ(budget.rows_beside(90, 0, 0), 6u);
  EXPECT_EQ(budget.rows_beside(200, 0, 0), 0u);
}

// A device of a hidden cost, steps of all sizes, 10 % of noise: what the budget lets through ends in time.
TEST(StepBudget, MeasuredSteps_BringThePredictionToTheDevice) {
  const StepCost device{.fixed_ns = 8e6, .per_row_ns = 0.7e6, .per_context_ns = 300};
  for (uint32_t run = 0; run < 20; ++run) {
    // Half of the runs start from nothing, half from a cost that is far too low.
    const StepCost prior =
        run % 2 == 0 ? StepCost{} : StepCost{.fixed_ns = 1e6, .per_row_ns = 0.1e6, .per_context_ns = 0};
    StepBudget budget(prior, 0, 4096);
    std::mt19937 random(run);
    for (int step = 0; step < 400; ++step) {
      const double decodes = random() % 32;
      const uint32_t position = random() % 1500;
      const uint32_t rows = budget.rows_beside(decodes, decodes * 700, position);
      const double reads = decodes * 700 + positions_read(rows, position + rows);
      const double time = device.predict_ns(decodes + rows, reads) * (0.95 + 0.1 * (random() % 1000) / 1000.0);
      if (step >= 50) {
        EXPECT_LT(time, 1.25 * kStepTargetNs) << "step " << step;
        EXPECT_GT(time, 0.7 * kStepTargetNs) << "step " << step;
      }
      budget.observe(decodes + rows, reads, time);
    }
  }
}

TEST(StepBudget, ManySmallSteps_DoNotForgetWhatAPromptCost) {
  const StepCost device{.fixed_ns = 8e6, .per_row_ns = 0.7e6, .per_context_ns = 0};
  StepBudget budget({}, 0, 4096);
  for (int i = 0; i < 40; ++i)
    for (const uint32_t rows : {256u, 16u, 128u})
      budget.observe(rows, positions_read(rows, rows), device.predict_ns(rows, 0));
  for (int i = 0; i < 5000; ++i) budget.observe(4, 4 * 300, device.predict_ns(4, 0));
  const uint32_t rows = budget.rows();
  EXPECT_LT(device.predict_ns(rows, 0), 1.25 * kStepTargetNs);
  EXPECT_GT(device.predict_ns(rows, 0), 0.6 * kStepTargetNs);
}

}  // namespace
}  // namespace motley
