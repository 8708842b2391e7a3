#include "engine/bucket_rounding.hpp"

#include <algorithm>

#include "engine/step_budget.hpp"

namespace motley {
namespace {

constexpr uint32_t kStepRows = 16;       // a step of its own costs as much as so many rows
constexpr uint32_t kPaddingShareIn = 5;  // with more of the prompts left, a step may waste a fifth of its bucket

// The last bucket of at most `rows`; 0 = none.
uint32_t bucket_below(std::span<const uint32_t> buckets, uint32_t rows) {
  const auto above = std::upper_bound(buckets.begin(), buckets.end(), rows);
  return above == buckets.begin() ? 0 : *(above - 1);
}

// Whether running `rows` in one bucket costs no more than running full ones below and what then is left.
bool one_step_is_best(std::span<const uint32_t> buckets, uint32_t rows) {
  const uint32_t one = padded_rows(buckets, rows) + kStepRows;
  uint32_t several = 0;
  for (uint32_t below = bucket_below(buckets, rows); below > 0 && below < rows; below = bucket_below(buckets, rows)) {
    several += below + kStepRows;
    rows -= below;
    if (several >= one) return true;
    if (several + padded_rows(buckets, rows) + kStepRows < one) return false;
  }
  return true;
}

}  // namespace

uint32_t padded_rows(std::span<const uint32_t> buckets, uint32_t rows) {
  const auto at = std::lower_bound(buckets.begin(), buckets.end(), rows);
  return at == buckets.end() ? rows : *at;
}

uint32_t rounded_rows(std::span<const uint32_t> buckets, const RowsAsked& asked) {
  const uint32_t paid = asked.begun == 0 || asked.strict ? 0 : padded_rows(buckets, asked.begun);
  const uint32_t limit = std::max(asked.limit, paid);
  const uint32_t rows = std::min(limit, asked.wanted);
  const uint32_t up = padded_rows(buckets, rows), below = bucket_below(buckets, rows);
  if (below == rows) return rows;
  const bool pads = asked.wanted > limit ? (up - rows) * kPaddingShareIn <= up : one_step_is_best(buckets, rows);
  const uint32_t least = asked.begun + std::min(kBudgetRowsMin, rows - asked.begun);
  if (!pads && below >= least) return below;
  return asked.strict ? rows : std::min(asked.wanted, up);
}

}  // namespace motley
