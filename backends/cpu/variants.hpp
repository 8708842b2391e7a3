// Which kernel sets this processor and operating system can run:
//
//   name         quantised weights (int8 activations)                         BF16 weights
//   amx          as avx512-vnni; of many rows sums by TDPBSSD, the same bits  bf16 activations, TDPBF16PS
//   avx512-bf16  as avx512-vnni                                               bf16 activations, VDPBF16PS
//   avx512-vnni  VPDPBUSD, a vector of 16 rows                                f32
//   avx-vnni     VPDPBUSD, vectors of 8 rows; the bits of avx2                f32
//   avx2         pairs of products in int16                                   f32
//   portable     plain C++                                                    f32
//
// Best first; but avx512-bf16 comes after avx512-vnni on Intel's processors, whose VDPBF16PS is slow.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "cpu/kernels.hpp"

namespace motley::cpu {

// Best first; never empty (the portable set runs everywhere).
const std::vector<const KernelSet*>& variants();

}  // namespace motley::cpu
