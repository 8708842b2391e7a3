// Judges a device plugin against the contract of motley/backend.h and the reference of every op.
//
// Knows no test framework: lines go to a callback, the verdict is a value.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "motley/backend.h"

namespace motley::conformance {

struct Options {
  std::function<void(const std::string&)> line;  // receives each line of the report; may be empty
  uint32_t device = 0;
  const motley_device_desc* described = nullptr;  // a device that is not enumerated; in place of `device`
  const motley_device_desc* lost = nullptr;       // one that is lost with its second program; null: none can be named
  std::string variant;                            // "" = the device's best
  std::string only;                               // runs the groups whose name contains this; "" = all
  uint64_t seed = 1;
};

struct Report {
  uint64_t passed = 0, failed = 0;
  std::vector<std::string> failures;  // one line each, at most kFailuresMax
  std::vector<std::string> skipped;   // what the device does not claim to do
  bool ok() const { return failed == 0 && passed > 0; }
};
constexpr size_t kFailuresMax = 100;

Report run_conformance(const motley_backend& backend, const Options& options);

}  // namespace motley::conformance
