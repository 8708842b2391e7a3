// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/kernels.hpp"
#include "motley/types.h"

namespace motley::cpu {
namespace {
namespace amx {
// The order matters.
// clang-format off
#include "simd_avx512.inc"
#include "tiles_amx.inc"
#include "kernels.inc"
#include "kernels_strips.inc"
#include "kernels_affine.inc"
#include "kernels_tiles.inc"
#include "kernels_pairs.inc"
// clang-format on
}  // namespace amx
}  // namespace

const KernelSet kAmxKernels = amx::kernel_set<amx::TileProducts>("amx");

}  // namespace motley::cpu
