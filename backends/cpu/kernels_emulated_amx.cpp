// The AMX set of the plugin, built on SIMDe and on tiles in memory.
// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/emulated_avx512.hpp"
#include "cpu/kernels.hpp"
#include "motley/types.h"

namespace motley::cpu {
namespace {
namespace amx {
// The order matters.
// clang-format off
#include "cpu/simd_avx512.inc"
#include "tiles_emulated.inc"
#include "cpu/kernels.inc"
#include "cpu/kernels_strips.inc"
#include "cpu/kernels_affine.inc"
#include "cpu/kernels_tiles.inc"
#include "cpu/kernels_pairs.inc"
// clang-format on
}  // namespace amx
}  // namespace

extern const KernelSet kEmulatedAmxKernels;
const KernelSet kEmulatedAmxKernels = amx::kernel_set<amx::TileProducts>("amx-emulated");

}  // namespace motley::cpu
