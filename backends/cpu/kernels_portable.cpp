// SPDX-License-Identifier: Apache-2.0
#include <cstdint>

#include "cpu/kernels.hpp"
#include "kit/kit.hpp"
#include "motley/types.h"

namespace motley::cpu {
namespace {
namespace portable {
#include "kernels.inc"
#include "simd_portable.inc"
}  // namespace portable
}  // namespace

const KernelSet kPortableKernels = portable::kernel_set("portable");

}  // namespace motley::cpu
