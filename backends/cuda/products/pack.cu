#include "cuda/launch.cuh"
#include "cuda/products/element.cuh"
#include "cuda/products/pack.hpp"
#include "cuda/products/packed.cuh"

namespace motley::cuda {

namespace {

// A block of threads a tile.
template <class Kind>
__global__ void fill_tiles(const uint8_t* blocks, int64_t row_bytes, int64_t rows, int64_t cols, uint8_t* tiles) {
  using Block = typename Kind::Block;
  const int64_t across = gridDim.x, down = gridDim.y, expert = blockIdx.z;
  const int64_t first_row = int64_t{blockIdx.y} * kTileRows, first_column = int64_t{blockIdx.x} * Kind::kColumns;
  uint8_t* const tile = tiles + ((expert * down + blockIdx.y) * across + blockIdx.x) * Kind::kTileBytes;
  const int64_t columns = min(int64_t{Kind::kColumns}, cols - first_column);
  const int row = threadIdx.x % kTileRows;
  if (first_row + row >= rows) return;
  const uint8_t* const from = blocks + (expert * rows + first_row + row) * row_bytes;
  for (int i = threadIdx.x / kTileRows; i < columns; i += blockDim.x / kTileRows) {
    const int64_t column = first_column + i;
    const uint8_t* const block = from + column / Block::kBlock * Block::kBytes;
    const int e = static_cast<int>(column % Block::kBlock);
    Kind::put(tile, row, i, block, e);
  }
}

constexpr int kTilesAtOnce = 4;

// A warp a tile, which it turns in shared memory so that it writes whole lines.
template <class Kind, bool kOrder>
__global__ void tiles_to_bf16(WeightView w, int first_tile, int64_t first, int64_t count, __nv_bfloat16* out) {
  constexpr int kPad = 8;
  __shared__ __align__(16) __nv_bfloat16 turned[kTilesAtOnce][kTileRows][Kind::kColumns + kPad];
  const Lane lane;
  const int warp = threadIdx.x / kWarp, chunk = blockIdx.x * kTilesAtOnce + warp, tile = first_tile + blockIdx.y;
  if (int64_t{chunk} * Kind::kColumns >= w.cols) return;
  typename Kind::Chunk c;
  Kind::load(c, w.data + tile * w.row_bytes + int64_t{chunk} * Kind::kTileBytes, lane);
  const auto put_eight = [&](__nv_bfloat16* row, int s, const uint4& numbers) {
    const int column = 64 * lane.part + 8 * s;  // Kind::unit
    if constexpr (kOrder) {
#pragma unroll
      for (int p = 0; p < 4; ++p)
        *reinterpret_cast<uint32_t*>(row + in_tile_order(column + 2 * p)) = word_of(numbers, p);
    } else {
      *reinterpret_cast<uint4*>(row + column) = numbers;
    }
  };
  const auto put = [&](int s, const Operand& a) {
    put_eight(turned[warp][lane.row], s, a.low), put_eight(turned[warp][lane.row + 8], s, a.high);
  };
  [&]<int... s>(std::integer_sequence<int, s...>) { (put(s, Kind::template step<s>(c, lane)), ...); }
  (std::make_integer_sequence<int, Kind::kSteps>());
  __syncwarp();
  const int64_t column = int64_t{chunk} * Kind::kColumns + 8 * lane.index;
  for (int r = 0; r < kTileRows; ++r) {
    const int64_t row = int64_t{tile} * kTileRows + r - first;
    if (row < count && column < w.cols)
      *reinterpret_cast<uint4*>(out + row * w.cols + column) = load16(&turned[warp][r][8 * lane.index]);
  }
}

template <class Block>
__global__ void blocks_to_bf16(WeightView w, int64_t first, int64_t count, __nv_bfloat16* out) {
  for (int64_t i = first_item(); i < count * w.cols; i += item_step())
    out[i] = __float2bfloat16_rn(element<Block>(w, w.data + (first + i / w.cols) * w.row_bytes, i % w.cols));
}

}  // namespace

int64_t tile_bytes(int32_t dtype) {
  int64_t bytes = 0;
  visit_packed(dtype, [&]<class Kind>(Kind) { bytes = Kind::kTileBytes; });
  return bytes;
}

void make_tiles(int32_t dtype, const uint8_t* blocks, int64_t row_bytes, int64_t rows, int64_t cols, int64_t experts,
                uint8_t* tiles) {
  const dim3 grid(static_cast<unsigned>(tiles_across(cols)), static_cast<unsigned>(tiles_down(rows)),
                  static_cast<unsigned>(experts));
  visit_packed(dtype,
               [&]<class Kind>(Kind) { fill_tiles<Kind><<<grid, kThreads>>>(blocks, row_bytes, rows, cols, tiles); });
  launched("re-laying a weight");
  check(cudaStreamSynchronize(nullptr), "re-laying a weight");
}

void to_bf16(int32_t dtype, const WeightView& w, int64_t first, int64_t count, bool ordered, void* out,
             cudaStream_t stream) {
  if (ordered && (!w.tiled || w.cols % kOrdered != 0)) kit::fail(MOTLEY_INTERNAL, "a weight has no tile order");
  auto* const to = static_cast<__nv_bfloat16*>(out);
  if (w.tiled) {
    const dim3 grid(static_cast<unsigned>((tiles_across(w.cols) + kTilesAtOnce - 1) / kTilesAtOnce),
                    static_cast<unsigned>(tiles_down(count)));
    visit_packed(dtype, [&]<class Kind>(Kind) {
      const auto kernel = ordered ? tiles_to_bf16<Kind, true> : tiles_to_bf16<Kind, false>;
      kernel<<<grid, kTilesAtOnce * kWarp, 0, stream>>>(w, static_cast<int>(first / kTileRows), first, count, to);
    });
  } else {
    kit::blocks::visit(dtype, [&]<class Block>(Block) {
      blocks_to_bf16<Block><<<blocks_for(count * w.cols), kThreads, 0, stream>>>(w, first, count, to);
    });
  }
  launched("a weight as bf16");
}

}  // namespace motley::cuda
