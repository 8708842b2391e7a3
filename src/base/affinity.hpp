// Which cores a thread runs on.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

namespace motley {

// The calling thread runs on these cores alone from now on. Best effort: of none, or of none that there are, nothing
// changes.
void run_on(std::span<const int> cores);

// Each has some, and no two the same one.
bool distinct_cores(std::span<const std::span<const int>> all);

}  // namespace motley
