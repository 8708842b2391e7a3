// Numbers as KV pools and casts store them; the rule of kit's kv_store and kv_load (docs/formats/kv.md).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "cuda/stored.hpp"

namespace motley::cuda {

__device__ inline float load_as(int32_t dtype, const void* from, int64_t i) {
  switch (dtype) {
    case MOTLEY_F16: return __half2float(static_cast<const __half*>(from)[i]);
    case MOTLEY_BF16: return __bfloat162float(static_cast<const __nv_bfloat16*>(from)[i]);
    case MOTLEY_F8_E4M3: return static_cast<float>(static_cast<const __nv_fp8_e4m3*>(from)[i]);
    case MOTLEY_I8: return static_cast<float>(static_cast<const int8_t*>(from)[i]);
    default: return static_cast<const float*>(from)[i];
  }
}

__device__ inline void store_as(int32_t dtype, float value, void* to, int64_t i) {
  switch (dtype) {
    case MOTLEY_F16: static_cast<__half*>(to)[i] = __float2half_rn(value); return;
    case MOTLEY_BF16: static_cast<__nv_bfloat16*>(to)[i] = __float2bfloat16_rn(value); return;
    case MOTLEY_F8_E4M3: static_cast<__nv_fp8_e4m3*>(to)[i] = __nv_fp8_e4m3(value); return;
    default: static_cast<float*>(to)[i] = value;
  }
}

// Four from i on, a multiple of four: what store_as gives.
__device__ inline void store_four_as(int32_t dtype, float4 v, void* to, int64_t i) {
  const auto put = [&](auto low, auto high) {
    static_cast<uint2*>(to)[i / 4] = {reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high)};
  };
  switch (dtype) {
    case MOTLEY_F16: put(__floats2half2_rn(v.x, v.y), __floats2half2_rn(v.z, v.w)); return;
    case MOTLEY_BF16: put(__floats2bfloat162_rn(v.x, v.y), __floats2bfloat162_rn(v.z, v.w)); return;
    case MOTLEY_F8_E4M3: static_cast<__nv_fp8x4_e4m3*>(to)[i / 4] = __nv_fp8x4_e4m3(v); return;
    default: static_cast<float4*>(to)[i / 4] = v;
  }
}

// Two neighbours of a result. `i` is even.
__device__ inline void store_two(Stored stored, void* to, int64_t i, float x, float y) {
  if (stored == Stored::kF32) {
    static_cast<float*>(to)[i] = x, static_cast<float*>(to)[i + 1] = y;
    return;
  }
  if (stored == Stored::kTileOrder) i = in_tile_order(i);
  *reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(to) + i) = __floats2bfloat162_rn(x, y);
}
// Four from 4 * i on, of a place on a border of so many.
__device__ inline void store_four(Stored stored, void* to, int64_t i, float4 v) {
  if (stored == Stored::kF32) {
    static_cast<float4*>(to)[i] = v;
  } else if (stored == Stored::kTileOrder) {
    store_two(stored, to, 4 * i, v.x, v.y), store_two(stored, to, 4 * i + 2, v.z, v.w);
  } else {
    const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y), high = __floats2bfloat162_rn(v.z, v.w);
    static_cast<uint2*>(to)[i] = {reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high)};
  }
}
// Four of f32 or bf16, read as store_four writes them.
__device__ inline float4 load_four(bool bf16, const void* from, int64_t i) {
  if (!bf16) return static_cast<const float4*>(from)[i];
  const uint2 v = static_cast<const uint2*>(from)[i];
  return {__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16),
          __uint_as_float(v.y & 0xffff0000u)};
}
__device__ inline void store_one(bool bf16, void* to, int64_t i, float x) {
  store_as(bf16 ? MOTLEY_BF16 : MOTLEY_F32, x, to, i);
}
__device__ inline void store_one(Stored stored, void* to, int64_t i, float x) {
  store_one(stored != Stored::kF32, to, stored == Stored::kTileOrder ? in_tile_order(i) : i, x);
}
// What would be read of it.
__device__ inline float as_stored(bool bf16, float x) { return bf16 ? __bfloat162float(__float2bfloat16_rn(x)) : x; }

}  // namespace motley::cuda
