// The kernels behind stream.hpp; one source file for each kind of weight takes them (stream_*.cu).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "cuda/products/many.cuh"

namespace motley::cuda {

__device__ inline float4 four(const float* from, int i, int cols, bool aligned) {
  if (i >= cols) return {};
  if (aligned) return *reinterpret_cast<const float4*>(from + i);
  return {from[i], i + 1 < cols ? from[i + 1] : 0.0f, i + 2 < cols ? from[i + 2] : 0.0f,
          i + 3 < cols ? from[i + 3] : 0.0f};
}

// Columns i to i + 3 of a row, which is not in tile order.
__device__ inline float4 four_of(const Inputs& x, int64_t row, int i, int cols) {
  if (x.stored != Stored::kF32) {
    if (i >= cols) return {};
    const uint2 v = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(x.data) + row * cols + i);
    return {__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16),
            __uint_as_float(v.y & 0xffff0000u)};
  }
  const float* const from = static_cast<const float*>(x.data) + row * cols;
  return four(from, i, cols, (reinterpret_cast<uintptr_t>(from) & 15) == 0 && i + 4 <= cols);
}

// Two activations as the kind's weights meet them.
template <class Kind>
__device__ uint32_t pair_for(float low, float high) {
  return Kind::kF16 ? f16_pair(low, high) : bf16_pair(low, high);
}

// The same as stage_rows(), of a row that is in bf16.
template <class Kind>
__device__ void stage_bf16_row(const uint8_t* row, int cols, int columns, uint8_t* to) {
  constexpr int kAtOnce = 8, kEach = 8, kApart = kEach * kFewThreads;  // columns
  static_assert(kApart % Kind::kColumns == 0);                         // so that they lie as far apart in any order
  for (int first = kEach * threadIdx.x; first < columns; first += kAtOnce * kApart) {
    const int in_chunk = first % Kind::kColumns, place = first - in_chunk + kEach * Kind::unit(in_chunk / kEach);
    uint4 v[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      v[k] = first + k * kApart < cols ? load16(row + 2 * (first + k * kApart)) : uint4{};
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * kApart < columns) *reinterpret_cast<uint4*>(to + 2 * (place + k * kApart)) = v[k];
  }
}

// Of a row in tile order, where a pair of each lane comes after the other.
__device__ inline void stage_ordered_row(const uint8_t* row, int cols, int columns, uint8_t* to) {
  for (int i = 8 * threadIdx.x; i < columns; i += 8 * kFewThreads) {
    const uint4 v = i < cols ? load16(row + 2 * i) : uint4{};
#pragma unroll
    for (int lane = 0; lane < 4; ++lane)
      *reinterpret_cast<uint32_t*>(to + 2 * (i / kStep * kStep + 8 * lane + i % kStep / 4)) = word_of(v, lane);
  }
}

// Rows from `row` on as the weights are in shared memory, row_bytes apart, zeros behind their columns, in the kind's
// order.
template <class Kind>
__device__ void stage_rows(const Inputs& x, int64_t row, int rows, int cols, int columns, int row_bytes, uint8_t* to) {
  constexpr int kAtOnce = 8;
  if (x.stored != Stored::kF32 && !Kind::kF16) {
    for (int r = 0; r < rows; ++r) {
      const uint8_t* const from = static_cast<const uint8_t*>(x.data) + (row + r) * cols * 2;
      if (x.stored == Stored::kTileOrder)
        stage_ordered_row(from, cols, columns, to + r * row_bytes);
      else
        stage_bf16_row<Kind>(from, cols, columns, to + r * row_bytes);
    }
    return;
  }
  for (int r = 0; r < rows; ++r) {
    for (int first = 4 * threadIdx.x; first < columns; first += kAtOnce * 4 * kFewThreads) {
      float4 v[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) v[k] = four_of(x, row + r, first + k * 4 * kFewThreads, cols);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = first + k * 4 * kFewThreads;
        const int place = i / Kind::kColumns * Kind::kColumns + 8 * Kind::unit(i % Kind::kColumns / 8) + i % 8;
        if (i < columns)
          *reinterpret_cast<uint2*>(to + r * row_bytes + 2 * place) = {pair_for<Kind>(v[k].x, v[k].y),
                                                                       pair_for<Kind>(v[k].z, v[k].w)};
      }
    }
  }
}

// Rows of shared memory that a quarter of a warp reads at once lie in different banks.
__host__ __device__ constexpr int shared_row(int columns) { return (2 * columns + 127) / 128 * 128 + 64; }

template <class Kind>
__device__ void take_chunk(const typename Kind::Chunk& chunk, const uint8_t* x, const Lane& lane, float* sum) {
  [&]<int... s>(std::integer_sequence<int, s...>) {
    (multiply_add<Kind::kF16>(sum, Kind::template step<s>(chunk, lane),
                              *reinterpret_cast<const uint4*>(x + s * 2 * kStep)),
     ...);
  }
  (std::make_integer_sequence<int, Kind::kSteps>());
}

// The sum of a tile's n-th weight row. expert: that it is of, below 0 for zeros.
__device__ inline void put_few(const Job& job, int tile, int64_t row, int n, float sum, int64_t expert, float& held) {
  const Product& p = product_of(job, tile);
  const int weight_row = (tile - p.first) * kTileRows + n;
  if (job.gated)
    put_gated(job, tile >= job.tiles / 2, row, weight_row, sum, held);
  else if (expert >= 0)
    put(p, row, weight_row, sum, expert * p.width);
  else if (weight_row < p.width)
    store_one(p.bf16, p.out, row * p.width + weight_row, 0);
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
      if (++next_chunk == end) next_chunk = begin, next_tile = tile_behind(job, next_tile, gridDim.x);
      next_stage = (next_stage + 1) % kFewStages;
    }
    commit_copies();
  };
  const auto ask_first = [&] {
    for (int i = 0; i + 1 < kFewStages; ++i) ask();
  };
  int64_t input = 0;
  if (choice.ids) {
    wait_for_previous();
    row = blockIdx.y;
    const int32_t id = choice.ids[row];
    const bool known = id >= 0 && id < choice.source_experts;
    if (!known && threadIdx.x == 0) report(choice.fault, Fault::kExpert);
    expert = !known ? -1 : choice.expert_of ? choice.expert_of[id] : id;
    input = choice.own_inputs ? row : row / choice.top_k;
    ask_first();
  } else {
    ask_first();
    wait_for_previous();
  }
  const int rows = expert < 0 ? 0 : static_cast<int>(job.rows);
  stage_rows<Kind>(job.x, input, rows, job.cols, chunks * Kind::kColumns, row_bytes, inputs);
  __syncthreads();
  // A lane without a row takes another's: what comes of it is not looked at.
  const uint8_t* const own = inputs + min(lane.row, max(rows - 1, 0)) * row_bytes + 16 * lane.part;
  int turn = 0, stage = 0;
  float held = 0;
  for (int tile = blockIdx.x; tile < job.tiles; tile = tile_behind(job, tile, gridDim.x), turn ^= 1) {
    float sum[4] = {};
    for (int c = begin; c < end && rows > 0; ++c) {
      wait_for_copies<kFewStages - 2>();
      __syncwarp();
      ask();  // to where the chunk before this one was
      typename Kind::Chunk now;
      Kind::load(now, ring + stage * Kind::kShared, lane);
      take_chunk<Kind>(now, own + c * Kind::kColumns * 2, lane, sum);
      stage = (stage + 1) % kFewStages;
    }
    float* const mine = &sums[turn][warp][2 * lane.part][lane.row];
    mine[0] = sum[0], mine[kTileRows] = sum[1], mine[8] = sum[2], mine[kTileRows + 8] = sum[3];
    __syncthreads();
    const int r = threadIdx.x / kTileRows, n = threadIdx.x % kTileRows;
    if (r < kFewRows && r < job.rows) {
      float all = 0;
#pragma unroll
      for (int i = 0; i < kParts; ++i) all += sums[turn][i][r][n];
      put_few(job, tile, row + r, n, all, expert, held);
    }
  }
}

// Where a column comes in the order in which tensor cores meet them: the kind's units of 8 columns, of which a lane's
// first product takes 4.
template <class Kind>
__host__ __device__ constexpr int place_of(int column) {
  const int in_chunk = column % Kind::kColumns, unit = Kind::unit(in_chunk / 8);
  return column - in_chunk + unit / 4 * kStep + column / 4 % 2 * 16 + column / 2 % 2 * 8 + unit % 4 * 2 + column % 2;
}
// Whether that is tile order, as it must be of tiles.
template <class Kind>
constexpr bool is_tile_order() {
  for (int i = 0; i < kOrdered; ++i)
    if (place_of<Kind>(i) != in_tile_order(i)) return false;
  return true;
}

// Four columns a thread, in that order.
template <class Kind>
__global__ void rows_in_order(Inputs x, int64_t cols, int64_t stride, int64_t count, __nv_bfloat16* to) {
  wait_for_previous();
  for (int64_t i = first_item(); i < count; i += item_step()) {
    const int64_t row = i / (stride / 4);
    const int column = static_cast<int>(i % (stride / 4) * 4);
    const float4 v = four_of(x, row, column, static_cast<int>(cols));
    const auto put = [&](int at, uint32_t pair) {
      *reinterpret_cast<uint32_t*>(to + row * stride + place_of<Kind>(at)) = pair;
    };
    put(column, pair_for<Kind>(v.x, v.y));
    put(column + 2, pair_for<Kind>(v.z, v.w));
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
  config.attrs = &early, config.numAttrs = attribute(cudaDevAttrComputeCapabilityMajor) == 9;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "starting a kernel");
}

template <class Kind>
void launch_few(const Job& job, const Choice& choice, unsigned pairs, cudaStream_t stream) {
  const int shared = kParts * kFewStages * Kind::kShared + few_shared<Kind>(job) * static_cast<int>(job.rows);
  const int room = std::max(1, std::min(kFewBlocks, kSharedMax / (shared + (10 << 10))));
  const int blocks = std::min(units_of(job), attribute(cudaDevAttrMultiProcessorCount) * room);
  launch_early(few_rows<Kind>, dim3(static_cast<unsigned>(blocks), pairs), kFewThreads, shared, stream, job, choice);
}

template <class Kind, int kEights, int kTiles = kBlockTiles>
void launch_many(const Job& job, const Crowd& crowd, unsigned blocks, cudaStream_t stream) {
  using S = Stages<Kind, 8 * kEights, kTiles>;
  const dim3 grid(blocks, static_cast<unsigned>(job.tiles / kTiles), static_cast<unsigned>(crowd.sharers));
  CUtensorMap boxes{};
  if (!crowd.groups) boxes = describe_boxes(crowd.x, job.rows, crowd.stride, crowd.stride, 8 * kEights);
  launch_early(many_rows<Kind, kEights, kTiles>, grid, kTiles * kWarp, S::kCount * S::kBytes, stream, job, crowd,
               boxes);
}

template <class Kind>
void launch_many(const Job& job, const Crowd& crowd, int eights, unsigned blocks, cudaStream_t stream) {
  if constexpr (Kind::kColumns > 128) {
    if (crowd.tiles == kWideTiles) return launch_many<Kind, 8, kWideTiles>(job, crowd, blocks, stream);
  }
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
    (allow(many_rows<Kind, eights, kBlockTiles>, Stages<Kind, 8 * eights>::kCount * Stages<Kind, 8 * eights>::kBytes),
     ...);
  }
  (std::integer_sequence<int, 1, 2, 4, 8>());
  if constexpr (Kind::kColumns > 128) {
    using S = Stages<Kind, 64, kWideTiles>;
    allow(many_rows<Kind, 8, kWideTiles>, S::kCount * S::kBytes);
  }
}

template <class Kind>
void launch_order(const Inputs& x, int64_t rows, int64_t cols, int64_t stride, __nv_bfloat16* to, cudaStream_t stream) {
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

template <class Kind>
bool built() {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, many_rows<Kind, 1, kBlockTiles>), "preparing a kernel");
  return attributes.ptxVersion >= 90;
}

// The kernels of one kind of weight.
struct StreamKernels {
  int (*blocks)(int eights, bool shared);  // of many_rows by kBlockTiles, on one multiprocessor
  bool wide;                               // has many_rows by kWideTiles, of which one block is there
  int (*row_shared)(const Job&);
  void (*few)(const Job&, const Choice&, unsigned pairs, cudaStream_t);
  void (*many)(const Job&, const Crowd&, int eights, unsigned blocks, cudaStream_t);
  void (*order)(const Inputs& x, int64_t rows, int64_t cols, int64_t stride, __nv_bfloat16* to, cudaStream_t);
  bool (*built)();  // for this GPU, and not from another one's intermediate code
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
  static_assert(Wide::kColumns != kOrdered || is_tile_order<Wide>());
  using C = Chosen<Wide, Narrow>;
  return {C::blocks, (Wide::kColumns > 128), few_shared<Wide>, C::few,
          C::many,   launch_order<Wide>,     built<Wide>,      C::prepare};
}
extern const StreamKernels kBf16Kernels, kF16Kernels, kQ40Kernels, kQ41Kernels, kQ50Kernels, kQ51Kernels, kQ80Kernels,
    kF8Kernels, kQ2KKernels, kQ3KKernels, kQ4KKernels, kQ5KKernels, kQ6KKernels, kIq4NlKernels, kIq4XsKernels,
    kMxfp4Kernels;

}  // namespace motley::cuda
