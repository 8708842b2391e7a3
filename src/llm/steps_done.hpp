// What an executor has run, as the planner counts it.
#pragma once

#include "planner/drift.hpp"
#include "runtime/step_totals.hpp"

namespace motley {

inline StepsByRows steps_done(const TotalsByRows& totals) {
  StepsByRows done;
  for (const StepTotals& sum : totals) {
    done.push_back({static_cast<double>(sum.steps), static_cast<double>(sum.rows), static_cast<double>(sum.decoding),
                    static_cast<double>(sum.heads), static_cast<double>(sum.reads),
                    static_cast<double>(sum.chunk_reads)});
  }
  return done;
}

}  // namespace motley
