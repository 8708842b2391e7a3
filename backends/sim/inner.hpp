// The cpu plugin that computes a simulated device's numbers: opened from the file beside this plugin's own.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "motley/backend.h"
#include "sim/spec.hpp"

namespace motley::sim {

// Its table, valid as long as the process. Throws kit::Error if cpu.so is not there or is of another ABI.
const motley_backend& inner();
motley_device_desc inner_desc();

// Calls an entry with an error to fill; a code other than OK becomes a kit::Error with its text.
void call(const std::function<motley_code(motley_error*)>& entry);

// What one core of this machine does in the cpu plugin: `gflops`, `half_rows` and `bandwidth_gb_s`; the rest is zero.
// Measured at the first call (about 0.1 s) and kept.
const Rates& measured_core();

}  // namespace motley::sim
