#include "engine/step_budget.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "engine/bucket_rounding.hpp"

namespace motley {
namespace {

constexpr std::array<double, 3> kUnits = {1, 64, 16384};  // of (1, rows, reads): brings the three costs to like size
constexpr double kNoise = 0.05;                           // of a measured time, relative
constexpr double kDrift = 0.01;                           // of a cost from step to step, relative
constexpr double kDoubtMax = 0.25;                        // that drift and surprise may bring about, relative
constexpr double kScaleFloor = 0.1;                       // of a step's time: doubt of a cost is relative to no less
constexpr double kUnknownNs = 1e8;                        // doubt in a cost that no step has told of
constexpr double kDeviations = 2;                         // a step is taken to cost so many more than its mean
constexpr double kSurprise = 3;                           // deviations from which a time says that the costs changed
constexpr double kSlack = 1.25;                           // a cost is at most so many times what a whole step took

}  // namespace

StepBudget::StepBudget(const StepCost& prior, uint32_t fixed_rows, uint32_t rows_max, std::vector<uint32_t> buckets)
    : fixed_rows_(fixed_rows), rows_max_(rows_max), buckets_(std::move(buckets)), cost_(prior) {
  for (size_t i = 0; i < 3; ++i) covariance_[i][i] = kUnknownNs * kUnknownNs;
}

StepBudget::Vector StepBudget::features(double rows, double reads) {
  return {1 / kUnits[0], rows / kUnits[1], reads / kUnits[2]};
}

double StepBudget::variance(const Vector& x) const {
  double sum = 0;
  for (size_t i = 0; i < 3; ++i)
    for (size_t j = 0; j < 3; ++j) sum += x[i] * covariance_[i][j] * x[j];
  return std::max(0.0, sum);
}

double StepBudget::pessimistic_ns(double rows, double reads) const {
  return (1 + kDeviations * kNoise) * cost_.predict_ns(rows, reads) +
         kDeviations * std::sqrt(variance(features(rows, reads)));
}

// What a step costs at least, without any rows: a first one does not tell that from what its rows cost.
double StepBudget::sure_fixed_ns() const { return cost_.fixed_ns - kDeviations * std::sqrt(covariance_[0][0]); }

// Where a step's fixed cost is large, as much again is spent on rows, first up to the limit and, where the fixed cost
// alone surely misses it, beyond: else a large model would read its weights anew for every few of them.
double StepBudget::target_ns() const {
  const double fixed = sure_fixed_ns();
  if (fixed >= kStepLimitNs) return 2 * (1 + kDeviations * kNoise) * cost_.fixed_ns;
  return std::clamp(2 * fixed, kStepAimNs, kStepLimitNs);
}

double StepBudget::target_ns(double rows, double reads) const {
  const double longest = target_ns();
  if (rows == 0) return longest;
  return std::min(longest, std::max(kStepAimBesideTimes * cost_.predict_ns(rows, reads), kStepAimBesideNs));
}

double StepBudget::alone_ns() const {
  return std::max(target_ns(), std::min(kStepAloneTimes * sure_fixed_ns(), kStepAloneNs));
}

uint32_t StepBudget::rows() const { return rows_beside(0, 0, 0, target_ns()); }

uint32_t StepBudget::rows_beside(double rows, double reads, uint32_t position, double target_ns) const {
  const auto at_most = [&](double limit) { return static_cast<uint32_t>(std::max(0.0, limit - rows)); };
  if (fixed_rows_ > 0) return at_most(fixed_rows_);
  const uint32_t room = at_most(std::min(rows_max_, kBudgetRowsMax));
  double most = std::max<double>(kBudgetRowsUnknown, 2 * rows_seen_);
  if (const auto next = std::upper_bound(buckets_.begin(), buckets_.end(), rows_seen_); next != buckets_.end())
    most = std::max<double>(most, *next);
  const uint32_t proven = std::max(at_most(most), kBudgetRowsMin);
  uint32_t high = std::min(room, proven) + 1;
  if (rows_seen_ == 0 && cost_.predict_ns(1, 1) <= 0) return high - 1;
  uint32_t low = 0;  // the answer lies in [low, high)
  while (high - low > 1) {
    const uint32_t n = low + (high - low) / 2;
    const bool in_time = pessimistic_ns(rows + n, reads + positions_read(n, position + n)) <= target_ns;
    (in_time ? low : high) = n;
  }
  const uint32_t chosen = std::min(room, std::max(low, kBudgetRowsMin));
  const uint32_t rest = (static_cast<uint32_t>(rows) + chosen) % kBudgetRowsGrain;
  return chosen < kBudgetRowsMin + rest ? chosen : chosen - rest;
}

// A Kalman filter over the three costs, which drift slowly. The estimate moves only along what a step measured, so that
// what long prompts taught outlives any number of small steps. One outlier moves little; it raises the doubt, so that a
// second one like it is believed and a plain step undoes it. No part of a step costs more than the whole step took:
// that bounds every cost and the doubt in it, and undoes a slow first step at once.
void StepBudget::observe(double rows, double reads, double busy_ns) {
  if (fixed_rows_ > 0 || !(busy_ns > 0)) return;
  rows = padded_rows(buckets_, static_cast<uint32_t>(rows));
  rows_seen_ = std::max(rows_seen_, rows);
  const Vector x = features(rows, reads);
  const double predicted = cost_.predict_ns(rows, reads);
  const double measured = std::min(busy_ns, 2 * pessimistic_ns(rows, reads));
  const double doubt = variance(x) + kNoise * measured * kNoise * measured;
  const bool surprise = std::abs(measured - predicted) > kSurprise * std::sqrt(doubt);
  Vector px{};  // covariance * x
  for (size_t i = 0; i < 3; ++i)
    for (size_t j = 0; j < 3; ++j) px[i] += covariance_[i][j] * x[j];
  Vector costs = {cost_.fixed_ns * kUnits[0], cost_.per_row_ns * kUnits[1], cost_.per_context_ns * kUnits[2]};
  for (size_t i = 0; i < 3; ++i) {
    costs[i] = std::max(0.0, costs[i] + px[i] / doubt * (measured - predicted));
    if (x[i] > 0) costs[i] = std::min(costs[i], kSlack * busy_ns / x[i]);
    for (size_t j = 0; j < 3; ++j) covariance_[i][j] -= px[i] * px[j] / doubt;
  }
  cost_ = {
      .fixed_ns = costs[0] / kUnits[0], .per_row_ns = costs[1] / kUnits[1], .per_context_ns = costs[2] / kUnits[2]};
  for (size_t i = 0; i < 3; ++i) {
    if (x[i] > 0) bound_doubt(i, kSlack * busy_ns / x[i]);
    const double scale = std::max(costs[i], kScaleFloor * measured / std::max(x[i], 1.0));
    const double most = kDoubtMax * scale, step = (surprise ? kDoubtMax : kDrift) * scale;
    double& own = covariance_[i][i];
    own = std::max(own, std::min(std::max(own, 0.0) + step * step, most * most));
  }
}

void StepBudget::bound_doubt(size_t cost, double most_ns) {
  const double own = covariance_[cost][cost];
  if (own <= most_ns * most_ns) return;
  const double shrink = most_ns / std::sqrt(own);
  for (size_t j = 0; j < 3; ++j) {
    covariance_[cost][j] *= shrink;
    covariance_[j][cost] *= shrink;
  }
}

}  // namespace motley
