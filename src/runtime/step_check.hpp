// Is a step plan within the contract? Every index a device will follow is checked here, once, before anything runs.
#pragma once

#include "base/status.hpp"
#include "engine/executor.hpp"

namespace motley {

struct StepLimits {
  uint32_t rows = 0, logit_rows = 0;  // of one step
};

// INVALID_ARGUMENT naming the field that breaks the contract of StepPlan.
Status check_step(const StepPlan& plan, const ExecutorDescription& description, const StepLimits& limits);

}  // namespace motley
