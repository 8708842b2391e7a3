// What the kernels of stream.hpp share.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <utility>

#include "cuda/activations.cuh"
#include "cuda/launch.cuh"
#include "cuda/products/stream.hpp"
#include "cuda/products/tiles.cuh"
#include "cuda/stored.cuh"

namespace motley::cuda {

constexpr int kFewThreads = kParts * kWarp;
constexpr int kFewShared = 100 << 10;  // bytes of activations that few_rows holds, the most
constexpr int kFewStages = 3;          // chunks of a warp in shared memory
constexpr int kFewBlocks = 3;          // of threads, on one multiprocessor
constexpr int kSharedMax = 227 << 10;  // bytes that a block of threads may have

#define MOTLEY_MULTIPLY(type)                                      \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type       \
      ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])     \
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
// b: what a lane has of its row: columns as the operand's.
template <bool f16>
__device__ void multiply_add(float* sum, const Operand& a, const uint4& b) {
  const auto mma = [&](uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    if constexpr (f16)
      MOTLEY_MULTIPLY("f16");
    else
      MOTLEY_MULTIPLY("bf16");
  };
  mma(a.low.x, a.high.x, a.low.y, a.high.y, b.x, b.y);
  mma(a.low.z, a.high.z, a.low.w, a.high.w, b.z, b.w);
}
#undef MOTLEY_MULTIPLY

// A kernel may start while the one before it in the stream still runs: it may read weights, and nothing else until this
// returns. The next one may then start as well.
__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The product that has a tile.
__device__ inline const Product& product_of(const Job& job, int tile) {
  int i = 0;
  while (i + 1 < job.count && job.products[i + 1].first <= tile) ++i;
  return job.products[i];
}

// The tile behind one, of those that a taker gets: of two products with a gate, tiles that belong together come one
// after the other. job.tiles and more: there is none.
__device__ inline int tile_behind(const Job& job, int tile, int step) {
  if (!job.gated) return tile + step;
  const int half = job.tiles / 2;
  if (tile < half) return tile + half;
  return tile - half + step < half ? tile - half + step : job.tiles;
}
__device__ inline int first_tile(const Job& job, int tile) {
  return job.gated && tile >= job.tiles / 2 ? job.tiles : tile;
}
// That are taken as one.
inline int units_of(const Job& job) { return job.gated ? job.tiles / 2 : job.tiles; }

// A weight row's sum, of the first product of a gated pair and later of the second: then the result is written.
__device__ inline void put_gated(const Job& job, bool second, int64_t row, int weight_row, float sum, float& held) {
  const Product& p = job.products[second];
  if (weight_row >= p.width) return;
  if (p.bias) sum += p.bias[weight_row];
  sum = as_stored(p.bf16, sum);
  if (!second) {
    held = sum;
    return;
  }
  const float result = job.gate == 0 ? silu_times(held, sum) : silu_times(sum, held);
  store_one(job.gated_as, job.gated, row * p.width + weight_row, result);
}

// Chunks before a part of the columns.
template <class Kind>
__host__ __device__ int chunks_before(int part, int cols) {
  return (cols + Kind::kPartColumns - 1) / Kind::kPartColumns * part / kParts * (Kind::kPartColumns / Kind::kColumns);
}

template <class Kind>
__device__ typename Kind::Cursor cursor_of(const Job& job, int64_t expert_offset, int tile, const Lane& lane) {
  const Product& p = product_of(job, tile);
  const int own = min(tile - p.first, (p.width + kTileRows - 1) / kTileRows - 1);
  return Kind::at(p.data + expert_offset, job.row_bytes, p.width, job.cols, own, lane);
}

void prepare_serial();  // the kernels behind multiply_serially

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

__device__ inline void put(const Product& p, int64_t row, int weight_row, float sum, int64_t bias_offset) {
  if (weight_row >= p.width) return;
  if (p.bias) sum += p.bias[bias_offset + weight_row];
  store_one(p.bf16, p.out, row * p.width + weight_row, sum);
}

}  // namespace motley::cuda
