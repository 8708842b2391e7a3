// StepTotals: what steps were made of. Values.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/executor.hpp"

namespace motley {

struct StepTotals {
  uint64_t steps = 0, rows = 0;
  uint64_t decoding = 0;                // of the rows: those that were their sequence's only one in the step
  uint64_t heads = 0;                   // rows whose logits were asked for
  uint64_t reads = 0, chunk_reads = 0;  // KV positions seen by rows that decode, and by the others
  StepTotals& operator+=(const StepTotals& other) {
    steps += other.steps, rows += other.rows, decoding += other.decoding, heads += other.heads;
    reads += other.reads, chunk_reads += other.chunk_reads;
    return *this;
  }
  bool operator==(const StepTotals&) const = default;
};

// [k] of the steps of 2^k rows and more, but fewer than 2^(k+1).
using TotalsByRows = std::vector<StepTotals>;
using TotalsByDevice = std::map<std::string, TotalsByRows>;

inline void add(const TotalsByRows& some, TotalsByRows* to) {
  if (to->size() < some.size()) to->resize(some.size());
  for (size_t k = 0; k < some.size(); ++k) (*to)[k] += some[k];
}

inline void count(const StepPlan& plan, TotalsByRows* totals) {
  const size_t k = static_cast<size_t>(std::bit_width(std::max<size_t>(plan.tokens.size(), 1))) - 1;
  if (totals->size() <= k) totals->resize(k + 1);
  StepTotals& sum = (*totals)[k];
  sum.steps += 1, sum.rows += plan.tokens.size(), sum.heads += plan.logit_rows.size();
  for (const PlanSequence& sequence : plan.sequences) {
    const bool decodes = sequence.row_count == 1;
    sum.decoding += decodes ? 1 : 0;
    // The last row sees the whole context, each before it one position less.
    (decodes ? sum.reads : sum.chunk_reads) +=
        uint64_t{sequence.row_count} * sequence.context - uint64_t{sequence.row_count} * (sequence.row_count - 1) / 2;
  }
}

}  // namespace motley
