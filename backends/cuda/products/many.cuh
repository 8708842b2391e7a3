// Products of many rows: their kernel, for weights of any kind.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "cuda/boxes.hpp"
#include "cuda/products/common.cuh"
#include "cuda/warpgroup.cuh"

namespace motley::cuda {

// What many_rows works with beside a Job.
struct Crowd {
  const __nv_bfloat16* x;  // in the order of `rows_in_order`, zeros behind
  int64_t stride;
  int32_t tiles;       // of a block of threads: kBlockTiles or kWideTiles
  int32_t sharers;     // blocks of threads that share the parts of the columns
  float4* partials;    // sums of a part, if there are several
  uint32_t* counters;  // how many of these blocks have come
  const Group* groups;
  const int32_t* order;
  Choice choice;
};

// The activations of a chunk in shared memory: pieces of 64 columns, [row][128 bytes], of which each 16 lie where the
// tensor cores' reads meet no bank twice ("128-byte swizzle"). Without groups of rows they come in boxes.
constexpr int kPieceColumns = kBoxColumns, kPieceRow = kBoxRow;

// Stages of many_rows: activations, then the tiles of all warps. So many that two blocks of threads fit on a
// multiprocessor, or, if these would be too few to wait for memory with, one. (A stage of tiles is long.)
template <class Kind, int kRows, int kTiles = kBlockTiles>
struct Stages {
  static constexpr int kInputs = Kind::kColumns / kPieceColumns * kRows * kPieceRow;
  static constexpr int kBytes = kInputs + (kTiles * Kind::kShared + 1023) / 1024 * 1024;
  static constexpr int kOfTwo = (kSharedMax / 2 - (2 << 10)) / kBytes, kOfOne = (kSharedMax - (2 << 10)) / kBytes;
  static constexpr int kBlocks = kTiles == kBlockTiles && kOfTwo >= (Kind::kColumns > 128 ? 2 : 3) ? 2 : 1;
  static constexpr int kFit = kBlocks == 2 ? kOfTwo : kOfOne, kMost = kBlocks == 2 ? 4 : 5;
  static constexpr int kCount = kFit < kMost ? kFit : kMost;
  static_assert(kCount >= 2);
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Which rows a block of threads reads and writes.
struct CrowdRows {
  int source[kRowsAtOnce], target[kRowsAtOnce], count, expert;
};

template <int kRows>
__device__ void find_rows(const Job& job, const Crowd& crowd, CrowdRows& rows) {
  if (crowd.groups) {
    const Group group = crowd.groups[blockIdx.x];
    for (int r = threadIdx.x; r < kRows; r += blockDim.x) {
      const int32_t pair = group.count ? crowd.order[group.first + min(r, group.count - 1)] : 0;
      rows.source[r] = crowd.choice.own_inputs ? pair : pair / crowd.choice.top_k;
      rows.target[r] = pair;
    }
    if (threadIdx.x == 0) rows.count = group.count, rows.expert = group.expert;
    return;
  }
  const int first = blockIdx.x * kRows, all = static_cast<int>(job.rows);
  for (int r = threadIdx.x; r < kRows; r += blockDim.x) rows.target[r] = min(first + r, all - 1);
  if (threadIdx.x == 0) rows.count = min(kRows, all - first), rows.expert = 0;
}

// One instruction for each number of rows and type; `sums` and `others`: the places of its operands.
#define MOTLEY_WARPGROUP_INSTRUCTION(type, rows, sums, others, ...)                                       \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #rows "k16.f32." type "." type " {" sums "}, {" others \
               ", 1, 1, 1, 0;"                                                                            \
               : __VA_ARGS__                                                                              \
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b))
#define MOTLEY_WARPGROUP_MULTIPLY(rows, sums, others, ...)                                                    \
  template <bool f16>                                                                                         \
  __device__ void warpgroup_multiply(float(&d)[rows / 2], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, \
                                     uint64_t b) {                                                            \
    if constexpr (f16)                                                                                        \
      MOTLEY_WARPGROUP_INSTRUCTION("f16", rows, sums, others, __VA_ARGS__);                                   \
    else                                                                                                      \
      MOTLEY_WARPGROUP_INSTRUCTION("bf16", rows, sums, others, __VA_ARGS__);                                  \
  }
MOTLEY_WARPGROUP_MULTIPLY(8, "%0, %1, %2, %3", "%4, %5, %6, %7}, %8", MOTLEY_FOUR_SUMS(0))
MOTLEY_WARPGROUP_MULTIPLY(16, "%0, %1, %2, %3, %4, %5, %6, %7", "%8, %9, %10, %11}, %12", MOTLEY_FOUR_SUMS(0),
                          MOTLEY_FOUR_SUMS(4))
MOTLEY_WARPGROUP_MULTIPLY(32, "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15",
                          "%16, %17, %18, %19}, %20", MOTLEY_FOUR_SUMS(0), MOTLEY_FOUR_SUMS(4), MOTLEY_FOUR_SUMS(8),
                          MOTLEY_FOUR_SUMS(12))
MOTLEY_WARPGROUP_MULTIPLY(64,
                          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31",
                          "%32, %33, %34, %35}, %36", MOTLEY_FOUR_SUMS(0), MOTLEY_FOUR_SUMS(4), MOTLEY_FOUR_SUMS(8),
                          MOTLEY_FOUR_SUMS(12), MOTLEY_FOUR_SUMS(16), MOTLEY_FOUR_SUMS(20), MOTLEY_FOUR_SUMS(24),
                          MOTLEY_FOUR_SUMS(28))
#undef MOTLEY_WARPGROUP_MULTIPLY
#undef MOTLEY_WARPGROUP_INSTRUCTION

template <class Kind, int kEights>
__device__ void take_chunk_of_many(const typename Kind::Chunk& chunk, const uint8_t* x, const Lane& lane,
                                   float (&sums)[4 * kEights]) {
  const uint64_t pieces = describe_pieces(shared_address(x));
  const auto take = [&]<int s>(const Operand& a) {
    const uint64_t at = pieces + static_cast<uint64_t>((s / 2 * 8 * kEights * kPieceRow + s % 2 * 64) >> 4);
    begin_products();
    warpgroup_multiply<Kind::kF16>(sums, a.low.x, a.high.x, a.low.y, a.high.y, at);
    warpgroup_multiply<Kind::kF16>(sums, a.low.z, a.high.z, a.low.w, a.high.w, at + 2);
    close_products();
    wait_for_products<(s + 1 < Kind::kSteps)>();
  };
  [&]<int... s>(std::integer_sequence<int, s...>) {
    (take.template operator()<s>(Kind::template step<s>(chunk, lane)), ...);
  }
  (std::make_integer_sequence<int, Kind::kSteps>());
}

// Barriers of the stages of activations: `full` ones of what has come, `empty` ones of the warps that have taken it.
template <int kCount>
struct StageBarriers {
  uint64_t full[kCount], empty[kCount];
};

template <int kCount>
__device__ float4* partials_of(const Crowd& crowd, int part) {
  const int64_t place = int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
  return crowd.partials + (place * kParts + part) * (kCount / 4) * blockDim.x + threadIdx.x;
}

template <int kCount>
__device__ void keep_part(const Crowd& crowd, int part, const float (&sums)[kCount]) {
  float4* const partials = partials_of<kCount>(crowd, part);
#pragma unroll
  for (int n = 0; n < kCount; n += 4) partials[n / 4 * blockDim.x] = {sums[n], sums[n + 1], sums[n + 2], sums[n + 3]};
}

// True for the last of the blocks of threads that share the parts; `sums` is then the sum of all.
template <int kCount>
__device__ bool join_parts(const Crowd& crowd, float (&sums)[kCount]) {
  const int64_t place = int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
  __syncthreads();
  __shared__ bool last;
  if (threadIdx.x == 0) {
    __threadfence();  // of what the whole block has written, since they met
    last = atomicInc(crowd.counters + place, crowd.sharers - 1) + 1 == crowd.sharers;
    __threadfence();
  }
  __syncthreads();
  if (!last) return false;
#pragma unroll
  for (int n = 0; n < kCount; n += 4) {
    float4 sum{};
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const float4 part = __ldcg(partials_of<kCount>(crowd, i) + n / 4 * blockDim.x);
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    sums[n] = sum.x, sums[n + 1] = sum.y, sums[n + 2] = sum.z, sums[n + 3] = sum.w;
  }
  return true;
}

template <int kEights>
__device__ void put_rows(const Job& job, const CrowdRows& rows, int tile, const Lane& lane, const float* sums) {
  const Product& p = product_of(job, tile);
  const int weight_row = (tile - p.first) * kTileRows + lane.row;
#pragma unroll
  for (int i = 0; i < 4 * kEights; ++i) {
    const int r = i / 4 * 8 + 2 * lane.part + i % 2, w = weight_row + i % 4 / 2 * 8;
    if (r >= rows.count) continue;
    if (rows.expert >= 0)
      put(p, rows.target[r], w, sums[i], int64_t{rows.expert} * p.width);
    else if (w < p.width)
      store_one(p.bf16, p.out, int64_t{rows.target[r]} * p.width + w, 0);
  }
}

// A warp, which multiplies its tile of weights by the activations of the block of threads.
template <class Kind, int kEights, int kTiles>
struct Multiplier {
  static constexpr int kRows = 8 * kEights, kRuns = Kind::kColumns / 8;
  using S = Stages<Kind, kRows, kTiles>;
  const Job& job;
  const Crowd& crowd;
  const CrowdRows& rows;
  const CUtensorMap* boxes;  // of the activations
  const Lane& lane;
  uint8_t* staged;
  StageBarriers<S::kCount>& barriers;
  int first, end;  // chunks
  typename Kind::Cursor cursor;

  __device__ uint8_t* stage(int chunk) const { return staged + (chunk - first) % S::kCount * S::kBytes; }
  __device__ uint8_t* own(int chunk) const { return stage(chunk) + S::kInputs + threadIdx.x / kWarp * Kind::kShared; }
  __device__ void copy_weights(int chunk) {
    if (chunk < end) Kind::copy(own(chunk), cursor, chunk, lane);
  }
  __device__ void first_weights(int64_t expert_offset) {
    cursor = cursor_of<Kind>(job, expert_offset, blockIdx.y * kTiles + threadIdx.x / kWarp, lane);
    for (int c = first; c < first + S::kCount - 1; ++c) {
      copy_weights(c);
      if (!crowd.groups) commit_copies();
    }
  }
  // By one thread: activations in boxes, once nobody reads what was there.
  __device__ void copy_inputs(int chunk) {
    if (chunk >= end) return;
    const int i = chunk - first, slot = i % S::kCount;
    uint64_t* const full = &barriers.full[slot];
    const uint32_t to = shared_address(stage(chunk));
    if (i >= S::kCount) wait_for_phase(&barriers.empty[slot], (i / S::kCount - 1) & 1);
    arrive_expecting(full, S::kInputs);
#pragma unroll
    for (int p = 0; p < Kind::kColumns / kPieceColumns; ++p)
      copy_box(to + p * kRows * kPieceRow, boxes, chunk * Kind::kColumns + p * kPieceColumns, blockIdx.x * kRows,
               shared_address(full));
  }
  // By all threads: activations of rows that lie anywhere.
  __device__ void gather_inputs(int chunk) {
    for (int i = threadIdx.x; i < kRows * kRuns && chunk < end; i += kTiles * kWarp) {
      const int r = i / kRuns, run = i % kRuns;
      copy_async(stage(chunk) + run / 8 * kRows * kPieceRow + r * kPieceRow + (run % 8 ^ r % 8) * 16,
                 crowd.x + rows.source[r] * crowd.stride + chunk * Kind::kColumns + 8 * run);
    }
    commit_copies();
  }
  __device__ void first_inputs() {
    for (int c = first; c < first + S::kCount - 1; ++c) {
      if (crowd.groups)
        gather_inputs(c);
      else if (threadIdx.x == 0)
        copy_inputs(c);
    }
    __syncwarp();
  }
  __device__ void take(int c, float (&sums)[4 * kEights]) {
    const int next = c + S::kCount - 1, i = c - first;  // `next` comes to where the chunk before this one was
    wait_for_copies<S::kCount - 2>();
    if (crowd.groups) {
      show_copies();
      __syncthreads();
      copy_weights(next);
      gather_inputs(next);
    } else {
      __syncwarp();
      copy_weights(next);
      commit_copies();
    }
    typename Kind::Chunk now;
    Kind::load(now, own(c), lane);
    if (!crowd.groups) wait_for_phase(&barriers.full[i % S::kCount], i / S::kCount & 1);
    take_chunk_of_many<Kind, kEights>(now, stage(c), lane, sums);
    if (crowd.groups) return;
    if (lane.index == 0) arrive(&barriers.empty[i % S::kCount]);
    if (threadIdx.x == 0) copy_inputs(next);
    __syncwarp();
  }
  // True if this block of threads has the sum of all parts.
  __device__ bool add_parts(int first_part, int last_part, float (&all)[4 * kEights]) {
    int c = first;
    for (int part = first_part; part < last_part; ++part) {
      float sums[4 * kEights] = {};
      for (const int end_of_part = chunks_before<Kind>(part + 1, job.cols); c < end_of_part; ++c) take(c, sums);
      if (crowd.sharers > 1) {
        keep_part(crowd, part, sums);
        continue;
      }
#pragma unroll
      for (int i = 0; i < 4 * kEights; ++i) all[i] += sums[i];
    }
    return crowd.sharers == 1 || join_parts(crowd, all);
  }
};

#endif

// Any number of rows, 8 * kEights a block of threads, by kTiles * 16 weight rows: a warp has a tile. Weights and
// activations come through shared memory, some chunks ahead.
template <class Kind, int kEights, int kTiles>
__global__ void __launch_bounds__(kTiles* kWarp, Stages<Kind, 8 * kEights, kTiles>::kBlocks)
    many_rows(Job job, Crowd crowd, const __grid_constant__ CUtensorMap boxes) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kRows = 8 * kEights;
  using S = Stages<Kind, kRows, kTiles>;
  extern __shared__ __align__(1024) uint8_t staged[];
  __shared__ CrowdRows rows;
  __shared__ StageBarriers<S::kCount> barriers;
  const Lane lane;
  const int own_parts = kParts / crowd.sharers, first_part = blockIdx.z * own_parts, last_part = first_part + own_parts;
  const int first = chunks_before<Kind>(first_part, job.cols), end = chunks_before<Kind>(last_part, job.cols);
  Multiplier<Kind, kEights, kTiles> multiplier{job, crowd, rows, &boxes, lane, staged, barriers, first, end, {}};
  if (!crowd.groups) multiplier.first_weights(0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kCount; ++i) {
      make_barrier(&barriers.full[i], 1);
      make_barrier(&barriers.empty[i], kTiles);
    }
    barriers_made();
  }
  wait_for_previous();
  find_rows<kRows>(job, crowd, rows);
  __syncthreads();
  if (rows.count == 0) return;
  if (crowd.groups) multiplier.first_weights(max(rows.expert, 0) * job.expert_bytes);
  multiplier.first_inputs();
  float all[4 * kEights] = {};
  if (multiplier.add_parts(first_part, last_part, all))
    put_rows<kEights>(job, rows, blockIdx.y * kTiles + threadIdx.x / kWarp, lane, all);
#endif
}

}  // namespace motley::cuda
