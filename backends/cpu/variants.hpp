// Which kernel sets this processor and operating system can run.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "cpu/kernels.hpp"

namespace motley::cpu {

// Best first; never empty (the portable set runs everywhere).
const std::vector<const KernelSet*>& variants();

}  // namespace motley::cpu
