// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/kernels.hpp"
#include "motley/types.h"

namespace motley::cpu {
namespace {
namespace avx2 {
// The order matters.
// clang-format off
#include "simd_avx2.inc"
#include "dot_avx2.inc"
#include "kernels.inc"
// clang-format on
}  // namespace avx2
}  // namespace

const KernelSet kAvx2Kernels = avx2::kernel_set("avx2");

}  // namespace motley::cpu
