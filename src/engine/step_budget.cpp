#include "engine/step_budget.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace motley {
namespace {

constexpr double kRate = 0.5;                             // of a step's error that is corrected at once
constexpr std::array<double, 3> kUnits = {1, 64, 16384};  // 1, rows, reads: brings all three to order one

}  // namespace

StepBudget::StepBudget(const StepCost& prior, uint32_t fixed_rows, uint32_t rows_max)
    : fixed_rows_(fixed_rows), rows_max_(rows_max), cost_(prior) {}

uint32_t StepBudget::rows() const { return rows_beside(0, 0, 0); }

uint32_t StepBudget::rows_beside(double rows, double reads, uint32_t position) const {
  const double limit = fixed_rows_ > 0 ? fixed_rows_ : std::min(rows_max_, known() ? kBudgetRowsMax : kBudgetRowsUnknown);
  const double room = std::max(0.0, limit - rows);
  if (fixed_rows_ > 0 || !known()) return static_cast<uint32_t>(room);
  const double time = std::max(0.0, kStepTargetNs - cost_.predict_ns(rows, reads));
  // n rows cost n * per_row + per_context * (n * position + n (n + 1) / 2): the positive root of that = time.
  const double square = 0.5 * cost_.per_context_ns;
  const double linear = cost_.per_row_ns + cost_.per_context_ns * (position + 0.5);
  const double root = 2 * time / (linear + std::sqrt(linear * linear + 4 * square * time));
  return static_cast<uint32_t>(std::min(room, std::max(root, static_cast<double>(kBudgetRowsMin))));
}

// Normalised least mean squares: the estimate moves only along what the step measured, so that what long prompts taught
// outlives any number of small steps. One outlier counts at most double.
void StepBudget::observe(double rows, double reads, double busy_ns) {
  if (fixed_rows_ > 0 || !(busy_ns > 0)) return;
  const double predicted = cost_.predict_ns(rows, reads);
  const double error = (predicted > 0 ? std::min(busy_ns, 2 * predicted) : busy_ns) - predicted;
  const std::array<double, 3> x = {1, rows / kUnits[1], reads / kUnits[2]};
  const double gain = (predicted > 0 ? kRate : 1.0) * error / (x[0] * x[0] + x[1] * x[1] + x[2] * x[2]);
  cost_.fixed_ns = std::max(0.0, cost_.fixed_ns + gain * x[0]);
  cost_.per_row_ns = std::max(0.0, cost_.per_row_ns + gain * x[1] / kUnits[1]);
  cost_.per_context_ns = std::max(0.0, cost_.per_context_ns + gain * x[2] / kUnits[2]);
}

}  // namespace motley
