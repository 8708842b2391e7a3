// The AVX-512 set of the plugin, built on SIMDe: the same sources, run and tested on machines without AVX-512.
// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/emulated_avx512.hpp"
#include "cpu/kernels.hpp"
#include "motley/types.h"

namespace motley::cpu {
namespace {
namespace avx512 {
// The order matters.
// clang-format off
#include "cpu/simd_avx512.inc"
#include "cpu/kernels.inc"
#include "cpu/kernels_unpacked.inc"
// clang-format on
}  // namespace avx512
}  // namespace

extern const KernelSet kEmulatedAvx512Kernels;
const KernelSet kEmulatedAvx512Kernels = avx512::kernel_set<avx512::UnpackedProducts>("avx512-emulated");

}  // namespace motley::cpu
