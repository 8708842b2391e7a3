// PAGED_ATTENTION and ATTN_MERGE. Attention of what has no tensor cores (f32, heads of odd sizes) is here too.
// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <cfloat>
#include <cmath>

#include "cuda/attention/pool.cuh"
#include "cuda/stored.cuh"

namespace motley::cuda {

namespace {

constexpr int kTile = 128;  // positions whose weights are known together; threads of a block
constexpr int kTileWarps = kTile / kWarp;

// What a head's block of threads shares; dim floats of query and of sum lie behind it.
struct Shared {
  float weight[kTile];
  int64_t at[kTile];  // of each position: its head, as head_at counts; -1: it lies elsewhere, and is not seen
  float largest, total, shrink;
};

// The score of one position, by a warp.
__device__ float score_of(const Attention& a, const float* query, int64_t at) {
  const std::byte* key = a.layer.k + at * a.layer.dim * a.layer.element_bytes;
  float sum = 0;
  for (int64_t i = threadIdx.x % kWarp; i < a.layer.dim; i += kWarp)
    sum = fmaf(query[i], load_as(a.layer.dtype, key, i), sum);
  sum = warp_sum(sum) * (a.layer.k_scale ? a.layer.k_scale[at] : 1.0f) * a.scale;
  return a.softcap > 0 ? a.softcap * tanhf(sum / a.softcap) : sum;
}

// By one warp: scores of a tile become weights against the largest so far.
__device__ void weigh(Shared& s, int count) {
  const int lane = threadIdx.x;
  float largest = s.largest;
  for (int i = lane; i < count; i += kWarp) largest = fmaxf(largest, s.weight[i]);
  largest = warp_max(largest);
  float total = 0;
  for (int i = lane; i < count; i += kWarp) {
    s.weight[i] = largest == -INFINITY ? 0.0f : expf(s.weight[i] - largest);
    total += s.weight[i];
  }
  total = warp_sum(total);
  if (lane == 0) {
    s.shrink = s.largest == -INFINITY ? 0.0f : expf(s.largest - largest);
    s.total = s.total * s.shrink + total;
    s.largest = largest;
  }
}

// A block of threads a head of a row; tiles of positions in ascending order.
__global__ void attend(Attention a) {
  extern __shared__ float values[];
  __shared__ Shared s;
  const int64_t dim = a.layer.dim, row = blockIdx.x, head = blockIdx.y, here = row * a.heads + head;
  const int64_t kv_head = head / (a.heads / a.layer.kv_heads);
  float *query = values, *sum = values + dim;
  const int32_t* blocks = a.batch.blocks + a.batch.seq_block_begin[a.batch.row_sequence[row]];
  const int64_t position = a.batch.positions[row];
  const int64_t first = a.window > 0 ? max(int64_t{0}, position - a.window + 1) : 0;
  const auto* const q = static_cast<const float*>(a.q) + here * dim;
  for (int64_t i = threadIdx.x; i < dim; i += kTile) query[i] = q[i], sum[i] = 0;
  if (threadIdx.x == 0) {
    s.largest = a.sinks ? a.sinks[head] : -INFINITY;  // a sink takes weight and adds no value
    s.total = a.sinks && s.largest > -INFINITY ? 1.0f : 0.0f;
  }
  for (int64_t begin = first; begin <= position; begin += kTile) {
    const int count = static_cast<int>(min(int64_t{kTile}, position + 1 - begin));
    __syncthreads();
    if (threadIdx.x < count) {
      const int64_t p = begin + threadIdx.x;
      const int32_t block = blocks[p / a.layer.block_size];
      s.at[threadIdx.x] = block == MOTLEY_NONE ? -1 : a.layer.head_at(block, p % a.layer.block_size, kv_head);
    }
    __syncthreads();
    for (int i = threadIdx.x / kWarp; i < count; i += kTileWarps) {
      const float score = s.at[i] < 0 ? -INFINITY : score_of(a, query, s.at[i]);
      if (threadIdx.x % kWarp == 0) s.weight[i] = score;
    }
    __syncthreads();
    if (threadIdx.x < kWarp) weigh(s, count);
    __syncthreads();
    for (int64_t e = threadIdx.x; e < dim; e += kTile) {
      float mine = sum[e] * s.shrink;
      for (int i = 0; i < count; ++i) {
        if (s.at[i] < 0) continue;
        const float value = load_as(a.layer.dtype, a.layer.v, s.at[i] * dim + e);
        mine = fmaf(s.weight[i] * (a.layer.v_scale ? a.layer.v_scale[s.at[i]] : 1.0f), value, mine);
      }
      sum[e] = mine;
    }
  }
  __syncthreads();
  for (int64_t e = threadIdx.x; e < dim; e += kTile)
    store_one(a.stored, a.out, here * dim + e, s.total > 0 ? sum[e] / s.total : 0.0f);
  if (a.log_sum_exp && threadIdx.x == 0) a.log_sum_exp[here] = s.total > 0 ? s.largest + logf(s.total) : -INFINITY;
}

// A part without positions (log-sum-exp -inf) is not read: its content is undefined.
__global__ void merge(const float* a, const float* b, const float* lse_a, const float* lse_b, int64_t dim,
                      int64_t count, float* out, float* lse) {
  for (int64_t k = first_item(); k < count; k += item_step()) {
    const int64_t head = k / dim;
    const float largest = fmaxf(lse_a[head], lse_b[head]);
    const float wa = lse_a[head] == -INFINITY ? 0.0f : expf(lse_a[head] - largest);
    const float wb = lse_b[head] == -INFINITY ? 0.0f : expf(lse_b[head] - largest);
    const float sum = (wa > 0 ? wa * a[k] : 0.0f) + (wb > 0 ? wb * b[k] : 0.0f);
    out[k] = wa + wb > 0 ? sum / (wa + wb) : 0.0f;
    if (lse && k % dim == 0) lse[head] = wa + wb > 0 ? largest + logf(wa + wb) : -INFINITY;
  }
}

}  // namespace

namespace {

// Of a PAGED_ATTENTION's attributes and outputs.
Attention attention_of(const kit::OpCall& call, const float* q) {
  const auto& from = call.op->attr.attention;
  const AttentionShape shape{from.heads, from.kv_heads, from.head_dim};
  Attention a{};
  a.layer = layer_of(call, from.layer), a.batch = stream_of(call).batch();
  a.q = q, a.sinks = call.weight[0] ? call.weight[0]->vector() : nullptr;
  a.out = call.out[0].data, a.stored = stored_as(call.out[0]), a.log_sum_exp = static_cast<float*>(call.out[1].data);
  a.heads = from.heads, a.window = from.window, a.scale = from.scale, a.softcap = from.softcap;
  a.cap_scale = from.softcap > 0 ? from.scale / from.softcap : 0;
  a.aligned = is_aligned(a.q) && is_aligned(a.out);
  a.block_shift = std::has_single_bit(static_cast<uint32_t>(a.layer.block_size))
                      ? std::countr_zero(static_cast<uint32_t>(a.layer.block_size))
                      : -1;
  a.group = shape.group(), a.heads_of_tile = shape.heads_of_tile(), a.head_tiles = shape.head_tiles();
  if (!has_tensor_cores(a.layer)) return a;
  const AttentionItems& items = stream_of(call).attention(static_cast<const AttentionOp*>(call.op->data.get())->shape);
  a.chunks = items.chunks, a.chunk_items = items.chunk_items, a.chunks_most = items.chunks_most;
  a.passes = items.passes, a.passes_count = items.passes_count;
  a.partial = static_cast<float*>(call.out.back().data), a.arrived = stream_of(call).counters();
  return a;
}

void run(const Attention& a, const kit::OpCall& call) {
  const CudaStream& stream = stream_of(call);
  if (!has_tensor_cores(a.layer)) {
    const dim3 grid(static_cast<unsigned>(call.in[0].rows), static_cast<unsigned>(a.heads));
    attend<<<grid, kTile, 2 * static_cast<size_t>(a.layer.dim) * sizeof(float), stream.raw()>>>(a);
    launched("PAGED_ATTENTION");
    return;
  }
  if (a.passes_count > 0) attend_passes(a, stream);
  if (a.chunks) attend_chunks(a, stream);
}

}  // namespace

void paged_attention(const kit::OpCall& call) {
  if (call.in[0].rows > 0) run(attention_of(call, call.in[0].f32()), call);
}

void rope_kv_write_attention(const kit::OpCall& call) {
  if (call.in[0].rows == 0) return;
  const motley_attr& q = call.op->more_attrs[0];
  const int32_t layer = call.op->more_attrs[2].kv.layer;
  Attention a = attention_of(call, call.in[0].f32());
  a.own = {turn_of(q.rope, call.in[3]), call.in[1].f32(), call.in[2].f32(), a.batch.kv_slots};
  a.turns = has_tensor_cores(a.layer) &&
            stream_of(call).attention(static_cast<const AttentionOp*>(call.op->data.get())->shape).one_row_each &&
            can_turn(a);
  if (!a.turns) {
    void* const turned = call.out[call.out.size() - 2].data;  // has room for f32
    a.q = turned, a.packed = has_tensor_cores(a.layer);
    a.aligned = is_aligned(turned) && is_aligned(a.out);
    turn_and_write(call, q, layer, turned, a.packed ? query_dtype(a) : MOTLEY_F32);
  }
  run(a, call);
}

void attn_merge(const kit::OpCall& call) {
  const int64_t width = call.in[0].width, count = call.in[0].rows * width, dim = width / call.in[2].width;
  if (count == 0) return;
  merge<<<blocks_for(count), kThreads, 0, stream_of(call).raw()>>>(call.in[0].f32(), call.in[1].f32(), call.in[2].f32(),
                                                                   call.in[3].f32(), dim, count, call.out[0].f32(),
                                                                   static_cast<float*>(call.out[1].data));
  launched("ATTN_MERGE");
}

}  // namespace motley::cuda
