// StepBudget: how many rows a step may carry, so that it is predicted to end in time.
//
// The cost of a step is fixed + rows * per_row + reads * per_context (executor.hpp's StepCost), started from what the
// executor declares and corrected by what its steps take; a cost that the steps so far say little of is taken to be
// high, and no step has more than double the rows of the largest so far, or the next bucket. Deterministic; one owner;
// not thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/executor.hpp"

namespace motley {

inline constexpr double kStepLimitNs = 200e6;  // a step shall not take longer
// What a step is predicted to take at most: below the limit by what a machine with other work to do now and then adds.
inline constexpr double kStepAimNs = 120e6;
// The same of a step that also carries rows of sequences which decode, and whose next tokens wait for it: 20 tokens a
// second are more than anybody reads, and smaller parts would only cost throughput; but where the decoding rows alone
// take long, so many times that, so that prompts get most of the time and the gaps grow by a known factor only.
inline constexpr double kStepAimBesideNs = 48e6;
inline constexpr double kStepAimBesideTimes = 3;
// Where nobody's next token waits, a prompt's step is so many times its fixed cost, since parts of a prompt read the
// weights anew each, but no longer than this: a new request waits for its end.
inline constexpr double kStepAloneTimes = 20;
inline constexpr double kStepAloneNs = 1e9;
inline constexpr uint32_t kBudgetRowsUnknown = 64;  // of the first step, and of steps until one has had more than half
inline constexpr uint32_t kBudgetRowsMax = 2048;    // chosen rows; more gives no more throughput, only latency
inline constexpr uint32_t kBudgetRowsMin = 16;      // prompts move on by at least so many rows a step
// A step's rows are a multiple of this where a chosen budget ends them: kernels take rows by tiles, and the rest of a
// tile costs more a row.
inline constexpr uint32_t kBudgetRowsGrain = 16;

class StepBudget {
 public:
  // fixed_rows > 0: the user's own budget, in force whatever is measured. 0: chosen, at most rows_max. buckets: those
  // of the lane.
  StepBudget(const StepCost& prior, uint32_t fixed_rows, uint32_t rows_max, std::vector<uint32_t> buckets = {});

  // Rows that every step may have while nothing else is in it.
  uint32_t rows() const;
  // What a step may take that begins with `rows` rows and `reads` reads of sequences which decode (kStepAimBesideNs);
  // without any: what every step may.
  double target_ns(double rows, double reads) const;
  // What a step may take while nobody's next token waits (kStepAloneTimes): no less than what every step may.
  double alone_ns() const;
  // Prompt rows at positions from `position` on that may join a step already holding `rows` rows and `reads` reads, for
  // it to end within `target_ns`. May be 0 only where the row limit is reached.
  uint32_t rows_beside(double rows, double reads, uint32_t position, double target_ns) const;
  // A step took so long; its padding is counted here.
  void observe(double rows, double reads, double busy_ns);
  StepCost cost() const { return cost_; }

 private:
  using Vector = std::array<double, 3>;  // of (fixed, per row, per read), in like units

  static Vector features(double rows, double reads);
  double variance(const Vector& x) const;
  double pessimistic_ns(double rows, double reads) const;
  double sure_fixed_ns() const;
  double target_ns() const;
  void bound_doubt(size_t cost, double most_ns);

  uint32_t fixed_rows_;
  uint32_t rows_max_;
  std::vector<uint32_t> buckets_;
  StepCost cost_;
  double rows_seen_ = 0;                // of the largest step so far
  std::array<Vector, 3> covariance_{};  // of the costs' errors
};

// KV positions read by `rows` rows of one sequence whose last row sees `context` positions.
inline double positions_read(uint32_t rows, uint32_t context) {
  return static_cast<double>(rows) * context - 0.5 * static_cast<double>(rows) * (rows - 1.0);
}

}  // namespace motley
