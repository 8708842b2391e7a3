// For attention's kernels: a layer of the KV pool, its numbers as the tensor cores take them, and their instructions.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <type_traits>

#include "cuda/attention/plan.hpp"
#include "cuda/launch.cuh"
#include "cuda/stored.hpp"
#include "cuda/turn.cuh"

namespace motley::cuda {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// A layer of the pool, kPositionMajor.
struct Layer {
  std::byte *k, *v;
  float *k_scale, *v_scale;
  int32_t dtype, element_bytes, kv_heads, dim;
  int64_t block_size, positions;  // positions: of all blocks
  // The first element of a head of a position, counted in heads.
  __device__ int64_t head_at(int64_t block, int64_t within, int64_t head) const {
    return (block * block_size + within) * kv_heads + head;
  }
};

inline Layer layer_of(const kit::OpCall& call, int32_t index) {
  const kit::KvLayer& from = call.kv->layers[static_cast<size_t>(index)];
  return {from.k,
          from.v,
          from.k_scale,
          from.v_scale,
          call.kv->dtype,
          call.kv->element_bytes,
          from.kv_heads,
          from.head_dim,
          call.kv->block_size,
          int64_t{call.kv->blocks} * call.kv->block_size};
}

// Heads that attention turns, and of which it stores keys and values: of batches of one row a sequence, so that no row
// reads what another one writes.
struct OwnHeads {
  Turn turn;
  const float *k, *v;
  const int32_t* slots;
};

struct Attention {
  Layer layer;
  DeviceBatch batch;
  const void* q;
  bool packed;  // q: as the pool's numbers are multiplied (query_dtype), else it is f32
  const float* sinks;
  void* out;
  Stored stored;  // of out
  float* log_sum_exp;
  int32_t heads, window;
  float scale, softcap, cap_scale;  // cap_scale: scale / softcap
  int32_t block_shift;              // of a position to its block; -1: blocks are of no power of two
  bool aligned;                     // q and out, for four numbers at once; eight, if q is packed
  float* partial;                   // kPartialsMax * dim sums, then as many pairs of largest and total
  const ChunkItem* chunks;
  const PassItem* passes;
  const int32_t* chunk_items;  // how many
  uint32_t chunks_most;        // there are no more
  int32_t* arrived;            // a counter for each tile and its heads; zero between launches
  int32_t passes_count, group, heads_of_tile, head_tiles;
  bool turns;    // q is not turned yet, and the rows' own keys and values are not stored
  OwnHeads own;  // if so
};

// Which of its sequence's blocks has a position.
__device__ inline uint32_t block_of(const Attention& a, int32_t position) {
  const auto size = static_cast<uint32_t>(a.layer.block_size), p = static_cast<uint32_t>(position);
  return a.block_shift >= 0 ? p >> a.block_shift : p / size;
}
// Where a position lies whose block lies at `at`, in positions of the pool; -1: elsewhere, and it is not seen.
__device__ inline int32_t slot_in(const Attention& a, int32_t at, int32_t position) {
  const auto size = static_cast<int32_t>(a.layer.block_size);
  const int32_t before = static_cast<int32_t>(block_of(a, position)) * size;
  return at == MOTLEY_NONE ? -1 : at * size + position - before;
}
__device__ inline int32_t slot_of(const Attention& a, const int32_t* blocks, int32_t position) {
  return slot_in(a, blocks[block_of(a, position)], position);
}

__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 2^(x - largest); 0 where nothing was seen.
__device__ inline float weight_of(float x, float largest) {
  return power_of_two(x - (largest == -INFINITY ? 0.0f : largest));
}

// Scores are kept in powers of two: a product times this, capped first where a cap is.
template <bool kCapped>
__device__ float score_factor(const Attention& a) {
  return (kCapped ? 1.0f : a.scale) * kLog2E;
}
__device__ inline float capped(const Attention& a, float product) { return a.softcap * tanhf(product * a.cap_scale); }

// Zeros where no more than `at` are left. In one piece: a load in a branch would be waited for at the branch's end.
__device__ inline void load_if(uint4& x, const void* from, int left, int at) {
  asm volatile(
      "{\n .reg .pred p;\n setp.gt.s32 p, %5, %6;\n mov.b32 %0, 0;\n mov.b32 %1, 0;\n mov.b32 %2, 0;\n"
      " mov.b32 %3, 0;\n @p ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
      : "=&r"(x.x), "=&r"(x.y), "=&r"(x.z), "=&r"(x.w)
      : "l"(from), "r"(left), "r"(at));
}
__device__ inline void load_if(uint2& x, const void* from, int left, int at) {
  asm volatile(
      "{\n .reg .pred p;\n setp.gt.s32 p, %3, %4;\n mov.b32 %0, 0;\n mov.b32 %1, 0;\n"
      " @p ld.global.nc.v2.b32 {%0, %1}, [%2];\n}"
      : "=&r"(x.x), "=&r"(x.y)
      : "l"(from), "r"(left), "r"(at));
}

// Numbers of a pool, eight at a time: `Raw` as they lie, four registers of two as the tensor cores take them.
template <class T>
struct Numbers;
template <>
struct Numbers<__half> {
  using Raw = uint4;
  using Multiplied = __half;
  static constexpr bool kScaled = false;
  __device__ static uint32_t pack(float a, float b) {
    const __half2 both = __floats2half2_rn(a, b);
    return reinterpret_cast<const uint32_t&>(both);
  }
  __device__ static uint4 take(const Raw& raw) { return raw; }
  __device__ static void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};
template <>
struct Numbers<__nv_bfloat16> {
  using Raw = uint4;
  using Multiplied = __nv_bfloat16;
  static constexpr bool kScaled = false;
  __device__ static uint32_t pack(float a, float b) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
    return reinterpret_cast<const uint32_t&>(both);
  }
  __device__ static uint4 take(const Raw& raw) { return raw; }
  __device__ static void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};
// Exact in f16.
template <>
struct Numbers<__nv_fp8_e4m3> : Numbers<__half> {
  using Raw = uint2;
  __device__ static uint32_t two(uint32_t word, int at) {
    const auto pair = static_cast<__nv_fp8x2_storage_t>(word >> (8 * at));
    const __half2_raw both = __nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3);
    return both.x | static_cast<uint32_t>(both.y) << 16;
  }
  __device__ static uint4 take(const Raw& raw) { return {two(raw.x, 0), two(raw.x, 2), two(raw.y, 0), two(raw.y, 2)}; }
};
// Integers of 8 bits are exact in bf16; a position's scale goes to its score and its weight.
template <>
struct Numbers<int8_t> : Numbers<__nv_bfloat16> {
  using Raw = uint2;
  static constexpr bool kScaled = true;
  // 2^23 has room for a byte in its lowest bits; conversions are slow.
  __device__ static uint32_t two(uint32_t word, int at) {
    const uint32_t unsigned_bytes = word ^ 0x80808080u;
    const auto byte = [&](int i) {
      const uint32_t bits = __byte_perm(unsigned_bytes, 0x4b000000u, 0x7440u | static_cast<uint32_t>(i));
      return __uint_as_float(bits) - (8388608.0f + 128.0f);
    };
    return pack(byte(at), byte(at + 1));
  }
  __device__ static uint4 take(const Raw& raw) { return {two(raw.x, 0), two(raw.x, 2), two(raw.y, 0), two(raw.y, 2)}; }
};

// A matrix of 8 x 8 numbers of two bytes, a row's neighbours in a register, the other way round.
__device__ inline uint32_t transposed(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Calls f with the types and numbers of a kernel with tensor cores: what the pool holds, the room of a head, and
// whether scores are capped.
template <class F>
void visit_kernel(const Attention& a, F&& f) {
  const auto with_room = [&]<class T, int D>() {
    a.softcap > 0 ? f.template operator()<T, D, true>() : f.template operator()<T, D, false>();
  };
  const auto with_numbers = [&]<class T>() {
    if (a.layer.dim <= 64) return with_room.template operator()<T, 64>();
    if (a.layer.dim <= 128) return with_room.template operator()<T, 128>();
    with_room.template operator()<T, 256>();
  };
  switch (a.layer.dtype) {
    case MOTLEY_F16: return with_numbers.template operator()<__half>();
    case MOTLEY_BF16: return with_numbers.template operator()<__nv_bfloat16>();
    case MOTLEY_F8_E4M3: return with_numbers.template operator()<__nv_fp8_e4m3>();
    default: with_numbers.template operator()<int8_t>();
  }
}

// The kernels with tensor cores, for the pools that have them.
bool has_tensor_cores(const Layer& layer);
void attend_chunks(const Attention& a, const CudaStream& stream);
void attend_passes(const Attention& a, const CudaStream& stream);
// Whether attend_chunks can turn and store such heads.
bool can_turn(const Attention& a);

// Of queries that are `packed`: what the pool's numbers are multiplied as.
inline int32_t query_dtype(const Attention& a) {
  int32_t dtype = MOTLEY_F32;
  visit_kernel(a, [&]<class T, int D, bool kCapped>() {
    dtype = std::is_same_v<typename Numbers<T>::Multiplied, __half> ? MOTLEY_F16 : MOTLEY_BF16;
  });
  return dtype;
}

// ROPE of q and k, and KV_WRITE; in: q, k, v, turns. q_dtype: F32 or query_dtype.
void turn_and_write(const kit::OpCall& call, const motley_attr& q, int32_t layer, void* q_out, int32_t q_dtype);

}  // namespace motley::cuda
