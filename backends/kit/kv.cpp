// KV pools: memory, element formats, and the canonical form (docs/formats/kv.md).
// SPDX-License-Identifier: Apache-2.0
#include "kit/kv.hpp"

#include <cmath>
#include <cstring>
#include <limits>

namespace motley::kit {

void kv_store(int32_t dtype, const float* from, int64_t count, std::byte* to, float* scale) {
  switch (dtype) {
    case MOTLEY_F32: std::memcpy(to, from, static_cast<size_t>(count) * 4); return;
    case MOTLEY_F16:
      for (int64_t i = 0; i < count; ++i) reinterpret_cast<uint16_t*>(to)[i] = f32_to_f16(from[i]);
      return;
    case MOTLEY_BF16:
      for (int64_t i = 0; i < count; ++i) reinterpret_cast<uint16_t*>(to)[i] = f32_to_bf16(from[i]);
      return;
    case MOTLEY_F8_E4M3:
      for (int64_t i = 0; i < count; ++i) reinterpret_cast<uint8_t*>(to)[i] = f32_to_f8_e4m3(from[i]);
      return;
    default: break;
  }
  float largest = 0;
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    largest = std::fmax(largest, std::fabs(from[i]));
    finite = finite && std::isfinite(from[i]);
  }
  if (!finite) {  // integers cannot hold it: the whole head becomes NaN
    *scale = std::numeric_limits<float>::quiet_NaN();
    std::memset(to, 0, static_cast<size_t>(count));
    return;
  }
  *scale = largest / 127.0f;
  const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float q = std::nearbyint(from[i] * inverse);
    reinterpret_cast<int8_t*>(to)[i] = static_cast<int8_t>(std::fmin(127.0f, std::fmax(-127.0f, q)));
  }
}

void kv_load(int32_t dtype, const std::byte* from, int64_t count, float scale, float* to) {
  switch (dtype) {
    case MOTLEY_F32: std::memcpy(to, from, static_cast<size_t>(count) * 4); return;
    case MOTLEY_F16:
      for (int64_t i = 0; i < count; ++i) to[i] = f16_to_f32(reinterpret_cast<const uint16_t*>(from)[i]);
      return;
    case MOTLEY_BF16:
      for (int64_t i = 0; i < count; ++i) to[i] = bf16_to_f32(reinterpret_cast<const uint16_t*>(from)[i]);
      return;
    case MOTLEY_F8_E4M3:
      for (int64_t i = 0; i < count; ++i) to[i] = f8_e4m3_to_f32(reinterpret_cast<const uint8_t*>(from)[i]);
      return;
    default:
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(reinterpret_cast<const int8_t*>(from)[i]) * scale;
  }
}

namespace {

template <typename T>
void copy_apart(const std::byte* from, int64_t from_stride, std::byte* to, int64_t to_stride, int64_t count) {
  const T* in = reinterpret_cast<const T*>(from);
  T* out = reinterpret_cast<T*>(to);
  for (int64_t i = 0; i < count; ++i) out[i * to_stride] = in[i * from_stride];
}

void copy_apart(int32_t element_bytes, const std::byte* from, int64_t from_stride, std::byte* to, int64_t to_stride,
                int64_t count) {
  if (from_stride == 1 && to_stride == 1) {
    std::memcpy(to, from, static_cast<size_t>(count * element_bytes));
    return;
  }
  switch (element_bytes) {
    case 1: return copy_apart<uint8_t>(from, from_stride, to, to_stride, count);
    case 2: return copy_apart<uint16_t>(from, from_stride, to, to_stride, count);
    default: return copy_apart<uint32_t>(from, from_stride, to, to_stride, count);
  }
}

}  // namespace

void kv_scatter(int32_t element_bytes, const std::byte* from, int64_t count, std::byte* to, int64_t stride) {
  copy_apart(element_bytes, from, 1, to, stride, count);
}

void kv_gather(int32_t element_bytes, const std::byte* from, int64_t stride, int64_t count, std::byte* to) {
  copy_apart(element_bytes, from, stride, to, 1, count);
}

KvShape check_kv(const motley_kv_desc& desc) {
  KvShape shape;
  shape.dtype = desc.dtype;
  if (desc.dtype < 0 || desc.dtype >= MOTLEY_DTYPE_COUNT || !(kKvDtypes >> desc.dtype & 1))
    fail(MOTLEY_UNIMPLEMENTED, "KV pool: dtype %d is not one of F32, F16, BF16, F8_E4M3, I8", desc.dtype);
  if (desc.block_size < 1 || desc.block_size > kKvBlockSizeMax)
    fail(MOTLEY_INVALID_ARGUMENT, "KV pool: block size %u is not 1 .. %u", desc.block_size, kKvBlockSizeMax);
  // A slot (block * block_size + offset) is an int32.
  if (desc.blocks < 1 || uint64_t{desc.blocks} * desc.block_size > uint64_t{1} << 31)
    fail(MOTLEY_INVALID_ARGUMENT, "KV pool: %u blocks of %u positions", desc.blocks, desc.block_size);
  if (desc.layers < 1 || desc.layers > kLayersMax || !desc.kv_heads || !desc.head_dim)
    fail(MOTLEY_INVALID_ARGUMENT, "KV pool: %u layers", desc.layers);
  shape.block_size = desc.block_size, shape.blocks = desc.blocks;
  uint64_t per_block = 0;
  for (uint32_t l = 0; l < desc.layers; ++l) {
    const int32_t heads = desc.kv_heads[l], dim = desc.head_dim[l];
    if (heads < 1 || heads > kHeadsMax || dim < 1 || dim > kHeadDimMax)
      fail(MOTLEY_INVALID_ARGUMENT, "KV pool: layer %u has %d heads of %d", l, heads, dim);
    KvShape::Layer layer{heads, dim, desc.windows ? desc.windows[l] : 0, 0, 0};
    if (layer.window < 0) fail(MOTLEY_INVALID_ARGUMENT, "KV pool: layer %u has a window of %d", l, layer.window);
    layer.plane_bytes = uint64_t{desc.block_size} * static_cast<uint64_t>(heads) * static_cast<uint64_t>(dim) *
                        static_cast<uint64_t>(element_bytes(desc.dtype));
    layer.scale_bytes = desc.dtype == MOTLEY_I8 ? uint64_t{desc.block_size} * static_cast<uint64_t>(heads) * 4 : 0;
    per_block += 2 * (layer.plane_bytes + layer.scale_bytes);
    shape.layers.push_back(layer);
  }
  shape.bytes_per_block = per_block;
  uint64_t total;
  if (__builtin_mul_overflow(per_block, uint64_t{desc.blocks}, &total) || total > kMappingMax)
    fail(MOTLEY_RESOURCE_EXHAUSTED, "KV pool: %u blocks of %llu bytes are too large; use fewer blocks", desc.blocks,
         static_cast<unsigned long long>(per_block));
  // Every plane begins on a page.
  for (const KvShape::Layer& layer : shape.layers)
    shape.bytes_total += 2 * (page_up(layer.plane_bytes * desc.blocks) + page_up(layer.scale_bytes * desc.blocks));
  return shape;
}

uint64_t KvShape::canonical_bytes(uint32_t begin, uint32_t end) const {
  uint64_t bytes = 0;
  for (uint32_t l = begin; l < end; ++l) bytes += 2 * (layers[l].plane_bytes + layers[l].scale_bytes);
  return bytes;
}

std::vector<int32_t> check_kv_move(const KvShape& shape, const int32_t* blocks, uint32_t count, uint32_t begin,
                                   uint32_t end, uint64_t bytes) {
  if (begin > end || end > shape.layers.size())
    fail(MOTLEY_OUT_OF_RANGE, "KV layers [%u, %u) of %zu", begin, end, shape.layers.size());
  if (count > shape.blocks || (count && !blocks))
    fail(MOTLEY_INVALID_ARGUMENT, "%u KV blocks of %u", count, shape.blocks);
  for (uint32_t i = 0; i < count; ++i)
    if (blocks[i] < 0 || static_cast<uint32_t>(blocks[i]) >= shape.blocks)
      fail(MOTLEY_OUT_OF_RANGE, "KV block %d of %u", blocks[i], shape.blocks);
  const uint64_t wanted = shape.canonical_bytes(begin, end) * count;
  if (bytes != wanted)
    fail(MOTLEY_INVALID_ARGUMENT, "%u KV blocks take %llu bytes, not %llu", count,
         static_cast<unsigned long long>(wanted), static_cast<unsigned long long>(bytes));
  return {blocks, blocks + count};
}

KvMemory::KvMemory(const KvShape& shape, KvOrder order, Memory& memory)
    : shape_(shape), memory_(memory, shape.bytes_total) {
  pool_.dtype = shape.dtype;
  pool_.element_bytes = static_cast<int32_t>(element_bytes(shape.dtype));
  pool_.block_size = shape.block_size, pool_.blocks = shape.blocks;
  static std::atomic<uint64_t> serial{0};
  pool_.serial = ++serial;
  const int64_t size = shape.block_size;
  std::byte* at = memory_.data();
  const auto take = [&](uint64_t bytes) {
    std::byte* here = at;
    at += page_up(bytes);
    return here;
  };
  for (const KvShape::Layer& from : shape.layers) {
    KvLayer layer;
    layer.kv_heads = from.heads, layer.head_dim = from.dim, layer.window = from.window;
    layer.k = take(from.plane_bytes * shape.blocks);
    layer.v = take(from.plane_bytes * shape.blocks);
    if (from.scale_bytes) {
      layer.k_scale = reinterpret_cast<float*>(take(from.scale_bytes * shape.blocks));
      layer.v_scale = reinterpret_cast<float*>(take(from.scale_bytes * shape.blocks));
    }
    layer.block_stride = size * from.heads * from.dim, layer.scale_block_stride = size * from.heads;
    const bool by_dim = order == KvOrder::kKeysByDim;
    layer.scale_position_stride = by_dim ? 1 : from.heads;
    layer.scale_head_stride = by_dim ? size : 1;
    layer.position_stride = layer.scale_position_stride * from.dim;
    layer.head_stride = layer.scale_head_stride * from.dim;
    layer.key_position_stride = by_dim ? 1 : layer.position_stride;
    layer.key_dim_stride = by_dim ? size : 1;
    pool_.layers.push_back(layer);
  }
}

namespace {

enum class Way { kOut, kIn };

// Moves one plane (and its scales) of one layer between pool and canonical bytes; returns the next canonical byte.
std::byte* move_plane(const KvPool& pool, const KvLayer& layer, bool keys, std::span<const int32_t> blocks, Way way,
                      std::byte* at) {
  std::byte* plane = keys ? layer.k : layer.v;
  float* scales = keys ? layer.k_scale : layer.v_scale;
  const int64_t stride = keys ? layer.key_dim_stride : 1;
  const auto each = [&](auto&& copy) {
    for (const int32_t block : blocks)
      for (int64_t p = 0; p < pool.block_size; ++p)
        for (int64_t h = 0; h < layer.kv_heads; ++h) copy(block, p, h);
  };
  const auto exchange = [&](int32_t bytes, std::byte* here, int64_t apart, int64_t count) {
    way == Way::kOut ? kv_gather(bytes, here, apart, count, at) : kv_scatter(bytes, at, count, here, apart);
    at += bytes * count;
  };
  each([&](int64_t b, int64_t p, int64_t h) {
    const int64_t first = keys ? layer.key_offset(b, p, h) : layer.offset(b, p, h);
    exchange(pool.element_bytes, plane + first * pool.element_bytes, stride, layer.head_dim);
  });
  if (scales)
    each([&](int64_t b, int64_t p, int64_t h) {
      exchange(sizeof(float), reinterpret_cast<std::byte*>(scales + layer.scale_offset(b, p, h)), 1, 1);
    });
  return at;
}

void move_blocks(const KvPool& pool, std::span<const int32_t> blocks, uint32_t begin, uint32_t end, Way way,
                 std::byte* at) {
  for (uint32_t l = begin; l < end; ++l) {
    const KvLayer& layer = pool.layers[l];
    at = move_plane(pool, layer, true, blocks, way, at);
    at = move_plane(pool, layer, false, blocks, way, at);
  }
}

}  // namespace

void kv_to_canonical(const KvPool& pool, std::span<const int32_t> blocks, uint32_t begin, uint32_t end,
                     std::byte* out) {
  move_blocks(pool, blocks, begin, end, Way::kOut, out);
}

void kv_from_canonical(const KvPool& pool, std::span<const int32_t> blocks, uint32_t begin, uint32_t end,
                       const std::byte* from) {
  move_blocks(pool, blocks, begin, end, Way::kIn, const_cast<std::byte*>(from));  // kIn only reads it
}

void each_kv_run(const KvPool& pool, std::span<const int32_t> blocks, uint32_t begin, uint32_t end,
                 const std::function<void(std::byte* run, uint64_t bytes)>& each) {
  const auto plane = [&](std::byte* first, int64_t block_bytes) {
    for (const int32_t block : blocks) each(first + block * block_bytes, static_cast<uint64_t>(block_bytes));
  };
  for (uint32_t l = begin; l < end; ++l) {
    const KvLayer& layer = pool.layers[l];
    for (const bool keys : {true, false}) {
      plane(keys ? layer.k : layer.v, layer.block_stride * pool.element_bytes);
      if (float* scales = keys ? layer.k_scale : layer.v_scale)
        plane(reinterpret_cast<std::byte*>(scales), layer.scale_block_stride * int64_t{sizeof(float)});
    }
  }
}

}  // namespace motley::kit
