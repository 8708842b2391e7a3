// How numbers lie that products alone read.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kit/kit.hpp"

namespace motley::cuda {

// f32; bf16; or bf16 in the order in which tensor cores meet the columns of quantised weights (products/packed.cuh).
enum class Stored : int32_t { kF32, kBf16, kTileOrder };

// The dtype of values in tile order, which no file has; rows are a multiple of kOrdered wide.
constexpr int32_t kTileOrderType = MOTLEY_DTYPE_COUNT;
constexpr int64_t kOrdered = 256;  // columns that keep to themselves
// So few rows of that type lie in bf16, which products of few rows put in an order of their own. Only cuBLASLt's sums,
// of prompt rows, hang on the order; they are always taken in tile order.
constexpr int64_t kPlainRows = 4;

// Where number i comes in tile order. Of 256 columns, a lane of four has 64 in a row, in eight steps of eight; its four
// pairs of a step are its share of the two products of 16 columns in which a step is taken.
constexpr int64_t in_tile_order(int64_t i) {
  const int64_t lane = i >> 6 & 3, step = i >> 3 & 7, pair = i >> 1 & 3;
  return (i & ~int64_t{kOrdered - 1}) | step << 5 | pair << 3 | lane << 1 | (i & 1);
}

inline Stored stored_as(const kit::Tensor& values) {
  if (values.dtype == kTileOrderType) return values.rows > kPlainRows ? Stored::kTileOrder : Stored::kBf16;
  return values.dtype == MOTLEY_BF16 ? Stored::kBf16 : Stored::kF32;
}

}  // namespace motley::cuda
