// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/kernels.hpp"
#include "motley/types.h"

namespace motley::cpu {
namespace {
namespace avx_vnni {
// The order matters.
// clang-format off
#include "simd_avx2.inc"
#include "dot_avx_vnni.inc"
#include "kernels.inc"
// clang-format on
}  // namespace avx_vnni
}  // namespace

const KernelSet kAvxVnniKernels = avx_vnni::kernel_set("avx-vnni");

}  // namespace motley::cpu
