// SPDX-License-Identifier: Apache-2.0
#include "base/affinity.hpp"

#include <sched.h>

#include <algorithm>
#include <vector>

namespace motley {

void run_on(std::span<const int> cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores) {
    if (core >= 0 && core < CPU_SETSIZE) CPU_SET(static_cast<size_t>(core), &set);
  }
  if (CPU_COUNT(&set) > 0) sched_setaffinity(0, sizeof set, &set);
}

bool distinct_cores(std::span<const std::span<const int>> all) {
  std::vector<int> cores;
  for (const std::span<const int> some : all) {
    if (some.empty()) return false;
    cores.insert(cores.end(), some.begin(), some.end());
  }
  std::sort(cores.begin(), cores.end());
  return std::adjacent_find(cores.begin(), cores.end()) == cores.end();
}

}  // namespace motley
