// Matrices of numbers of two bytes as copies of boxes read them (compute capability 9.0): 64 columns of some rows, in
// shared memory [row][128 bytes] with the 128-byte swizzle, as warpgroups' instructions find them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include <cstdint>

namespace motley::cuda {

constexpr int kBoxColumns = 64;
constexpr int kBoxRow = kBoxColumns * 2;  // bytes

// Whether the driver describes matrices.
bool has_boxes();
// What a matrix must be for it.
bool is_boxed(const void* data, int64_t stride);
// Rows `stride` numbers apart; a box is of `box_rows`, and zeros where the matrix has none. Throws Error.
CUtensorMap describe_boxes(const void* data, int64_t rows, int64_t cols, int64_t stride, int box_rows);

}  // namespace motley::cuda
