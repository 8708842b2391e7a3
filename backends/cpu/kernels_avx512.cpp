// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/kernels.hpp"
#include "motley/types.h"

namespace motley::cpu {
namespace {
namespace avx512 {
// The order matters.
// clang-format off
#include "simd_avx512.inc"
#include "kernels.inc"
#include "kernels_unpacked.inc"
// clang-format on
}  // namespace avx512
}  // namespace

const KernelSet kAvx512Kernels = avx512::kernel_set<avx512::UnpackedProducts>("avx512-vnni");

}  // namespace motley::cpu
