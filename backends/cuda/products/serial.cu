// Products of few rows in bf16 whose sums are in one piece. A multiprocessor has one block of threads, of which some
// warps have a tile of 16 weight rows each, and ask for its columns long before they take them.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/products/barrier.cuh"
#include "cuda/products/stream.cuh"

namespace motley::cuda {

namespace {

constexpr int kSerialWarps = 8;
constexpr int kSerialThreads = kSerialWarps * kWarp;
constexpr int kChunk = 128;                          // columns
constexpr int kChunkBytes = kTileRows * kChunk * 2;  // of a tile
constexpr int kRowBytes = kChunk * 2;                // of a tile's row in a chunk
constexpr int kShared = kSharedMax - (1 << 10);      // rings and activations
constexpr int kPad = 16;                             // bytes behind a row of activations: rows meet no bank twice

int chunks_of(const Job& job) { return (job.cols + kChunk - 1) / kChunk; }
__host__ __device__ int input_stride(int chunks) { return chunks * kRowBytes + kPad; }

// Each 16 bytes of a tile's row lie where eight rows of the same column meet no bank twice.
__device__ int place_in_row(int row, int unit) { return row * kRowBytes + (unit ^ row % 8) * 16; }

__device__ void hold_bf16_row(const uint16_t* row, int cols, int columns, uint8_t* to) {
  constexpr int kAtOnce = 8, kEach = 8, kApart = kEach * kSerialThreads;  // columns
  for (int first = kEach * threadIdx.x; first < columns; first += kAtOnce * kApart) {
    uint4 v[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) v[k] = first + k * kApart < cols ? load16(row + first + k * kApart) : uint4{};
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * kApart < columns) *reinterpret_cast<uint4*>(to + 2 * (first + k * kApart)) = v[k];
  }
}

// Columns i to i + 7 of a row in f32, as bf16; rows have a multiple of eight.
__device__ uint4 eight_of(const Inputs& x, int64_t row, int i, int cols) {
  if (i >= cols) return {};
  const float4 low = four_of(x, row, i, cols), high = four_of(x, row, i + 4, cols);
  return {bf16_pair(low.x, low.y), bf16_pair(low.z, low.w), bf16_pair(high.x, high.y), bf16_pair(high.z, high.w)};
}

// The rows as bf16 in shared memory, zeros behind their columns.
__device__ void hold_inputs(const Job& job, int chunks, uint8_t* to) {
  constexpr int kAtOnce = 8, kEach = 8;  // loads, columns of a load
  const int columns = chunks * kChunk, stride = input_stride(chunks);
  if (job.x.bf16) {
    for (int r = 0; r < job.rows; ++r)
      hold_bf16_row(static_cast<const uint16_t*>(job.x.data) + int64_t{r} * job.cols, job.cols, columns,
                    to + r * stride);
    return;
  }
  for (int r = 0; r < job.rows; ++r) {
    for (int first = kEach * threadIdx.x; first < columns; first += kAtOnce * kEach * kSerialThreads) {
      uint4 v[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) v[k] = eight_of(job.x, r, first + k * kEach * kSerialThreads, job.cols);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = first + k * kEach * kSerialThreads;
        if (i < columns) *reinterpret_cast<uint4*>(to + r * stride + 2 * i) = v[k];
      }
    }
  }
}

// A warp's way through the chunks of its tiles, ahead of what it multiplies.
template <int kStages>
struct Ahead {
  const Job& job;
  const Lane& lane;
  uint8_t* ring;
  int chunks, tile, step;  // step: from tile to tile
  int chunk = 0, stage = 0;
  const uint8_t* rows = nullptr;
  int width = 0, first = 0;  // of the tile's product: weight rows, and the tile's first one

  __device__ void ask() {
    if (tile < job.tiles) {
      if (chunk == 0) {
        const Product& p = product_of(job, tile);
        rows = p.data, width = p.width, first = (tile - p.first) * kTileRows;
      }
      const int unit = lane.index % 16, column = chunk * kChunk + unit * 8;
#pragma unroll
      for (int i = 0; i < kTileRows / 2; ++i) {
        const int r = 2 * i + lane.index / 16;
        copy_async(ring + stage * kChunkBytes + place_in_row(r, unit),
                   rows + min(first + r, width - 1) * job.row_bytes + (column < job.cols ? 2 * column : 0),
                   column < job.cols);
      }
      if (++chunk == chunks) chunk = 0, tile = tile_behind(job, tile, step);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    commit_copies();
  }
};

__device__ void load_operand(uint32_t (&a)[4], const uint8_t* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared_address(from)));
}

// x: the lane's row of activations from this chunk on.
__device__ void take_chunk_in_turn(const uint8_t* tile, const uint8_t* x, const Lane& lane, float (&sum)[4]) {
  constexpr int kSteps = kChunk / 16;
  uint32_t a[kSteps][4], b[kSteps][2];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    load_operand(a[s], tile + place_in_row(lane.index % 16, 2 * s + lane.index / 16));
    b[s][0] = word_at(x + s * 32), b[s][1] = word_at(x + s * 32 + 16);
  }
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[s][0]), "r"(a[s][1]), "r"(a[s][2]), "r"(a[s][3]), "r"(b[s][0]), "r"(b[s][1]));
}

template <int kStages>
__global__ void __launch_bounds__(kSerialThreads, 1) serial_rows(const __grid_constant__ Job job, int warps) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const Lane lane;
  const int warp = threadIdx.x / kWarp, chunks = (job.cols + kChunk - 1) / kChunk;
  const int step = gridDim.x * warps, begin = warp < warps ? first_tile(job, warp * gridDim.x + blockIdx.x) : job.tiles;
  uint8_t* const ring = shared + warp * kStages * kChunkBytes;
  uint8_t* const inputs = shared + warps * kStages * kChunkBytes;
  Ahead<kStages> ahead{job, lane, ring, chunks, begin, step};
  for (int i = 0; i + 1 < kStages; ++i) ahead.ask();
  wait_for_previous();
  hold_inputs(job, chunks, inputs);
  __syncthreads();
  // A lane without a row takes another's: what comes of it is not looked at.
  const uint8_t* const x =
      inputs + min(lane.row, static_cast<int>(job.rows) - 1) * input_stride(chunks) + 4 * lane.part;
  int stage = 0;
  float held[4] = {};
  for (int tile = begin; tile < job.tiles; tile = tile_behind(job, tile, step)) {
    float sum[4] = {};
    for (int c = 0; c < chunks; ++c) {
      wait_for_copies<kStages - 2>();
      __syncwarp();
      ahead.ask();  // to where the chunk before this one was
      take_chunk_in_turn(ring + stage * kChunkBytes, x + c * kRowBytes, lane, sum);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    const Product& p = product_of(job, tile);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = 2 * lane.part + i % 2, n = (tile - p.first) * kTileRows + lane.row + i / 2 * 8;
      if (r >= job.rows || n >= p.width) continue;
      if (job.gated) {
        put_gated(job, tile >= job.tiles / 2, r, n, sum[i], held[i]);
        continue;
      }
      const int64_t at = int64_t{r} * p.width + n;
      p.out[at] = p.bias ? sum[i] + p.bias[n] : sum[i];
    }
  }
}

template <int kStages>
bool launch(const Job& job, int blocks, int warps, cudaStream_t stream) {
  const int64_t bytes = warps * kStages * kChunkBytes + job.rows * input_stride(chunks_of(job));
  if (bytes > kShared) return false;
  launch_early(serial_rows<kStages>, dim3(static_cast<unsigned>(blocks)), kSerialThreads, static_cast<int>(bytes),
               stream, job, warps);
  return true;
}

}  // namespace

int64_t serial_rows_max(const Job& job) {
  return std::min<int64_t>(kSerialRows, (kShared - kSerialWarps * 4 * kChunkBytes) / input_stride(chunks_of(job)));
}

void multiply_serially(const Job& job, cudaStream_t stream) {
  const int units = units_of(job), blocks = std::min(units, attribute(cudaDevAttrMultiProcessorCount));
  const int each = (units + blocks - 1) / blocks, turns = (each + kSerialWarps - 1) / kSerialWarps;
  const int warps = (each + turns - 1) / turns;
  if (!launch<10>(job, blocks, warps, stream) && !launch<6>(job, blocks, warps, stream))
    launch<4>(job, blocks, warps, stream);
  launched("MATMUL");
}

void prepare_serial() {
  for (const auto kernel : {serial_rows<10>, serial_rows<6>, serial_rows<4>})
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "preparing a kernel");
}

}  // namespace motley::cuda
