#include "engine/step_budget.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace motley {
namespace {

double time_of(const StepCost& device, uint32_t rows) { return device.predict_ns(rows, positions_read(rows, rows)); }

void observe(StepBudget& budget, const StepCost& device, uint32_t rows) {
  budget.observe(rows, positions_read(rows, rows), time_of(device, rows));
}

TEST(StepBudget, UnknownCost_GivesTheDefault) {
  EXPECT_EQ(StepBudget({}, 0, 4096).rows(), kBudgetRowsUnknown);
  EXPECT_EQ(StepBudget({}, 0, 40).rows(), 40u);
}

TEST(StepBudget, FastDevice_ReachesAWholePromptInAFewSteps) {
  const StepCost device{.fixed_ns = 2e6, .per_row_ns = 0.05e6, .per_context_ns = 20};
  for (const uint32_t warm_ups : {0u, 1u, 20u, 2000u}) {
    StepBudget budget({}, 0, 4096);
    for (uint32_t i = 0; i < warm_ups; ++i) observe(budget, device, 1);
    for (int step = 0; step < 4; ++step) observe(budget, device, budget.rows());
    EXPECT_GE(budget.rows(), 512u) << "after " << warm_ups << " warm-ups";
  }
}

// One-row steps tell nothing of what a row costs: the budget must not take the whole step for fixed.
TEST(StepBudget, OneRowWarmUps_DoNotLetALongStepThrough) {
  for (const double per_row_ns : {0.05e6, 0.3e6, 1e6, 3e6}) {
    const StepCost device{.fixed_ns = 5e6, .per_row_ns = per_row_ns, .per_context_ns = 50};
    StepBudget budget({}, 0, 4096);
    for (int i = 0; i < 20; ++i) observe(budget, device, 1);
    for (int step = 0; step < 30; ++step) {
      const uint32_t rows = budget.rows();
      EXPECT_LE(time_of(device, rows), kStepAimNs) << per_row_ns << " ns a row, step " << step;
      observe(budget, device, rows);
    }
    EXPECT_GT(time_of(device, budget.rows() + 1), per_row_ns > 0.1e6 ? 0.7 * kStepAimNs : 0);
  }
}

TEST(StepBudget, NoStep_HasMoreThanDoubleTheRowsOfTheLargestSoFar) {
  StepBudget budget({}, 0, 4096);
  uint32_t largest = kBudgetRowsUnknown / 2;
  for (int step = 0; step < 8; ++step) {
    EXPECT_LE(budget.rows(), 2 * largest);
    largest = std::max(largest, budget.rows());
    observe(budget, {.fixed_ns = 1000, .per_row_ns = 1, .per_context_ns = 0}, budget.rows());
  }
  EXPECT_EQ(budget.rows(), kBudgetRowsMax);
}

TEST(StepBudget, Buckets_TheNextOneIsReachedThoughItIsMoreThanDouble) {
  StepBudget budget({}, 0, 1024, {16, 64, 256, 1024});
  EXPECT_EQ(budget.rows(), kBudgetRowsUnknown);
  budget.observe(50, 1000, 1e6);  // 64 ran
  EXPECT_EQ(budget.rows(), 256u);
  budget.observe(200, 10000, 0.3e6);
  EXPECT_EQ(budget.rows(), 1024u);
}

TEST(StepBudget, Outliers_AreForgottenAtOnce) {
  const StepCost device{.fixed_ns = 5e6, .per_row_ns = 0.3e6, .per_context_ns = 20};
  StepBudget slow_start({}, 0, 4096);
  slow_start.observe(64, positions_read(64, 64), 5e9);  // the first step reads the weights from disk
  StepBudget later({}, 0, 4096);
  for (int step = 0; step < 20; ++step) observe(later, device, later.rows());
  later.observe(8, 100, 3e9);  // the machine stood still
  for (StepBudget* budget : {&slow_start, &later}) {
    for (int step = 0; step < 6; ++step) {
      EXPECT_LE(time_of(device, budget->rows()), kStepAimNs);
      observe(*budget, device, budget->rows());
    }
    EXPECT_GT(time_of(device, budget->rows()), 0.7 * kStepAimNs);
  }
}

TEST(StepBudget, DeviceThatBecameSlower_IsBelievedAfterAFewSteps) {
  const StepCost before{.fixed_ns = 5e6, .per_row_ns = 0.3e6, .per_context_ns = 20};
  const StepCost after{.fixed_ns = 20e6, .per_row_ns = 1.2e6, .per_context_ns = 80};
  StepBudget budget({}, 0, 4096);
  for (int step = 0; step < 20; ++step) observe(budget, before, budget.rows());
  for (int step = 0; step < 4; ++step) observe(budget, after, budget.rows());
  EXPECT_LE(time_of(after, budget.rows()), 1.1 * kStepAimNs);
}

TEST(StepBudget, FixedCostBeyondTheTarget_IsSpreadOverAsMuchWorthOfRows) {
  const StepCost device{.fixed_ns = 250e6, .per_row_ns = 1e6, .per_context_ns = 0};
  StepBudget budget({}, 0, 4096);
  for (int i = 0; i < 50; ++i) {
    observe(budget, device, 1);
    observe(budget, device, budget.rows());
  }
  EXPECT_GT(budget.rows(), 175u);
  EXPECT_LE(budget.rows(), 275u);
}

// Between the two no step shall take longer than the limit, and rows shall not become few.
TEST(StepBudget, FixedCostNearTheLimit_LeavesRoomUpToTheLimit) {
  const StepCost device{.fixed_ns = 120e6, .per_row_ns = 0.5e6, .per_context_ns = 0};
  StepBudget budget({}, 0, 4096);
  for (int i = 0; i < 50; ++i) {
    observe(budget, device, 1);
    observe(budget, device, budget.rows());
  }
  EXPECT_LE(time_of(device, budget.rows()), kStepLimitNs);
  EXPECT_GT(budget.rows(), 80u);
}

TEST(StepBudget, SlowRows_StillMovePromptsOn) {
  EXPECT_EQ(StepBudget({.fixed_ns = 1e9, .per_row_ns = 1e9, .per_context_ns = 0}, 0, 4096).rows(), kBudgetRowsMin);
}

TEST(StepBudget, OwnBudget_IsKeptWhateverIsMeasured) {
  StepBudget budget({}, 96, 4096);
  budget.observe(96, 1000, 5e9);
  EXPECT_EQ(budget.rows(), 96u);
  EXPECT_EQ(budget.rows_beside(90, 0, 0, 1), 6u);
  EXPECT_EQ(budget.rows_beside(200, 0, 0, 1), 0u);
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
      const uint32_t rows = budget.rows_beside(decodes, decodes * 700, position, budget.target_ns(0, 0));
      const double reads = decodes * 700 + positions_read(rows, position + rows);
      const double time = device.predict_ns(decodes + rows, reads) * (0.95 + 0.1 * (random() % 1000) / 1000.0);
      if (step >= 50) {
        EXPECT_LT(time, 1.25 * kStepAimNs) << "step " << step;
        EXPECT_GT(time, 0.7 * kStepAimNs) << "step " << step;
      }
      budget.observe(decodes + rows, reads, time);
    }
  }
}

// What prompts add to a step where sequences decode is bounded by what those wait anyway.
TEST(StepBudget, DecodingRowsBeside_ShortenTheStep) {
  const StepCost device{.fixed_ns = 2e6, .per_row_ns = 0.3e6, .per_context_ns = 0};
  StepBudget budget(device, 0, 4096);
  for (int step = 0; step < 50; ++step) {
    for (const uint32_t rows : {8u, 32u, 128u, 300u}) observe(budget, device, rows);
  }
  const auto step_ns = [&](double decodes) {
    const double target = budget.target_ns(decodes, 0);
    return device.predict_ns(decodes + budget.rows_beside(decodes, 0, 0, target), 0);
  };
  EXPECT_GT(step_ns(0), 0.7 * kStepAimNs);
  EXPECT_LE(step_ns(0), kStepAimNs);
  EXPECT_GT(step_ns(8), 0.7 * kStepAimBesideNs);  // 8 rows take 4.4 ms
  EXPECT_LE(step_ns(8), kStepAimBesideNs);
  const double many = kStepAimBesideTimes * device.predict_ns(64, 0);  // 64 rows take 21 ms
  EXPECT_GT(step_ns(64), 0.7 * many);
  EXPECT_LE(step_ns(64), many);
  EXPECT_LE(step_ns(250), kStepAimNs);  // three times 77 ms is beyond what any step may take
  EXPECT_GT(step_ns(250), 0.7 * kStepAimNs);
}

// A large model on a processor, and a small one.
TEST(StepBudget, Alone_TheFixedCostIsASmallPart) {
  const auto rows_alone = [](const StepCost& device) {
    StepBudget budget(device, 0, 4096);
    for (int step = 0; step < 50; ++step) {
      for (const uint32_t rows : {1u, 16u, 64u, 300u}) observe(budget, device, rows);
    }
    return budget.rows_beside(0, 0, 0, budget.alone_ns());
  };
  const StepCost large{.fixed_ns = 45e6, .per_row_ns = 2e6, .per_context_ns = 0};
  EXPECT_GT(large.predict_ns(rows_alone(large), 0), 0.7 * kStepAloneTimes * large.fixed_ns);
  EXPECT_LE(large.predict_ns(rows_alone(large), 0), kStepAloneTimes * large.fixed_ns);
  const StepCost larger{.fixed_ns = 150e6, .per_row_ns = 2e6, .per_context_ns = 0};
  EXPECT_GT(larger.predict_ns(rows_alone(larger), 0), 0.7 * kStepAloneNs);
  EXPECT_LE(larger.predict_ns(rows_alone(larger), 0), kStepAloneNs);
  const StepCost small{.fixed_ns = 2e6, .per_row_ns = 0.3e6, .per_context_ns = 0};
  EXPECT_LE(small.predict_ns(rows_alone(small), 0), kStepAimNs);
}

// Before it is known what a step costs without rows, rows that cost much are not taken for it.
TEST(StepBudget, Alone_BeforeTheCostsAreKnown) {
  for (const double per_row_ns : {0.3e6, 1.5e6, 3e6}) {
    const StepCost small{.fixed_ns = 1e6, .per_row_ns = per_row_ns, .per_context_ns = 0};
    StepBudget budget({}, 0, 4096);
    observe(budget, small, budget.rows_beside(0, 0, 0, budget.alone_ns()));
    for (int step = 0; step < 20; ++step) {
      const uint32_t rows = budget.rows_beside(0, 0, 0, budget.alone_ns());
      EXPECT_LE(time_of(small, rows), kStepAimNs) << per_row_ns << " ns a row, step " << step;
      observe(budget, small, rows);
    }
  }
  const StepCost large{.fixed_ns = 60e6, .per_row_ns = 1e6, .per_context_ns = 0};
  StepBudget budget({}, 0, 4096);
  for (int step = 0; step < 6; ++step) observe(budget, large, budget.rows_beside(0, 0, 0, budget.alone_ns()));
  EXPECT_GT(budget.rows_beside(0, 0, 0, budget.alone_ns()), 400u);
}

TEST(StepBudget, ManySmallSteps_DoNotForgetWhatAPromptCost) {
  const StepCost device{.fixed_ns = 8e6, .per_row_ns = 0.7e6, .per_context_ns = 0};
  StepBudget budget({}, 0, 4096);
  for (int i = 0; i < 40; ++i)
    for (const uint32_t rows : {256u, 16u, 128u})
      budget.observe(rows, positions_read(rows, rows), device.predict_ns(rows, 0));
  for (int i = 0; i < 5000; ++i) budget.observe(4, 4 * 300, device.predict_ns(4, 0));
  const uint32_t rows = budget.rows();
  EXPECT_LT(device.predict_ns(rows, 0), 1.25 * kStepAimNs);
  EXPECT_GT(device.predict_ns(rows, 0), 0.6 * kStepAimNs);
}

}  // namespace
}  // namespace motley
