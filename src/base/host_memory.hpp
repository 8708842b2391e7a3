// Memory of this machine that can still be had.
#pragma once

#include <cstdint>
#include <string>

namespace motley {

// Bytes that the kernel says it can give without swapping, within what the process's control groups leave. 0: unknown.
// `root` stands before the kernel's files, for tests.
uint64_t host_memory_available(const std::string& root = "");

}  // namespace motley
