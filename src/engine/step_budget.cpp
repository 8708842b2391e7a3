#include "engine/step_budget.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace motley {
namespace {

using Vector = std::array<double, 3>;

constexpr Vector kUnits = {1, 64, 16384};  // of (1, rows, reads): brings all three costs to like size
constexpr double kNoise = 0.05;            // of a measured time, relative
constexpr double kDrift = 0.01;            // of a cost from step to step, relative
constexpr double kScaleFloor = 0.5;        // of a step's time: drift and doubt of a cost are relative to no less
constexpr double kUnknownNs = 1e8;         // doubt in a cost of which nothing is known

}  // namespace

StepBudget::StepBudget(const StepCost& prior, uint32_t fixed_rows, uint32_t rows_max)
    : fixed_rows_(fixed_rows), rows_max_(rows_max), cost_(prior) {
  const Vector costs = {prior.fixed_ns, prior.per_row_ns * kUnits[1], prior.per_context_ns * kUnits[2]};
  for (size_t i = 0; i < 3; ++i) {
    const double doubt = known() ? std::max(costs[i], kScaleFloor * kUnknownNs) : kUnknownNs;
    covariance_[i][i] = doubt * doubt;
  }
}

uint32_t StepBudget::rows() const { return rows_beside(0, 0, 0); }

uint32_t StepBudget::rows_beside(double rows, double reads, uint32_t position) const {
  const double limit =
      fixed_rows_ > 0 ? fixed_rows_ : std::min(rows_max_, known() ? kBudgetRowsMax : kBudgetRowsUnknown);
  const double room = std::max(0.0, limit - rows);
  if (fixed_rows_ > 0 || !known()) return static_cast<uint32_t>(room);
  const double time = std::max(0.0, kStepTargetNs - cost_.predict_ns(rows, reads));
  // n rows cost n * per_row + per_context * (n * position + n (n + 1) / 2): the positive root of that = time.
  const double square = 0.5 * cost_.per_context_ns;
  const double linear = cost_.per_row_ns + cost_.per_context_ns * (position + 0.5);
  const double root = 2 * time / (linear + std::sqrt(linear * linear + 4 * square * time));
  return static_cast<uint32_t>(std::min(room, std::max(root, static_cast<double>(kBudgetRowsMin))));
}

// A Kalman filter over the three costs, which drift slowly. The estimate moves only along what a step measured, so that
// what long prompts taught outlives any number of small steps. One outlier counts at most as double the prediction, and
// then proves nothing: the doubt stays.
void StepBudget::observe(double rows, double reads, double busy_ns) {
  if (fixed_rows_ > 0 || !(busy_ns > 0)) return;
  const double predicted = cost_.predict_ns(rows, reads);
  const bool outlier = known() && busy_ns > 2 * predicted;
  const double measured = outlier ? 2 * predicted : busy_ns;
  const Vector x = {1, rows / kUnits[1], reads / kUnits[2]};
  Vector px{};  // covariance * x
  double variance = kNoise * measured * kNoise * measured;
  for (size_t i = 0; i < 3; ++i) {
    for (size_t j = 0; j < 3; ++j) px[i] += covariance_[i][j] * x[j];
    variance += x[i] * px[i];
  }
  Vector costs = {cost_.fixed_ns, cost_.per_row_ns * kUnits[1], cost_.per_context_ns * kUnits[2]};
  for (size_t i = 0; i < 3; ++i) {
    costs[i] = std::max(0.0, costs[i] + px[i] / variance * (measured - predicted));
    for (size_t j = 0; j < 3 && !outlier; ++j) covariance_[i][j] -= px[i] * px[j] / variance;
  }
  cost_ = {.fixed_ns = costs[0], .per_row_ns = costs[1] / kUnits[1], .per_context_ns = costs[2] / kUnits[2]};
  for (size_t i = 0; i < 3; ++i) {
    const double scale = std::max(costs[i], kScaleFloor * measured / std::max(x[i], 1.0));
    covariance_[i][i] += kDrift * scale * kDrift * scale;
    const double shrink = std::min(1.0, scale / std::sqrt(covariance_[i][i]));
    for (size_t j = 0; j < 3; ++j) {
      covariance_[i][j] *= shrink;
      covariance_[j][i] *= shrink;
    }
  }
}

}  // namespace motley
