// What goes head by head: ROPE, KV_WRITE, and both at once.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/attention/pool.cuh"
#include "cuda/stored.cuh"
#include "cuda/turn.cuh"
#include "kit/reference.hpp"

namespace motley::cuda {

namespace {

// Cosine and sine of each row's pairs.
__global__ void fill_turns(const int32_t* positions, const double* turns, int64_t pairs, double magnitude,
                           int64_t count, float2* out) {
  wait_for_earlier();
  for (int64_t k = first_item(); k < count; k += item_step()) {
    double sine, cosine;
    sincos(positions[k / pairs] * turns[k % pairs], &sine, &cosine);
    out[k] = {static_cast<float>(cosine * magnitude), static_cast<float>(sine * magnitude)};
  }
}

// A head turned, by a warp: each pair is read once.
template <class Store>
__device__ void turn_head(const Turn& turn, const float* head, int64_t row, int32_t dim, Store store) {
  const int lane = threadIdx.x % kWarp, pairs = turn.turns ? turn.pairs : 0;
#pragma unroll 4
  for (int j = lane; j < pairs; j += kWarp) {
    const int first = turn.neighbours ? 2 * j : j, second = turn.neighbours ? 2 * j + 1 : j + pairs;
    const float2 t = turn.turns[row * pairs + j];
    const float p = head[first], q = head[second];
    store(first, fmaf(p, t.x, -(q * t.y))), store(second, fmaf(p, t.y, q * t.x));
  }
  for (int i = 2 * pairs + lane; i < dim; i += kWarp) store(i, head[i]);
}

// A head into the pool, by a warp: kit's kv_store. value(i) may be asked twice.
template <class Value>
__device__ void store_head(const Layer& layer, bool keys, int64_t to, Value value) {
  const int lane = threadIdx.x % kWarp;
  std::byte* const plane = (keys ? layer.k : layer.v) + to * layer.dim * layer.element_bytes;
  if (layer.dtype != MOTLEY_I8) {
    for (int64_t i = lane; i < layer.dim; i += kWarp) store_as(layer.dtype, value(i), plane, i);
    return;
  }
  float largest = 0;
  bool finite = true;
  for (int64_t i = lane; i < layer.dim; i += kWarp) {
    const float x = value(i);
    largest = fmaxf(largest, fabsf(x));
    finite = finite && isfinite(x);
  }
  largest = warp_max(largest);
  finite = __all_sync(0xffffffffu, finite);
  if (lane == 0)
    (keys ? layer.k_scale : layer.v_scale)[to] =
        finite ? largest / 127.0f : __int_as_float(0x7fc00000) /* kit's NaN, to the bit */;
  const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
  for (int64_t i = lane; i < layer.dim; i += kWarp) {
    const float q = finite ? rintf(value(i) * inverse) : 0.0f;
    reinterpret_cast<int8_t*>(plane)[i] = static_cast<int8_t>(fminf(127.0f, fmaxf(-127.0f, q)));
  }
}

struct Heads {
  Layer layer;
  Turn turn;
  const float *q, *k, *v;  // q null: none
  void* q_out;
  int32_t q_dtype;
  const int32_t* slots;  // null: nothing is stored
  int32_t q_heads, dim;
  int64_t rows;
};

// A warp a head of q, k or v.
__global__ void each_head(const __grid_constant__ Heads a) {
  const int32_t kv_heads = a.slots ? a.layer.kv_heads : 0, heads = a.q_heads + 2 * kv_heads;
  const auto first_row = static_cast<uint32_t>(first_item()) / static_cast<uint32_t>(kWarp * heads);
  // Of the batch, which came before the program's first kernel began.
  const int32_t first_slot = a.slots && first_row < a.rows ? a.slots[first_row] : -1;
  wait_for_earlier();
  for (int64_t i = first_item() / kWarp; i < a.rows * heads; i += item_step() / kWarp) {
    const int64_t row = static_cast<uint32_t>(i) / static_cast<uint32_t>(heads);  // fewer than 2^32: see launch()
    int head = static_cast<int>(i - row * heads);
    if (head < a.q_heads) {
      const int64_t at = (row * a.q_heads + head) * a.dim;
      turn_head(a.turn, a.q + at, row, a.dim, [&](int e, float x) { store_as(a.q_dtype, x, a.q_out, at + e); });
      continue;
    }
    head -= a.q_heads;
    const int32_t slot = row == first_row ? first_slot : a.slots[row];
    if (slot < 0) continue;
    const bool keys = head < kv_heads;
    const int64_t at = row * kv_heads + head % kv_heads;
    const int64_t to = a.layer.head_at(slot / a.layer.block_size, slot % a.layer.block_size, head % kv_heads);
    const float* from = (keys ? a.k : a.v) + at * a.dim;
    if (keys && a.layer.dtype != MOTLEY_I8)
      turn_head(a.turn, from, row, a.dim,
                [&](int e, float x) { store_as(a.layer.dtype, x, a.layer.k, to * a.dim + e); });
    else if (keys)
      store_head(a.layer, true, to, [&](int64_t e) { return a.turn(from, row, e); });
    else
      store_head(a.layer, false, to, [&](int64_t e) { return from[e]; });
  }
}

// As each_head, for rows of many and heads of eights: a block of threads has a row, a thread the same eight elements
// of several heads at once, so that its turns are read once.
constexpr int kHeadsThreads = 128, kHeadsAtOnce = 3;
__global__ void __launch_bounds__(kHeadsThreads) each_row_of_heads(const __grid_constant__ Heads a) {
  wait_for_earlier(false);
  const int units = a.dim / 8, unit = static_cast<int>(threadIdx.x) % units, step = kHeadsThreads / units;
  const int kv_heads = a.slots ? a.layer.kv_heads : 0, heads = a.q_heads + 2 * kv_heads;
  const int turning = a.q_heads + kv_heads, first = static_cast<int>(threadIdx.x) / units;
  if (first >= step) return;
  const int64_t row = blockIdx.x;
  const int32_t slot = a.slots ? a.slots[row] : -1;
  const int64_t place = int64_t{slot} * kv_heads;  // of a position's first head: see head_at
  const EightOf turned(a.turn, unit, a.turn.turns != nullptr), plain(a.turn, unit, false);
  float2 t[4] = {};
  if (turned.turned) {
    const FourTurns of(a.turn, row, 4 * unit);
    for (int i = 0; i < 4; ++i) t[i] = of.of[i];
  }
  for (int begin = first; begin < heads; begin += kHeadsAtOnce * step) {
    Eight x[kHeadsAtOnce];
#pragma unroll
    for (int i = 0; i < kHeadsAtOnce; ++i) {
      const int head = begin + i * step;
      if (head >= heads) continue;
      const EightOf of = head < turning ? turned : plain;
      const float* const from = head < a.q_heads ? a.q + (row * a.q_heads + head) * a.dim
                                : head < turning ? a.k + (row * kv_heads + head - a.q_heads) * a.dim
                                                 : a.v + (row * kv_heads + head - turning) * a.dim;
      x[i] = {*reinterpret_cast<const float4*>(from + of.first), *reinterpret_cast<const float4*>(from + of.second)};
    }
#pragma unroll
    for (int i = 0; i < kHeadsAtOnce; ++i) {
      const int head = begin + i * step;
      if (head >= heads || (head >= a.q_heads && slot < 0)) continue;
      const EightOf of = head < turning ? turned : plain;
      const Eight y = of.turned ? turned_eight(x[i], t, a.turn.neighbours) : x[i];
      if (head < a.q_heads) {
        const int64_t at = (row * a.q_heads + head) * a.dim;
        store_four_as(a.q_dtype, y.a, a.q_out, at + of.first), store_four_as(a.q_dtype, y.b, a.q_out, at + of.second);
        continue;
      }
      const bool keys = head < turning;
      const int64_t at = (place + head - (keys ? a.q_heads : turning)) * a.dim;
      std::byte* const plane = keys ? a.layer.k : a.layer.v;
      store_four_as(a.layer.dtype, y.a, plane, at + of.first), store_four_as(a.layer.dtype, y.b, plane, at + of.second);
    }
  }
}

// Whether heads are of eights, and rows enough to keep the GPU busy.
bool by_rows(const Heads& a) {
  constexpr int64_t kManyRows = 256;  // fewer go faster one head a warp
  const int32_t pairs = a.turn.turns ? a.turn.pairs : 0;
  return a.rows >= kManyRows && a.rows < (int64_t{1} << 31) && a.layer.dtype != MOTLEY_I8 && a.dim % 8 == 0 &&
         a.dim / 8 <= kHeadsThreads && pairs % 4 == 0 && 2 * pairs <= a.dim && is_aligned(a.q) && is_aligned(a.q_out) &&
         is_aligned(a.k) && is_aligned(a.v) && is_aligned(a.turn.turns) && is_aligned(a.layer.k) &&
         is_aligned(a.layer.v);
}

void launch(const kit::OpCall& call, const Heads& a, const char* what) {
  if (a.rows == 0) return;
  const int64_t heads = a.q_heads + (a.slots ? 2 * a.layer.kv_heads : 0);
  if (a.rows * heads >= int64_t{1} << 32) kit::fail(MOTLEY_RESOURCE_EXHAUSTED, "%s: too many heads of rows", what);
  if (by_rows(a))
    launch_early(stream_of(call), each_row_of_heads, static_cast<unsigned>(a.rows), kHeadsThreads, 0, a);
  else
    launch_early(stream_of(call), each_head, blocks_for(a.rows * heads * kWarp, 128), 128, 0, a);
  launched(what);
}

}  // namespace

void rope_turns(const kit::OpCall& call) {
  const kit::rope_attr& a = call.op->attr.rope;
  const int64_t count = call.out[0].rows * (a.n_rot / 2);
  if (count == 0) return;
  const CudaStream& stream = stream_of(call);
  launch_early(stream, fill_turns, blocks_for(count), kThreads, 0, stream.batch().positions,
               static_cast<const DeviceBytes*>(call.op->data.get())->as<double>(), a.n_rot / 2, a.magnitude, count,
               static_cast<float2*>(call.out[0].data));
  launched("ROPE");
}

void rope(const kit::OpCall& call) {
  Heads a{};
  a.turn = turn_of(call.op->attr.rope, call.in[1]);
  a.q = call.in[0].f32(), a.q_out = call.out[0].data, a.q_dtype = MOTLEY_F32;
  a.q_heads = call.op->attr.rope.heads, a.dim = call.op->attr.rope.head_dim, a.rows = call.in[0].rows;
  launch(call, a, "ROPE");
}

void kv_write(const kit::OpCall& call) {
  Heads a{};
  a.layer = layer_of(call, call.op->attr.kv.layer), a.dim = a.layer.dim, a.rows = call.in[0].rows;
  a.k = call.in[0].f32(), a.v = call.in[1].f32(), a.slots = stream_of(call).batch().kv_slots;
  launch(call, a, "KV_WRITE");
}

void turn_and_write(const kit::OpCall& call, const motley_attr& q, int32_t layer, void* q_out, int32_t q_dtype) {
  Heads a{};
  a.layer = layer_of(call, layer), a.turn = turn_of(q.rope, call.in[3]);
  a.q = call.in[0].f32(), a.k = call.in[1].f32(), a.v = call.in[2].f32(), a.q_out = q_out, a.q_dtype = q_dtype;
  a.slots = stream_of(call).batch().kv_slots;
  a.q_heads = q.rope.heads, a.dim = q.rope.head_dim, a.rows = call.in[0].rows;
  launch(call, a, "ROPE and KV_WRITE");
}

void rope_kv_write(const kit::OpCall& call) {
  turn_and_write(call, call.op->attr, call.op->more_attrs[1].kv.layer, call.out[0].data, MOTLEY_F32);
}

}  // namespace motley::cuda
