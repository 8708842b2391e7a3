// The kernels behind stream.hpp; one source file for each kind of weight takes them (stream_*.cu).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <utility>

#include "cuda/launch.cuh"
#include "cuda/products/stream.hpp"
#include "cuda/products/tiles.cuh"

namespace motley::cuda {

constexpr int kFewThreads = kParts * kWarp;
constexpr int kManyThreads = kBlockTiles * kWarp;
constexpr int kFewShared = 100 << 10;  // bytes of activations that few_rows holds, the most
constexpr int kFewStages = 3;          // chunks of a warp in shared memory
constexpr int kFewBlocks = 3;          // of threads, on one multiprocessor
constexpr int kSharedMax = 227 << 10;  // bytes that a block of threads may have

// b: what a lane has of its row: columns as the operand's.
__device__ inline void multiply_add(float* sum, const Operand& a, const uint4& b) {
  const auto mma = [&](uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  };
  mma(a.low.x, a.high.x, a.low.y, a.high.y, b.x, b.y);
  mma(a.low.z, a.high.z, a.low.w, a.high.w, b.z, b.w);
}

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

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

__device__ inline void put(const Product& p, int64_t row, int weight_row, float sum, int64_t bias_offset) {
  if (weight_row >= p.width) return;
  if (p.bias) sum += p.bias[bias_offset + weight_row];
  const int64_t at = row * p.width + weight_row;
  if (p.residual) sum += p.residual[at];
  p.out[at] = sum;
}

__device__ inline float4 four(const float* from, int i, int cols, bool aligned) {
  if (i >= cols) return {};
  if (aligned) return *reinterpret_cast<const float4*>(from + i);
  return {from[i], i + 1 < cols ? from[i + 1] : 0.0f, i + 2 < cols ? from[i + 2] : 0.0f,
          i + 3 < cols ? from[i + 3] : 0.0f};
}

// x as bf16 in shared memory, row_bytes apart, zeros behind its columns, in the kind's order.
template <class Kind>
__device__ void stage_rows(const float* x, int rows, int cols, int columns, int row_bytes, uint8_t* to) {
  constexpr int kAtOnce = 8;
  const bool aligned = (reinterpret_cast<uintptr_t>(x) & 15) == 0 && cols % 4 == 0;
  for (int r = 0; r < rows; ++r) {
    const float* const from = x + int64_t{r} * cols;
    for (int first = 4 * threadIdx.x; first < columns; first += kAtOnce * 4 * kFewThreads) {
      float4 v[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) v[k] = four(from, first + k * 4 * kFewThreads, cols, aligned);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = first + k * 4 * kFewThreads;
        const int place = i / Kind::kColumns * Kind::kColumns + 8 * Kind::unit(i % Kind::kColumns / 8) + i % 8;
        if (i < columns)
          *reinterpret_cast<uint2*>(to + r * row_bytes + 2 * place) = {bf16_pair(v[k].x, v[k].y),
                                                                       bf16_pair(v[k].z, v[k].w)};
      }
    }
  }
}

// Rows of shared memory that a quarter of a warp reads at once lie in different banks.
__host__ __device__ constexpr int shared_row(int columns) { return (2 * columns + 127) / 128 * 128 + 64; }

template <class Kind>
__device__ void take_chunk(const typename Kind::Chunk& chunk, const uint8_t* x, bool is_row, const Lane& lane,
                           float* sum) {
  [&]<int... s>(std::integer_sequence<int, s...>) {
    (multiply_add(sum, Kind::template step<s>(chunk, lane),
                  is_row ? *reinterpret_cast<const uint4*>(x + s * 2 * kStep) : uint4{}),
     ...);
  }
  (std::make_integer_sequence<int, Kind::kSteps>());
}

// Up to kFewRows rows; with experts: one pair, blockIdx.y. A block of threads takes one tile after the other, a warp
// its part of the columns, and asks for chunks long before it takes them.
template <class Kind>
__global__ void __launch_bounds__(kFewThreads, kFewBlocks) few_rows(Job job, Choice choice) {
  extern __shared__ __align__(1024) uint8_t staged[];
  __shared__ float sums[2][kParts][kFewRows][kTileRows];  // of a tile, and of the one before
  const Lane lane;
  const int warp = threadIdx.x / kWarp, chunks = chunks_before<Kind>(kParts, job.cols);
  const int begin = chunks_before<Kind>(warp, job.cols), end = chunks_before<Kind>(warp + 1, job.cols);
  uint8_t* const ring = staged + warp * kFewStages * Kind::kShared;
  uint8_t* const inputs = staged + kParts * kFewStages * Kind::kShared;
  const int row_bytes = shared_row(chunks * Kind::kColumns);
  int next_tile = blockIdx.x, next_chunk = begin, next_stage = 0;
  int64_t row = 0, expert = 0;
  typename Kind::Cursor cursor{};
  const auto ask = [&] {
    if (begin < end && next_tile < job.tiles && expert >= 0) {
      if (next_chunk == begin) cursor = cursor_of<Kind>(job, expert * job.expert_bytes, next_tile, lane);
      Kind::copy(ring + next_stage * Kind::kShared, cursor, next_chunk, lane);
      if (++next_chunk == end) next_chunk = begin, next_tile += gridDim.x;
      next_stage = (next_stage + 1) % kFewStages;
    }
    commit_copies();
  };
  const auto ask_first = [&] {
    for (int i = 0; i + 1 < kFewStages; ++i) ask();
  };
  const float* x = job.x;
  if (choice.ids) {
    wait_for_previous();
    row = blockIdx.y;
    const int32_t id = choice.ids[row];
    const bool known = id >= 0 && id < choice.source_experts;
    if (!known && threadIdx.x == 0) report(choice.fault, Fault::kExpert);
    expert = !known ? -1 : choice.expert_of ? choice.expert_of[id] : id;
    x += (choice.own_inputs ? row : row / choice.top_k) * job.cols;
    ask_first();
  } else {
    ask_first();
    wait_for_previous();
  }
  const int rows = expert < 0 ? 0 : static_cast<int>(job.rows);
  stage_rows<Kind>(x, rows, job.cols, chunks * Kind::kColumns, row_bytes, inputs);
  __syncthreads();
  const uint8_t* const own = inputs + lane.row * row_bytes + 16 * lane.part;
  int turn = 0, stage = 0;
  for (int tile = blockIdx.x; tile < job.tiles; tile += gridDim.x, turn ^= 1) {
    float sum[4] = {};
    for (int c = begin; c < end && rows > 0; ++c) {
      wait_for_copies<kFewStages - 2>();
      __syncwarp();
      ask();  // to where the chunk before this one was
      typename Kind::Chunk now;
      Kind::load(now, ring + stage * Kind::kShared, lane);
      take_chunk<Kind>(now, own + c * Kind::kColumns * 2, lane.row < rows, lane, sum);
      stage = (stage + 1) % kFewStages;
    }
    float* const mine = &sums[turn][warp][2 * lane.part][lane.row];
    mine[0] = sum[0], mine[kTileRows] = sum[1], mine[8] = sum[2], mine[kTileRows + 8] = sum[3];
    __syncthreads();
    const Product& p = product_of(job, tile);
    const int r = threadIdx.x / kTileRows, n = threadIdx.x % kTileRows;
    if (r < kFewRows && r < job.rows) {
      float all = 0;
#pragma unroll
      for (int i = 0; i < kParts; ++i) all += sums[turn][i][r][n];
      const int weight_row = (tile - p.first) * kTileRows + n;
      if (expert >= 0)
        put(p, row + r, weight_row, all, expert * p.width);
      else if (weight_row < p.width)
        p.out[row * p.width + weight_row] = 0;
    }
  }
}

// What many_rows works with beside a Job.
struct Crowd {
  const __nv_bfloat16* x;
  int64_t stride;
  int32_t sharers;     // blocks of threads that share the parts of the columns
  float4* partials;    // sums of a part, if there are several
  uint32_t* counters;  // how many of these blocks have come
  const Group* groups;
  const int32_t* order;
  Choice choice;
};

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
  for (int r = threadIdx.x; r < kRows; r += blockDim.x) rows.source[r] = rows.target[r] = min(first + r, all - 1);
  if (threadIdx.x == 0) rows.count = min(kRows, all - first), rows.expert = 0;
}

// What copy_async wrote is seen by wgmma.
__device__ inline void arrived_for_tensor_cores() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// The activations of a chunk in shared memory: pieces of 64 columns, [row][128 bytes], of which each 16 lie where the
// tensor cores' reads meet no bank twice ("128-byte swizzle").
constexpr int kPieceColumns = 64, kPieceRow = 128;

// Stages of many_rows: activations, then the tiles of all warps. So many that two blocks of threads fit on a
// multiprocessor, or, if these would be fewer than three, one.
template <class Kind, int kRows>
struct Stages {
  static constexpr int kInputs = Kind::kColumns / kPieceColumns * kRows * kPieceRow;
  static constexpr int kBytes = kInputs + (kBlockTiles * Kind::kShared + 1023) / 1024 * 1024;
  static constexpr int kOfTwo = (kSharedMax / 2 - (2 << 10)) / kBytes, kOfOne = (kSharedMax - (2 << 10)) / kBytes;
  static constexpr int kCount = kOfTwo >= 4 ? 4 : kOfTwo == 3 ? 3 : kOfOne > 5 ? 5 : kOfOne;
  static constexpr int kBlocks = kOfTwo >= 3 ? 2 : 1;
  static_assert(kCount >= 3);
};

template <class Kind, int kRows>
__device__ void copy_chunk(const Crowd& crowd, const CrowdRows& rows, int chunk, uint8_t* to) {
  constexpr int kRuns = Kind::kColumns / 8;
  for (int i = threadIdx.x; i < kRows * kRuns; i += kManyThreads) {
    const int r = i / kRuns, run = i % kRuns;
    copy_async(to + run / 8 * kRows * kPieceRow + r * kPieceRow + (run % 8 ^ r % 8) * 16,
               crowd.x + rows.source[r] * crowd.stride + chunk * Kind::kColumns + 8 * run);
  }
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
__device__ inline void warpgroup_multiply(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                          uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, %8, 1, 1, 1, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}
__device__ inline void warpgroup_multiply(float (&d)[8], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                          uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7}, "
      "{%8, %9, %10, %11}, %12, 1, 1, 1, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}
__device__ inline void warpgroup_multiply(float (&d)[16], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                          uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "{%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}
__device__ inline void warpgroup_multiply(float (&d)[32], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                          uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}

__device__ inline void wait_for_products(int left) {
  if (left)
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
  else
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// B as the tensor cores find it: address, 1024 bytes from 8 rows to the next 8, 128-byte swizzle.
__device__ inline uint64_t describe_pieces(const uint8_t* at) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(at));
  return uint64_t{(address & 0x3ffffu) >> 4} | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

template <class Kind, int kEights>
__device__ void take_chunk_of_many(const typename Kind::Chunk& chunk, const uint8_t* x, const Lane& lane,
                                   float (&sums)[4 * kEights]) {
  const uint64_t pieces = describe_pieces(x);
  const auto take = [&](int s, const Operand& a) {
    const uint64_t at = pieces + static_cast<uint64_t>((s / 2 * 8 * kEights * kPieceRow + s % 2 * 64) >> 4);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    warpgroup_multiply(sums, a.low.x, a.high.x, a.low.y, a.high.y, at);
    warpgroup_multiply(sums, a.low.z, a.high.z, a.low.w, a.high.w, at + 2);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    wait_for_products(s + 1 < Kind::kSteps);
  };
  [&]<int... s>(std::integer_sequence<int, s...>) { (take(s, Kind::template step<s>(chunk, lane)), ...); }
  (std::make_integer_sequence<int, Kind::kSteps>());
}
#else
template <class Kind, int kEights>
__device__ void take_chunk_of_many(const typename Kind::Chunk& chunk, const uint8_t* x, const Lane& lane,
                                   float (&sums)[4 * kEights]) {
  const auto take = [&](int s, const Operand& a) {
    const uint8_t* const piece = x + s / 2 * 8 * kEights * kPieceRow + lane.row * kPieceRow + 4 * lane.part;
    const auto at = [&](int n, int run) {
      return *reinterpret_cast<const uint32_t*>(piece + n * 8 * kPieceRow + ((s % 2 * 4 + run) ^ lane.row) * 16);
    };
#pragma unroll
    for (int n = 0; n < kEights; ++n) multiply_add(&sums[4 * n], a, {at(n, 0), at(n, 1), at(n, 2), at(n, 3)});
  };
  [&]<int... s>(std::integer_sequence<int, s...>) { (take(s, Kind::template step<s>(chunk, lane)), ...); }
  (std::make_integer_sequence<int, Kind::kSteps>());
}
#endif

template <int kCount>
__device__ float4* partials_of(const Crowd& crowd, int part) {
  const int64_t place = int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
  return crowd.partials + (place * kParts + part) * (kCount / 4) * kManyThreads + threadIdx.x;
}

template <int kCount>
__device__ void keep_part(const Crowd& crowd, int part, const float (&sums)[kCount]) {
  float4* const partials = partials_of<kCount>(crowd, part);
#pragma unroll
  for (int n = 0; n < kCount; n += 4) partials[n / 4 * kManyThreads] = {sums[n], sums[n + 1], sums[n + 2], sums[n + 3]};
}

// True for the last of the blocks of threads that share the parts; `sums` is then the sum of all.
template <int kCount>
__device__ bool join_parts(const Crowd& crowd, float (&sums)[kCount]) {
  const int64_t place = int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
  __threadfence();
  __syncthreads();
  __shared__ bool last;
  if (threadIdx.x == 0) last = atomicInc(crowd.counters + place, crowd.sharers - 1) + 1 == crowd.sharers;
  __syncthreads();
  if (!last) return false;
  __threadfence();
#pragma unroll
  for (int n = 0; n < kCount; n += 4) {
    float4 sum{};
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const float4 part = __ldcg(partials_of<kCount>(crowd, i) + n / 4 * kManyThreads);
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
      p.out[int64_t{rows.target[r]} * p.width + w] = 0;
  }
}

// Any number of rows, 8 * kEights a block of threads, by 128 weight rows: a warp has a tile. Weights and activations
// come through shared memory, some chunks ahead.
template <class Kind, int kEights>
__global__ void __launch_bounds__(kManyThreads, Stages<Kind, 8 * kEights>::kBlocks) many_rows(Job job, Crowd crowd) {
  extern __shared__ __align__(1024) uint8_t staged[];
  __shared__ CrowdRows rows;
  constexpr int kRows = 8 * kEights;
  using S = Stages<Kind, kRows>;
  const Lane lane;
  const int warp = threadIdx.x / kWarp, tile = blockIdx.y * kBlockTiles + warp;
  const int own_parts = kParts / crowd.sharers, first_part = blockIdx.z * own_parts, last_part = first_part + own_parts;
  const int first = chunks_before<Kind>(first_part, job.cols), end = chunks_before<Kind>(last_part, job.cols);
  const auto stage_of = [&](int chunk) { return staged + (chunk - first) % S::kCount * S::kBytes; };
  typename Kind::Cursor cursor{};
  const auto copy_weights = [&](int chunk) {
    if (chunk < end) Kind::copy(stage_of(chunk) + S::kInputs + warp * Kind::kShared, cursor, chunk, lane);
  };
  const auto first_weights = [&](int64_t expert_offset) {
    cursor = cursor_of<Kind>(job, expert_offset, tile, lane);
    for (int c = first; c < first + S::kCount - 1; ++c) copy_weights(c);
  };
  if (!crowd.groups) first_weights(0);
  wait_for_previous();
  find_rows<kRows>(job, crowd, rows);
  __syncthreads();
  if (rows.count == 0) return;
  if (crowd.groups) first_weights(max(rows.expert, 0) * job.expert_bytes);
  const auto copy_inputs = [&](int chunk) {
    if (chunk < end) copy_chunk<Kind, kRows>(crowd, rows, chunk, stage_of(chunk));
    commit_copies();
  };
  for (int c = first; c < first + S::kCount - 1; ++c) copy_inputs(c);
  float all[4 * kEights] = {};
  int c = first;
  for (int part = first_part; part < last_part; ++part) {
    float sums[4 * kEights] = {};
    const int end_of_part = chunks_before<Kind>(part + 1, job.cols);
    for (; c < end_of_part; ++c) {
      wait_for_copies<S::kCount - 2>();
      arrived_for_tensor_cores();
      __syncthreads();
      copy_weights(c + S::kCount - 1), copy_inputs(c + S::kCount - 1);  // where the chunk before this one was
      typename Kind::Chunk now;
      Kind::load(now, stage_of(c) + S::kInputs + warp * Kind::kShared, lane);
      take_chunk_of_many<Kind, kEights>(now, stage_of(c), lane, sums);
    }
    if (crowd.sharers > 1) {
      keep_part(crowd, part, sums);
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4 * kEights; ++i) all[i] += sums[i];
  }
  if (crowd.sharers > 1 && !join_parts(crowd, all)) return;
  put_rows<kEights>(job, rows, tile, lane, all);
}

// Four columns a thread, in the order in which tensor cores meet them: the kind's units of 8 columns, of which a lane's
// first product takes 4.
template <class Kind>
__global__ void rows_in_order(const float* x, int64_t cols, int64_t stride, int64_t count, __nv_bfloat16* to) {
  wait_for_previous();
  for (int64_t i = first_item(); i < count; i += item_step()) {
    const int64_t row = i / (stride / 4);
    const int column = static_cast<int>(i % (stride / 4) * 4), in_chunk = column % Kind::kColumns;
    const float* const from = x + row * cols;
    const float4 v =
        four(from, column, static_cast<int>(cols), (reinterpret_cast<uintptr_t>(from) & 15) == 0 && column + 4 <= cols);
    const int unit = Kind::unit(in_chunk / 8);
    const int place = column - in_chunk + unit / 4 * kStep + column / 4 % 2 * 16 + unit % 4 * 2;
    __nv_bfloat16* const at = to + row * stride + place;
    *reinterpret_cast<uint32_t*>(at) = bf16_pair(v.x, v.y);
    *reinterpret_cast<uint32_t*>(at + 8) = bf16_pair(v.z, v.w);
  }
}

// ---- launching ----

inline int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "finding the GPU");
  check(cudaDeviceGetAttribute(&value, which, device), "asking for what the GPU has");
  return value;
}

template <class Kind>
int few_shared(const Job& job) {
  const int chunks = chunks_before<Kind>(kParts, job.cols);
  return shared_row(chunks * Kind::kColumns);  // a row
}

// Launches a kernel that calls wait_for_previous().
template <class... Parameters, class... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 grid, int threads, int shared, cudaStream_t stream,
                  Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared), config.stream = stream;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early, config.numAttrs = attribute(cudaDevAttrComputeCapabilityMajor) >= 9;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "starting a kernel");
}

template <class Kind>
void launch_few(const Job& job, const Choice& choice, unsigned pairs, cudaStream_t stream) {
  const int shared = kParts * kFewStages * Kind::kShared + few_shared<Kind>(job) * static_cast<int>(job.rows);
  const int room = std::max(1, std::min(kFewBlocks, kSharedMax / (shared + (10 << 10))));
  const int most = attribute(cudaDevAttrMultiProcessorCount) * room, turns = (job.tiles + most - 1) / most;
  const int blocks = (job.tiles + turns - 1) / turns;  // of equal work
  launch_early(few_rows<Kind>, dim3(static_cast<unsigned>(blocks), pairs), kFewThreads, shared, stream, job, choice);
}

template <class Kind, int kEights>
void launch_many(const Job& job, const Crowd& crowd, unsigned blocks, cudaStream_t stream) {
  const dim3 grid(blocks, static_cast<unsigned>(job.tiles / kBlockTiles), static_cast<unsigned>(crowd.sharers));
  launch_early(many_rows<Kind, kEights>, grid, kManyThreads,
               Stages<Kind, 8 * kEights>::kCount * Stages<Kind, 8 * kEights>::kBytes, stream, job, crowd);
}

template <class Kind>
void launch_many(const Job& job, const Crowd& crowd, int eights, unsigned blocks, cudaStream_t stream) {
  switch (eights) {
    case 1: return launch_many<Kind, 1>(job, crowd, blocks, stream);
    case 2: return launch_many<Kind, 2>(job, crowd, blocks, stream);
    case 4: return launch_many<Kind, 4>(job, crowd, blocks, stream);
    default: return launch_many<Kind, 8>(job, crowd, blocks, stream);
  }
}

template <class Kind>
void allow_shared() {
  const auto allow = [](auto* kernel, int bytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "preparing a kernel");
  };
  allow(few_rows<Kind>, kParts * kFewStages * Kind::kShared + kFewShared);
  [&]<int... eights>(std::integer_sequence<int, eights...>) {
    (allow(many_rows<Kind, eights>, Stages<Kind, 8 * eights>::kCount * Stages<Kind, 8 * eights>::kBytes), ...);
  }
  (std::integer_sequence<int, 1, 2, 4, 8>());
}

template <class Kind>
void launch_order(const float* x, int64_t rows, int64_t cols, int64_t stride, __nv_bfloat16* to, cudaStream_t stream) {
  const int64_t count = rows * stride / 4;
  launch_early(rows_in_order<Kind>, dim3(blocks_for(count)), kThreads, 0, stream, x, cols, stride, count, to);
}

template <class Kind>
int blocks_of(int eights) {
  switch (eights) {
    case 1: return Stages<Kind, 8>::kBlocks;
    case 2: return Stages<Kind, 16>::kBlocks;
    case 4: return Stages<Kind, 32>::kBlocks;
    default: return Stages<Kind, 64>::kBlocks;
  }
}

// The kernels of one kind of weight.
struct StreamKernels {
  int (*blocks)(int eights, bool shared);  // of many_rows, on one multiprocessor
  int (*row_shared)(const Job&);
  void (*few)(const Job&, const Choice&, unsigned pairs, cudaStream_t);
  void (*many)(const Job&, const Crowd&, int eights, unsigned blocks, cudaStream_t);
  void (*order)(const float* x, int64_t rows, int64_t cols, int64_t stride, __nv_bfloat16* to, cudaStream_t);
  void (*prepare)();
};
// Wide chunks where there are few blocks of threads.
template <class Wide, class Narrow>
struct Chosen {
  static constexpr int kFewTiles = 512;
  static void few(const Job& job, const Choice& choice, unsigned pairs, cudaStream_t stream) {
    (job.tiles <= kFewTiles ? launch_few<Wide> : launch_few<Narrow>)(job, choice, pairs, stream);
  }
  static void many(const Job& job, const Crowd& crowd, int eights, unsigned blocks, cudaStream_t stream) {
    (crowd.sharers > 1 ? launch_many<Wide> : launch_many<Narrow>)(job, crowd, eights, blocks, stream);
  }
  static int blocks(int eights, bool shared) { return (shared ? blocks_of<Wide> : blocks_of<Narrow>)(eights); }
  static void prepare() { allow_shared<Wide>(), allow_shared<Narrow>(); }
};
template <class Wide, class Narrow = Wide>
constexpr StreamKernels kernels_of() {
  using C = Chosen<Wide, Narrow>;
  return {C::blocks, few_shared<Wide>, C::few, C::many, launch_order<Wide>, C::prepare};
}
extern const StreamKernels kBf16Kernels, kQ40Kernels, kQ41Kernels, kQ80Kernels, kQ4KKernels, kQ6KKernels;

}  // namespace motley::cuda
