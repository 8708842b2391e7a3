// What of this machine the process may use. Files are read below `root` ("" = the machine's own; tests give another).
// Whatever is missing or malformed there counts as no limit.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace motley::kit {

// "0-3,8" in its own order, without repetitions; nothing if it is no such list.
std::optional<std::vector<int>> parse_cpu_list(std::string_view text);

struct HostMemory {
  uint64_t total = 0, free = 0;  // bytes
};
// The machine's, or what the process's cgroups (v1, v2) leave of it. Page cache that can be dropped counts as free.
HostMemory host_memory(const std::string& root = "");

struct HostCores {
  std::vector<int> cores;  // one CPU of each physical core first, then their siblings
  uint32_t threads = 1;    // physical cores, or the cgroups' CPU quota (rounded up) if that is less
};
HostCores host_cores(const std::vector<int>& allowed, const std::string& root = "");

struct HostCaches {
  int64_t second = 0, third = 0;  // bytes of CPU 0's caches of these levels; 0: none is told
};
HostCaches host_caches(const std::string& root = "");

}  // namespace motley::kit
