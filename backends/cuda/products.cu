// EMBED and the matrix products, for every format of kit's blocks.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/launch.cuh"
#include "cuda/weight.hpp"
#include "kit/blocks.hpp"

namespace motley::cuda {

namespace {

constexpr int kRowsAtOnce = 8;  // activation rows that share a de-quantised weight
constexpr int kWarps = 8;       // of a block

const WeightView& view_of(const kit::OpCall& call) { return static_cast<const CudaWeight*>(call.weight[0])->view(); }
const float* bias_of(const kit::OpCall& call) { return call.weight[1] ? call.weight[1]->vector() : nullptr; }

// Element i of a held row.
template <class Block>
__device__ float element(const WeightView& w, const uint8_t* row, int64_t i) {
  if (w.sub_block_of) i = int64_t{w.sub_block_of[i / Block::kSubBlock]} * Block::kSubBlock + i % Block::kSubBlock;
  if constexpr (Block::kBlock > 1) {
    return Block::at(row + i / Block::kBlock * Block::kBytes, static_cast<int>(i % Block::kBlock));
  } else if constexpr (Block::kBytes == 4) {
    return reinterpret_cast<const float*>(row)[i];
  } else {
    const uint16_t bits = reinterpret_cast<const uint16_t*>(row)[i];
    return Block::kDtype == MOTLEY_F16 ? kit::blocks::f16_value(bits) : kit::blocks::bf16_value(bits);
  }
}

// A block of threads a row.
template <class Block>
__global__ void embed_rows(WeightView w, DeviceBatch batch, const int32_t* slots, float factor, float* out) {
  const int64_t r = blockIdx.x;
  const int32_t slot = batch.token_slots ? batch.token_slots[r] : -1;
  const bool from_slot = slot >= 0 && slots;
  const int32_t token = from_slot ? slots[slot] : batch.token_ids[r];
  const bool known = token >= 0 && token < w.source_rows && (slot < 0 || from_slot);
  if (!known && threadIdx.x == 0) report(batch.fault, Fault::kToken);
  const int64_t row = !known ? -1 : w.row_of ? w.row_of[token] : token;
  for (int64_t i = threadIdx.x; i < w.cols; i += blockDim.x)
    out[r * w.cols + i] = row < 0 ? 0.0f : element<Block>(w, w.data + row * w.row_bytes, i) * factor;
}

// A warp a weight row; each lane adds every 32nd product.
template <class Block>
__global__ void multiply(WeightView w, const float* bias, const float* x, int64_t rows, float* out) {
  const int lane = threadIdx.x % kWarp;
  const int64_t n = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const int64_t first = int64_t{blockIdx.y} * kRowsAtOnce;
  if (n >= w.rows) return;
  const int64_t count = min(int64_t{kRowsAtOnce}, rows - first);
  const uint8_t* row = w.data + n * w.row_bytes;
  float sum[kRowsAtOnce] = {};
  for (int64_t i = lane; i < w.cols; i += kWarp) {
    const float value = element<Block>(w, row, i);
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r)
      if (r < count) sum[r] = fmaf(value, x[(first + r) * w.cols + i], sum[r]);
  }
#pragma unroll
  for (int r = 0; r < kRowsAtOnce; ++r) {
    const float total = warp_sum(sum[r]);
    if (lane == 0 && r < count) out[(first + r) * w.rows + n] = total + (bias ? bias[n] : 0.0f);
  }
}

// A warp for each (row, choice) and weight row.
template <class Block>
__global__ void multiply_chosen(WeightView w, const float* bias, const float* x, int64_t x_width, const int32_t* ids,
                                int64_t top_k, int32_t* fault, float* out) {
  const int lane = threadIdx.x % kWarp;
  const int64_t n = int64_t{blockIdx.y} * kWarps + threadIdx.x / kWarp, pair = blockIdx.x;
  if (n >= w.rows) return;
  const int32_t expert = ids[pair];
  const bool known = expert >= 0 && expert < w.source_experts;
  if (!known && lane == 0) report(fault, Fault::kExpert);
  const int64_t held = !known ? -1 : w.expert_of ? w.expert_of[expert] : expert;
  float sum = 0;
  if (held >= 0) {
    const uint8_t* row = w.data + (held * w.rows + n) * w.row_bytes;
    const float* mine = x + pair / top_k * x_width + (x_width == w.cols ? 0 : pair % top_k * w.cols);
    for (int64_t i = lane; i < w.cols; i += kWarp) sum = fmaf(element<Block>(w, row, i), mine[i], sum);
    sum = warp_sum(sum) + (bias ? bias[held * w.rows + n] : 0.0f);
  }
  if (lane == 0) out[pair * w.rows + n] = sum;
}

unsigned row_blocks(const WeightView& w) { return static_cast<unsigned>((w.rows + kWarps - 1) / kWarps); }

}  // namespace

void embed(const kit::OpCall& call) {
  if (call.out[0].rows == 0) return;
  const CudaStream& stream = stream_of(call);
  kit::blocks::visit(call.weight[0]->format, [&]<class Block>(Block) {
    embed_rows<Block><<<static_cast<unsigned>(call.out[0].rows), kThreads, 0, stream.raw()>>>(
        view_of(call), stream.batch(), static_cast<const int32_t*>(call.in[0].data), call.op->attr.embed.scale,
        call.out[0].f32());
  });
  launched("EMBED");
}

void matmul(const kit::OpCall& call) {
  const int64_t rows = call.in[0].rows;
  if (rows == 0) return;
  const WeightView& w = view_of(call);
  const dim3 grid(row_blocks(w), static_cast<unsigned>((rows + kRowsAtOnce - 1) / kRowsAtOnce));
  kit::blocks::visit(call.weight[0]->format, [&]<class Block>(Block) {
    multiply<Block><<<grid, kWarps * kWarp, 0, stream_of(call).raw()>>>(w, bias_of(call), call.in[0].f32(), rows,
                                                                        call.out[0].f32());
  });
  launched("MATMUL");
}

void grouped_matmul(const kit::OpCall& call) {
  const int64_t top_k = call.in[1].width, pairs = call.in[0].rows * top_k;
  if (pairs == 0) return;
  const WeightView& w = view_of(call);
  const CudaStream& stream = stream_of(call);
  const dim3 grid(static_cast<unsigned>(pairs), row_blocks(w));
  kit::blocks::visit(call.weight[0]->format, [&]<class Block>(Block) {
    multiply_chosen<Block><<<grid, kWarps * kWarp, 0, stream.raw()>>>(w, bias_of(call), call.in[0].f32(),
                                                                      call.in[0].width, call.in[1].i32(), top_k,
                                                                      stream.batch().fault, call.out[0].f32());
  });
  launched("GROUPED_MATMUL");
}

}  // namespace motley::cuda
