// StepShape: what a step holds, for those who time steps; as a plan for an executor, and as a load for the planner.
#pragma once

#include <cstdint>

#include "engine/executor.hpp"
#include "planner/workload.hpp"

namespace motley::testing {

inline constexpr TokenId kFirstToken = 3;  // those before are special
// The KV pool of a placement's lane, for steps and loads of these tests.
inline constexpr uint32_t kKvBlockSize = 16, kKvBlocks = 1024;

// Sequences that each decode one row at `context`, and one that is at `chunk_rows` of its prompt's last rows.
struct StepShape {
  uint32_t decode_rows = 0, context = 1;
  uint32_t chunk_rows = 0, chunk_end = 0;  // positions that the chunk's last row sees
  bool draws = true;                       // the chunk's last row asks for a token
  StepLoad load() const;                   // what the planner is told of it
};

// The executor's side of it. Sequences share blocks, as what the blocks hold does not matter for how long it takes.
StepPlan step_plan(const StepShape& shape, uint64_t epoch, StepId step);

}  // namespace motley::testing
