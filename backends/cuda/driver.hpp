// Which GPUs this process may use, or why none. Finding them starts none of them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace motley::cuda {

struct Gpu {
  int ordinal = 0;  // the CUDA runtime's number
  std::string name;
  int major = 0, minor = 0;  // compute capability
  uint64_t memory_total = 0, memory_free = 0;
};

// What was seen of the driver.
struct Sight {
  std::string load_error;   // why libcuda.so.1 could not be opened; empty if it could
  int driver_version = 0;   // the newest CUDA that the driver serves, 1000 * major + 10 * minor
  int runtime_version = 0;  // what this plugin was built with
  int code = 0;             // of the count: a cudaError_t
  std::string code_text;
  std::vector<Gpu> gpus;  // all of them, also those too old
};
constexpr int kOldestMajor = 8;  // compute capability 8.0: what the PTX in this plugin asks for

// Whether code for `targets`, values of nvcc's -gencode one behind the other, runs at a compute capability: sm_XY at
// its major and later minors, sm_XYa at that one, sm_XYf at its family's, compute_XY (which the driver compiles) from
// it on, with a letter as sm_ with it.
bool has_code(std::string_view targets, int major, int minor);
// The usable ones of `sight`; *why says why there is none, or which are left out. targets: what the plugin was built
// for.
std::vector<Gpu> usable(const Sight& sight, std::string_view targets, std::string* why);
std::vector<Gpu> find_gpus(std::string* why);

}  // namespace motley::cuda
