// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/kernels.hpp"
#include "motley/types.h"

namespace motley::cpu {
namespace {
namespace avx512_bf16 {
// The order matters.
// clang-format off
#include "simd_avx512.inc"
#include "kernels.inc"
#include "kernels_unpacked.inc"
#include "kernels_strips.inc"
#include "kernels_bf16.inc"
// clang-format on
}  // namespace avx512_bf16
}  // namespace

const KernelSet kAvx512Bf16Kernels = avx512_bf16::kernel_set<avx512_bf16::Bf16Products>("avx512-bf16");

}  // namespace motley::cpu
