// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include <cstdint>

#include "cpu/kernels.hpp"
#include "motley/types.h"

namespace motley::cpu {
namespace {
namespace avx512 {
#include "kernels.inc"
#include "simd_avx512.inc"
}  // namespace avx512
}  // namespace

const KernelSet kAvx512Kernels = avx512::kernel_set("avx512-vnni");

}  // namespace motley::cpu
