// Weights as the products read them: 16 rows by a chunk of columns at a time, in steps of 32 columns, each lane with
// what it gives to the tensor cores (A of mma.m16n8k16, bf16): 8 columns of rows lane / 4 and lane / 4 + 8. In which
// order a chunk's columns come is the kind's own affair, so long as activations lie in that order too (Kind::unit).
// Here the kinds whose rows are as files have them; packed.cuh has the quantised ones.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/weight.hpp"

namespace motley::cuda {

constexpr int kTileRows = 16;
constexpr int kStep = 32;  // columns that two mma take

// Where a lane finds its rows and columns.
struct Lane {
  int index = threadIdx.x % 32, row = index / 4, part = index % 4;
};

// Two rows of a lane in one step: 8 bf16 numbers of each.
struct Operand {
  uint4 low, high;
};

__device__ inline uint4 load16(const void* from) { return *static_cast<const uint4*>(from); }

// 16 bytes to shared memory, zeros if there are none.
__device__ inline void copy_async(void* to, const void* from, bool there = true) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
      "l"(from), "r"(there ? 16 : 0)
      : "memory");
}

__device__ inline uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
__device__ inline uint32_t bf16_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ inline uint32_t twice(float x) { return bf16_pair(x, x); }
// What does not fit is the largest number that does; a NaN stays one.
__device__ inline uint32_t f16_pair(float low, float high) {
  const __half2 most = __float2half2_rn(65504);
  const __half2 pair = __hmin2_nan(__hmax2_nan(__floats2half2_rn(low, high), __hneg2(most)), most);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ inline float half_value(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits & 0xffffu)));
}
__device__ inline uint32_t word_at(const uint8_t* from) { return *reinterpret_cast<const uint32_t*>(from); }
__device__ inline uint32_t word_of(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// bf16 rows as the file has them. Chunks of 64 columns suit many blocks of threads, of 128 few.
template <int chunk_columns>
struct Bf16Rows {
  static constexpr bool kF16 = false;  // tensor cores take both operands in it, else in bf16
  static constexpr int kColumns = chunk_columns, kSteps = kColumns / kStep;
  static constexpr int kPartColumns = 128;  // a part of the columns has whole ones of these
  // Where the 8 columns from 8 * i lie in the order of steps and, within one, of lane % 4.
  __host__ __device__ static constexpr int unit(int i) { return i; }
  struct Chunk {
    Operand steps[kSteps];
  };
  // Where a lane reads a tile's rows.
  struct Cursor {
    const uint8_t *low, *high;
    int columns;  // from the lane's first one on
  };
  __device__ static Cursor at(const uint8_t* data, int64_t row_bytes, int rows, int cols, int tile, const Lane& lane) {
    const int first = tile * kTileRows + lane.row;
    const uint8_t* const from = data + 16 * lane.part;
    return {from + min(first, rows - 1) * row_bytes, from + min(first + 8, rows - 1) * row_bytes, cols - 8 * lane.part};
  }
  // A chunk of a tile to shared memory, by one warp, and from there.
  static constexpr int kShared = kSteps * 2 * 32 * 16;
  __device__ static void copy(uint8_t* to, const Cursor& from, int chunk, const Lane& lane) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int column = chunk * kColumns + s * kStep;
      const bool there = column < from.columns;
      copy_async(to + (2 * s * 32 + lane.index) * 16, from.low + (there ? 2 * column : 0), there);
      copy_async(to + ((2 * s + 1) * 32 + lane.index) * 16, from.high + (there ? 2 * column : 0), there);
    }
  }
  __device__ static void load(Chunk& to, const uint8_t* from, const Lane& lane) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      to.steps[s].low = load16(from + (2 * s * 32 + lane.index) * 16);
      to.steps[s].high = load16(from + ((2 * s + 1) * 32 + lane.index) * 16);
    }
  }
  template <int s>
  __device__ static Operand step(const Chunk& c, const Lane&) {
    return c.steps[s];
  }
};

template <int chunk_columns>
struct F16Rows : Bf16Rows<chunk_columns> {
  static constexpr bool kF16 = true;
};

}  // namespace motley::cuda
