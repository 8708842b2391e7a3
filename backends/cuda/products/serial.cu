// Products of up to kSerialRows rows in bf16 whose sums are in one piece. A multiprocessor has one block of threads
// with so many tiles of 16 weight rows at once that all multiprocessors are busy. One warp asks for their columns,
// another for those of the activations, long before warpgroups multiply them.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/boxes.hpp"
#include "cuda/products/stream.cuh"

namespace motley::cuda {

namespace {

constexpr int kGroups = 2;                           // warpgroups that multiply
constexpr int kGroupWarps = 4;                       // each has a tile of an instruction's weight rows
constexpr int kMultiplying = kGroups * kGroupWarps;  // warps; two behind them ask for what they multiply
constexpr int kSerialThreads = (kMultiplying + 2) * kWarp;
constexpr int kTilesMost = 2 * kMultiplying;       // of a block of threads at once
constexpr int kTilePiece = kTileRows * kPieceRow;  // bytes
constexpr int kStagesMost = 16, kPiecesMost = 4;
constexpr int kStageBytes = 24 << 10;            // a stage of more is of one piece
constexpr int kShared = kSharedMax - (2 << 10);  // stages

// The matrices as the copies see them.
struct Maps {
  CUtensorMap x, w[kProductsMax];
};

// How a job is dealt to blocks of threads.
struct Deal {
  int rows;            // of activations, that there is room for
  int own, tiles;      // units of a block at once, and its tiles: with a gate a unit is two
  int together;        // tiles that are copied as one: of one product, one after the other
  int chunks, pieces;  // of the columns; pieces of a chunk
  int stages, stage;   // stage: bytes of one, activations before weights
  int blocks, turns;
  int shared;  // bytes
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// As warpgroup_multiply, with the weights in shared memory too. a, b: the lower halves of what describe_pieces says;
// the upper one is the same everywhere.
#define MOTLEY_MULTIPLY_STAGED(rows, sums, a_, b_, upper_, ...)                                         \
  __device__ inline void multiply_staged(float(&d)[rows / 2], uint32_t a, uint32_t b, uint32_t upper) { \
    asm volatile(                                                                                       \
        "{.reg .b64 a, b;\n"                                                                            \
        "mov.b64 a, {" a_ ", " upper_                                                                   \
        "};\n"                                                                                          \
        "mov.b64 b, {" b_ ", " upper_                                                                   \
        "};\n"                                                                                          \
        "wgmma.mma_async.sync.aligned.m64n" #rows "k16.f32.bf16.bf16 {" sums "}, a, b, 1, 1, 1, 0, 0;}" \
        : __VA_ARGS__                                                                                   \
        : "r"(a), "r"(b), "r"(upper));                                                                  \
  }
MOTLEY_MULTIPLY_STAGED(16, "%0, %1, %2, %3, %4, %5, %6, %7", "%8", "%9", "%10", MOTLEY_FOUR_SUMS(0),
                       MOTLEY_FOUR_SUMS(4))
MOTLEY_MULTIPLY_STAGED(32, "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15", "%16", "%17", "%18",
                       MOTLEY_FOUR_SUMS(0), MOTLEY_FOUR_SUMS(4), MOTLEY_FOUR_SUMS(8), MOTLEY_FOUR_SUMS(12))
MOTLEY_MULTIPLY_STAGED(64,
                       "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                       "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31",
                       "%32", "%33", "%34", MOTLEY_FOUR_SUMS(0), MOTLEY_FOUR_SUMS(4), MOTLEY_FOUR_SUMS(8),
                       MOTLEY_FOUR_SUMS(12), MOTLEY_FOUR_SUMS(16), MOTLEY_FOUR_SUMS(20), MOTLEY_FOUR_SUMS(24),
                       MOTLEY_FOUR_SUMS(28))
#undef MOTLEY_MULTIPLY_STAGED

using Barriers = StageBarriers<kStagesMost>;

// A block's tile in a turn, of those of the job; job.tiles and more: there is none.
__device__ int tile_of(const Job& job, const Deal& deal, int turn, int own) {
  const int unit = (turn * gridDim.x + blockIdx.x) * deal.own + own % deal.own;
  if (!job.gated) return unit;
  return unit >= job.tiles / 2 ? job.tiles : own < deal.own ? unit : unit + job.tiles / 2;
}

// The way around the stages. Addresses are in registers.
struct Round {
  const Deal& deal;
  uint32_t full, empty;
  int slot = 0;
  uint32_t parity = 0;
  __device__ Round(const Deal& of, const Barriers& barriers)
      : deal(of), full(shared_address(barriers.full)), empty(shared_address(barriers.empty)) {
    asm volatile("" : "+r"(full), "+r"(empty));
  }
  __device__ uint32_t full_now() const { return full + slot * sizeof(uint64_t); }
  __device__ uint32_t empty_at(int i) const { return empty + i * sizeof(uint64_t); }
  __device__ void wait_until_empty() const { wait_for_phase(empty_at(slot), parity ^ 1); }  // at first it is
  __device__ void go_on() {
    slot = slot + 1 == deal.stages ? 0 : slot + 1;
    if (slot == 0) parity ^= 1;
  }
};

// One warp: each of its first lanes asks for tiles that are copied together.
__device__ void ask_for_weights(const Job& job, const Maps& maps, const Deal& deal, const uint8_t* staged,
                                const Barriers& barriers) {
  const int lane = threadIdx.x % kWarp, bytes = deal.pieces * deal.tiles * kTilePiece;
  const uint32_t first = shared_address(staged) + deal.stage - bytes + lane * deal.together * kTilePiece;
  Round round(deal, barriers);
  for (int turn = 0; turn < deal.turns && lane * deal.together < deal.tiles; ++turn) {
    const int tile = tile_of(job, deal, turn, lane * deal.together);
    const Product& p = tile < job.tiles ? product_of(job, tile) : job.products[0];
    const void* const matrix = &maps.w[&p - job.products];
    const int row = tile < job.tiles ? (tile - p.first) * kTileRows : p.width;  // behind the last: zeros
    int column = 0;
    for (int c = 0; c < deal.chunks; ++c) {
      round.wait_until_empty();
      const uint32_t full = round.full_now();
      uint32_t to = first + round.slot * deal.stage;
      if (lane == 0) arrive_expecting(full, bytes);
#pragma unroll 1
      for (int i = 0; i < deal.pieces; ++i, column += kPieceColumns, to += deal.tiles * kTilePiece)
        copy_box(to, matrix, column, row, full);
      round.go_on();
    }
  }
}

// One thread.
__device__ void ask_for_inputs(const Maps& maps, const Deal& deal, const uint8_t* staged, const Barriers& barriers) {
  const int piece = deal.rows * kPieceRow;
  const uint32_t first = shared_address(staged);
  Round round(deal, barriers);
  for (int turn = 0; turn < deal.turns; ++turn) {
    int column = 0;
    for (int c = 0; c < deal.chunks; ++c) {
      round.wait_until_empty();
      const uint32_t full = round.full_now();
      uint32_t to = first + round.slot * deal.stage;
      arrive_expecting(full, deal.pieces * piece);
#pragma unroll 1
      for (int i = 0; i < deal.pieces; ++i, column += kPieceColumns, to += piece)
        copy_box(to, &maps.x, column, 0, full);
      round.go_on();
    }
  }
}

// Called, and not in place everywhere: what a kernel does once should not be long to load.
__device__ __noinline__ float gated_value(int gate, float first, float second) {
  return gate == 0 ? silu_times(first, second) : silu_times(second, first);
}

// f(row, weight row of the product, i) for each sum of a lane that there is.
template <int kCount, class F>
__device__ void each_sum(int64_t rows, int first_row, int width, const Lane& lane, F&& f) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int n = first_row + lane.row + 8 * half;
    if (n >= width) return;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const int r = i / 2 * 8 + 2 * lane.part + i % 2;
      if (r < rows) f(r, n, i / 2 * 4 + 2 * half + i % 2);
    }
  }
}

// Sums of a tile: the warp's, in an instruction.
template <int kCount>
__device__ void put_tile(const Job& job, int tile, const Lane& lane, const float (&sums)[kCount]) {
  if (tile >= job.tiles) return;
  const Product& p = product_of(job, tile);
  const bool biased = p.bias;
  each_sum<kCount>(job.rows, (tile - p.first) * kTileRows, p.width, lane, [&](int r, int n, int i) {
    store_one(p.bf16, p.out, int64_t{r} * p.width + n, biased ? sums[i] + p.bias[n] : sums[i]);
  });
}
template <int kCount>
__device__ void put_gated_tiles(const Job& job, int tile, const Lane& lane, const float (&first)[kCount],
                                const float (&second)[kCount]) {
  if (tile >= job.tiles) return;
  const Product &a = job.products[0], &b = job.products[1];
  const bool of_a = a.bias, of_b = b.bias;
  each_sum<kCount>(job.rows, tile * kTileRows, a.width, lane, [&](int r, int n, int i) {
    const float value = gated_value(job.gate, as_stored(a.bf16, of_a ? first[i] + a.bias[n] : first[i]),
                                    as_stored(b.bf16, of_b ? second[i] + b.bias[n] : second[i]));
    store_one(job.gated_as, job.gated, int64_t{r} * a.width + n, value);
  });
}

// A number that all threads of a warp have, in a register of the warp.
__device__ int of_warp(int x) { return __shfl_sync(0xffffffffu, x, 0); }

// A warpgroup that multiplies kSlots times four tiles; with a gate the second four belong to the first.
template <int kRows, int kSlots>
__device__ void multiply_tiles(const Job& job, const Deal& deal, const uint8_t* staged, const Barriers& barriers) {
  constexpr int kUnit = 16;  // bytes that addresses for the tensor cores count
  const Lane lane;
  const int warp = of_warp(threadIdx.x / kWarp), group = warp / kGroupWarps, own = warp % kGroupWarps;
  int first[kSlots];  // tile of the block's
#pragma unroll
  for (int s = 0; s < kSlots; ++s)
    first[s] = kGroupWarps * (job.gated ? group : kSlots * group + s) + (job.gated ? s * deal.own : 0);
  const uint64_t described = describe_pieces(shared_address(staged));
  const auto upper = static_cast<uint32_t>(described >> 32);
  Round round(deal, barriers);
  int before = -1;  // the stage that may still be read
  const auto release = [&] {
    if (before >= 0 && lane.index == 0) arrive(round.empty_at(before));
  };
  for (int turn = 0; turn < deal.turns; ++turn) {
    float sums[kSlots][kRows / 2] = {};
    for (int c = 0; c < deal.chunks; ++c) {
      wait_for_phase(round.full_now(), round.parity);
      uint32_t x = static_cast<uint32_t>(described) + round.slot * (deal.stage / kUnit);
      uint32_t w = x + deal.pieces * (kRows * kPieceRow / kUnit);
#pragma unroll 1
      for (int p = 0; p < deal.pieces; ++p) {
        begin_products();
#pragma unroll
        for (int k = 0; k < kPieceRow; k += 32) {
#pragma unroll
          for (int s = 0; s < kSlots; ++s)
            multiply_staged(sums[s], w + (first[s] * kTilePiece + k) / kUnit, x + k / kUnit, upper);
        }
        x += kRows * kPieceRow / kUnit, w += deal.tiles * (kTilePiece / kUnit);
        close_products();
      }
      wait_for_products<1>();  // all but those of the last piece
      release();
      before = round.slot;
      round.go_on();
    }
    wait_for_products<0>();
    release();
    before = -1;
    if (job.gated) {
      if constexpr (kSlots == 2)
        if (first[0] + own < deal.own)
          put_gated_tiles(job, tile_of(job, deal, turn, first[0] + own), lane, sums[0], sums[1]);
      continue;
    }
#pragma unroll
    for (int s = 0; s < kSlots; ++s)
      if (first[s] + own < deal.own) put_tile(job, tile_of(job, deal, turn, first[s] + own), lane, sums[s]);
  }
}

#endif

// Warpgroups that have tiles, of so many of an instruction each.
__host__ __device__ int groups_of(const Deal& deal, int slots, bool gated) {
  const int tiles = kGroupWarps * (gated ? 1 : slots);
  return (deal.own + tiles - 1) / tiles;
}

template <int kRows, int kSlots>
__global__ void __launch_bounds__(kSerialThreads, 1)
    serial_rows(const __grid_constant__ Job job, const __grid_constant__ Maps maps, const __grid_constant__ Deal deal) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t staged[];
  __shared__ Barriers barriers;
  const int warp = threadIdx.x / kWarp, groups = groups_of(deal, kSlots, job.gated);
  if (threadIdx.x == 0) {
    for (int i = 0; i < deal.stages; ++i) {
      make_barrier(&barriers.full[i], 2);
      make_barrier(&barriers.empty[i], groups * kGroupWarps);
    }
    barriers_made();
  }
  __syncthreads();
  if (warp == kMultiplying) return ask_for_weights(job, maps, deal, staged, barriers);
  wait_for_previous();
  if (warp / kGroupWarps < groups) multiply_tiles<kRows, kSlots>(job, deal, staged, barriers);
  if (threadIdx.x == (kMultiplying + 1) * kWarp) ask_for_inputs(maps, deal, staged, barriers);
#endif
}

int rows_for(int64_t rows) { return rows <= 16 ? 16 : rows <= 32 ? 32 : 64; }

int slots_of(const Job& job, const Deal& deal) { return job.gated || deal.tiles > kMultiplying ? 2 : 1; }

Deal deal_of(const Job& job) {
  Deal d{};
  const int units = units_of(job), most = job.gated ? kTilesMost / 2 : kTilesMost;
  const int multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  const auto shares = [](int all, int each) { return (all + each - 1) / each; };
  const int each = shares(units, multiprocessors);  // of a multiprocessor
  d.rows = rows_for(job.rows);
  d.own = shares(each, shares(each, most));
  d.tiles = job.gated ? 2 * d.own : d.own;
  d.together = job.gated || job.count == 1 || kBlockTiles % d.own == 0 ? d.own : 1;
  d.blocks = std::min(shares(units, d.own), multiprocessors);
  d.turns = shares(units, d.own * d.blocks);
  const int piece = d.rows * kPieceRow + d.tiles * kTilePiece;
  for (d.pieces = kPiecesMost; d.pieces > 1 && d.pieces * piece > kStageBytes;) d.pieces /= 2;
  d.stage = d.pieces * piece;
  d.chunks = shares(job.cols, d.pieces * kPieceColumns);
  const int slots = slots_of(job, d), groups = groups_of(d, slots, job.gated);
  // Instructions read four tiles, also where there are fewer.
  const int read = job.gated ? d.own + kGroupWarps * groups : kGroupWarps * slots * groups;
  const int behind = std::max(read - d.tiles, 0) * kTilePiece;
  d.stages = std::min(kStagesMost, (kShared - behind) / d.stage);
  d.shared = d.stages * d.stage + behind;
  return d;
}

template <int kRows, int kSlots>
void launch(const Job& job, const Maps& maps, const Deal& deal, cudaStream_t stream) {
  launch_early(serial_rows<kRows, kSlots>, dim3(static_cast<unsigned>(deal.blocks)), kSerialThreads, deal.shared,
               stream, job, maps, deal);
}

template <int kRows>
void launch(const Job& job, const Maps& maps, const Deal& deal, cudaStream_t stream) {
  (slots_of(job, deal) == 2 ? launch<kRows, 2> : launch<kRows, 1>)(job, maps, deal, stream);
}

}  // namespace

int64_t serial_rows_max(const Job& job) {
  const auto fits = [&](const void* at) { return is_boxed(at, job.cols); };
  const bool all = (job.x.stored == Stored::kF32 || fits(job.x.data)) &&
                   std::all_of(job.products, job.products + job.count, [&](const Product& p) { return fits(p.data); });
  return all ? kSerialRows : 0;
}

void multiply_serially(const Job& job, int64_t stride, cudaStream_t stream) {
  const Deal deal = deal_of(job);
  Maps maps;
  maps.x = describe_boxes(job.x.data, job.rows, job.cols, stride, deal.rows);
  for (int i = 0; i < job.count; ++i)
    maps.w[i] = describe_boxes(job.products[i].data, job.products[i].width, job.cols, job.row_bytes / 2,
                               deal.together * kTileRows);
  switch (deal.rows) {
    case 16: return launch<16>(job, maps, deal, stream);
    case 32: return launch<32>(job, maps, deal, stream);
    default: return launch<64>(job, maps, deal, stream);
  }
}

void prepare_serial() {
  for (const auto kernel : {serial_rows<16, 1>, serial_rows<16, 2>, serial_rows<32, 1>, serial_rows<32, 2>,
                            serial_rows<64, 1>, serial_rows<64, 2>})
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "preparing a kernel");
}

}  // namespace motley::cuda
