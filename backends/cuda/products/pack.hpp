// From a file's blocks to tiles, once, and from either to bf16 rows.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/stored.hpp"
#include "cuda/weight.hpp"

namespace motley::cuda {

// Bytes of a tile of a format that has tiles (packed.cuh), else 0.
int64_t tile_bytes(int32_t dtype);
constexpr int64_t kTileColumns = kOrdered;
constexpr int64_t tiles_down(int64_t rows) { return (rows + 15) / 16; }
constexpr int64_t tiles_across(int64_t cols) { return (cols + kTileColumns - 1) / kTileColumns; }

// `blocks`: `rows` rows of all experts as the file has them, on the GPU; `tiles` is zeroed. Enqueues on no stream.
void make_tiles(int32_t dtype, const uint8_t* blocks, int64_t row_bytes, int64_t rows, int64_t cols, int64_t experts,
                uint8_t* tiles);

// Rows [first, first + count) of expert 0 as bf16, each number rounded once; ordered: of a weight in tiles, in tile
// order. `first` is a multiple of 16.
void to_bf16(int32_t dtype, const WeightView& w, int64_t first, int64_t count, bool ordered, void* out,
             cudaStream_t stream);

}  // namespace motley::cuda
