// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/kernels.hpp"
#include "kit/kit.hpp"
#include "motley/types.h"

namespace motley::cpu {
namespace {
namespace portable {
// The order matters.
// clang-format off
#include "simd_portable.inc"
#include "kernels.inc"
// clang-format on
}  // namespace portable
}  // namespace

const KernelSet kPortableKernels = portable::kernel_set("portable");

}  // namespace motley::cpu
