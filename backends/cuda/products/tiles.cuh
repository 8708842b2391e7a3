// Weights as the products read them: 16 rows by a chunk of columns at a time, in steps of 32 columns, each lane with
// what it gives to the tensor cores (A of mma.m16n8k16, bf16): 8 columns of rows lane / 4 and lane / 4 + 8. In which
// order a chunk's columns come is the kind's own affair, so long as activations lie in that order too (Kind::unit).
// Quantised types are re-laid once into tiles in that order; their values become bf16 numbers when they are read.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/weight.hpp"
#include "motley/blocks.hpp"

namespace motley::cuda {

constexpr int kTileRows = 16;
constexpr int kStep = 32;  // columns that two mma take

// Where a lane finds its rows and columns.
struct Lane {
  int index = threadIdx.x % 32, row = index / 4, part = index % 4;
};

// Two rows of a lane in one step: 8 bf16 numbers of each.
struct Operand {
  uint4 low, high;
};

__device__ inline uint4 load16(const void* from) { return *static_cast<const uint4*>(from); }

// 16 bytes to shared memory, zeros if there are none.
__device__ inline void copy_async(void* to, const void* from, bool there = true) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
      "l"(from), "r"(there ? 16 : 0)
      : "memory");
}

__device__ inline uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
__device__ inline uint32_t bf16_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ inline uint32_t twice(float x) { return bf16_pair(x, x); }
// What does not fit is the largest number that does; a NaN stays one.
__device__ inline uint32_t f16_pair(float low, float high) {
  const __half2 most = __float2half2_rn(65504);
  const __half2 pair = __hmin2_nan(__hmax2_nan(__floats2half2_rn(low, high), __hneg2(most)), most);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ inline float half_value(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits & 0xffffu)));
}
__device__ inline uint32_t word_at(const uint8_t* from) { return *reinterpret_cast<const uint32_t*>(from); }
__device__ inline uint32_t word_of(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

constexpr uint32_t kOne = 0x3f803f80u;  // of bf16, twice
constexpr uint32_t k128 = 0x43004300u;  // a small number in the lowest bits is added to it
constexpr uint32_t kLess128 = 0xc300c300u, kLess136 = 0xc308c308u, kLess160 = 0xc320c320u;  // of bf16, twice
constexpr uint32_t kNothing = 0x80008000u;  // -0: adds nothing, to zeros neither

// 8 whole numbers, held with 128 added, less `offset`, times scale, plus rest.
__device__ inline uint4 scaled(const uint32_t (&codes)[4], uint32_t offset, uint32_t scale, uint32_t rest) {
  uint4 out;
  uint32_t* const to = &out.x;
#pragma unroll
  for (int p = 0; p < 4; ++p) to[p] = fma_pair(fma_pair(codes[p], kOne, offset), scale, rest);
  return out;
}

// bf16 rows as the file has them. Chunks of 64 columns suit many blocks of threads, of 128 few.
template <int chunk_columns>
struct Bf16Rows {
  static constexpr bool kF16 = false;  // tensor cores take both operands in it, else in bf16
  static constexpr int kColumns = chunk_columns, kSteps = kColumns / kStep;
  static constexpr int kPartColumns = 128;  // a part of the columns has whole ones of these
  // Where the 8 columns from 8 * i lie in the order of steps and, within one, of lane % 4.
  __host__ __device__ static constexpr int unit(int i) { return i; }
  struct Chunk {
    Operand steps[kSteps];
  };
  // Where a lane reads a tile's rows.
  struct Cursor {
    const uint8_t *low, *high;
    int columns;  // from the lane's first one on
  };
  __device__ static Cursor at(const uint8_t* data, int64_t row_bytes, int rows, int cols, int tile, const Lane& lane) {
    const int first = tile * kTileRows + lane.row;
    const uint8_t* const from = data + 16 * lane.part;
    return {from + min(first, rows - 1) * row_bytes, from + min(first + 8, rows - 1) * row_bytes, cols - 8 * lane.part};
  }
  // A chunk of a tile to shared memory, by one warp, and from there.
  static constexpr int kShared = kSteps * 2 * 32 * 16;
  __device__ static void copy(uint8_t* to, const Cursor& from, int chunk, const Lane& lane) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int column = chunk * kColumns + s * kStep;
      const bool there = column < from.columns;
      copy_async(to + (2 * s * 32 + lane.index) * 16, from.low + (there ? 2 * column : 0), there);
      copy_async(to + ((2 * s + 1) * 32 + lane.index) * 16, from.high + (there ? 2 * column : 0), there);
    }
  }
  __device__ static void load(Chunk& to, const uint8_t* from, const Lane& lane) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      to.steps[s].low = load16(from + (2 * s * 32 + lane.index) * 16);
      to.steps[s].high = load16(from + ((2 * s + 1) * 32 + lane.index) * 16);
    }
  }
  template <int s>
  __device__ static Operand step(const Chunk& c, const Lane&) {
    return c.steps[s];
  }
};

template <int chunk_columns>
struct F16Rows : Bf16Rows<chunk_columns> {
  static constexpr bool kF16 = true;
};

// What a tile of 16 rows by 256 columns holds: codes, more bits of codes, 16 bytes of scales a row (once or twice), and
// the scales of scales, 4 bytes a row.
template <int kBits, int kScaleRuns, bool kBlockScales>
struct TileLayout {
  static constexpr bool kF16 = false;
  static constexpr int kColumns = 256, kSteps = kColumns / kStep, kPartColumns = kColumns;
  // A lane has 64 columns in a row, so that few scales serve all of them.
  __host__ __device__ static constexpr int unit(int i) { return i % 8 * 4 + i / 8; }
  static constexpr int kCodeLoads = kBits == 8 ? 8 : 4, kMoreLoads = kBits == 6 ? 2 : 0;
  static constexpr int kMoreAt = kCodeLoads * 512, kScalesAt = kMoreAt + kMoreLoads * 512;
  static constexpr int kBlocksAt = kScalesAt + kScaleRuns * 256, kTileBytes = kBlocksAt + (kBlockScales ? 64 : 0);
  static constexpr int kScales = kBits == 6 ? 4 : 2;  // of a lane's 64 columns
  struct Chunk {
    uint4 codes[kCodeLoads], more[kMoreLoads + 1];
    uint32_t scale[2][kScales], rest[2][kScales];  // bf16, twice each
  };
  struct Cursor {
    const uint8_t* tiles;
  };
  __device__ static Cursor at(const uint8_t* data, int64_t row_of_tiles, int, int, int tile, const Lane&) {
    return {data + tile * row_of_tiles};
  }
  static constexpr int kShared = kTileBytes;
  __device__ static void copy(uint8_t* to, const Cursor& from, int chunk, const Lane& lane) {
    const uint8_t* const tile = from.tiles + int64_t{chunk} * kTileBytes;
#pragma unroll
    for (int i = 0; i < (kTileBytes + 511) / 512; ++i) {
      const int at = i * 512 + lane.index * 16;
      if (at < kTileBytes) copy_async(to + at, tile + at);
    }
  }
  __device__ static void load_codes(Chunk& to, const uint8_t* tile, const Lane& lane) {
#pragma unroll
    for (int i = 0; i < kCodeLoads; ++i) to.codes[i] = load16(tile + i * 512 + lane.index * 16);
#pragma unroll
    for (int i = 0; i < kMoreLoads; ++i) to.more[i] = load16(tile + kMoreAt + i * 512 + lane.index * 16);
  }

  // Where the code of (row, column) of a tile lies: the word, and the shift in it.
  struct Place {
    int word, shift;
  };
  __device__ static Place place(int row, int column) {
    const int lane = row % 8 * 4 + column / 64, step = column % 64 / 8, high = row / 8, e = column % 8;
    if (kBits == 8) return {step * 128 + lane * 4 + 2 * high + e / 4, 16 * (e % 2) + 8 * (e % 4 / 2)};
    return {step / 2 * 128 + lane * 4 + step % 2 * 2 + high, 16 * (e % 2) + 4 * (e / 2)};
  }
  __device__ static Place more_place(int row, int column) {  // two bits
    const int lane = row % 8 * 4 + column / 64, step = column % 64 / 8, e = column % 8;
    return {kMoreAt / 4 + step / 4 * 128 + lane * 4 + step % 4, 16 * (e % 2) + 8 * (row / 8) + 2 * (e / 2)};
  }
  __device__ static int code(const uint8_t* tile, int row, int column) {
    const auto* words = reinterpret_cast<const uint32_t*>(tile);
    const Place p = place(row, column);
    const int low = static_cast<int>(words[p.word] >> p.shift & (kBits == 8 ? 255u : 15u));
    if (kBits != 6) return low;
    const Place q = more_place(row, column);
    return low | static_cast<int>(words[q.word] >> q.shift & 3u) << 4;
  }
  __device__ static const uint8_t* scales(const uint8_t* tile, int row) { return tile + kScalesAt + row * 16; }
  __device__ static const uint8_t* block(const uint8_t* tile, int row) { return tile + kBlocksAt + row * 4; }

 protected:
  // Scales of 32 columns in halves: a lane's two, of both its rows.
  __device__ static void load_halves(uint32_t (&to)[2][kScales], const uint8_t* from, const Lane& lane) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t two = word_at(from + (lane.row + 8 * h) * 16 + lane.part * 4);
      to[h][0] = twice(half_value(two)), to[h][1] = twice(half_value(two >> 16));
    }
  }
  template <int s>
  __device__ static void nibbles(const Chunk& c, uint32_t (&low)[4], uint32_t (&high)[4]) {
    const uint32_t x = word_of(c.codes[s / 2], s % 2 * 2), y = word_of(c.codes[s / 2], s % 2 * 2 + 1);
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      low[p] = (x >> (4 * p) & 0x000f000fu) | k128;
      high[p] = (y >> (4 * p) & 0x000f000fu) | k128;
    }
  }
  // Codes of four bits times scale, plus rest.
  template <int s>
  __device__ static Operand affine(const Chunk& c) {
    uint32_t low[4], high[4];
    nibbles<s>(c, low, high);
    return {scaled(low, kLess128, c.scale[0][s / 4], c.rest[0][s / 4]),
            scaled(high, kLess128, c.scale[1][s / 4], c.rest[1][s / 4])};
  }
};

struct PackedQ40 : TileLayout<4, 1, false> {
  using Block = kit::blocks::Q4_0;
  __device__ static void load(Chunk& to, const uint8_t* tile, const Lane& lane) {
    load_codes(to, tile, lane);
    load_halves(to.scale, tile + kScalesAt, lane);
  }
  template <int s>
  __device__ static Operand step(const Chunk& c, const Lane&) {
    uint32_t low[4], high[4];
    nibbles<s>(c, low, high);
    return {scaled(low, kLess136, c.scale[0][s / 4], kNothing), scaled(high, kLess136, c.scale[1][s / 4], kNothing)};
  }
  __device__ static float value(const uint8_t* tile, int row, int column) {
    return kit::blocks::half(scales(tile, row) + column / 32 * 2) * static_cast<float>(code(tile, row, column) - 8);
  }
  __device__ static int file_code(const uint8_t* p, int e) { return kit::blocks::nibble(p + 2, e); }
  __device__ static void file_scales(const uint8_t* p, int row, int sub, uint8_t* tile) {
    auto* const to = tile + kScalesAt + row * 16 + sub * 2;
    to[0] = p[0], to[1] = p[1];
  }
};

struct PackedQ41 : TileLayout<4, 2, false> {
  using Block = kit::blocks::Q4_1;
  __device__ static void load(Chunk& to, const uint8_t* tile, const Lane& lane) {
    load_codes(to, tile, lane);
    load_halves(to.scale, tile + kScalesAt, lane);
    load_halves(to.rest, tile + kScalesAt + 256, lane);
  }
  template <int s>
  __device__ static Operand step(const Chunk& c, const Lane&) {
    return affine<s>(c);
  }
  __device__ static float value(const uint8_t* tile, int row, int column) {
    const uint8_t* const at = scales(tile, row) + column / 32 * 2;
    return kit::blocks::half(at) * static_cast<float>(code(tile, row, column)) + kit::blocks::half(at + 256);
  }
  __device__ static int file_code(const uint8_t* p, int e) { return kit::blocks::nibble(p + 4, e); }
  __device__ static void file_scales(const uint8_t* p, int row, int sub, uint8_t* tile) {
    auto* const to = tile + kScalesAt + row * 16 + sub * 2;
    to[0] = p[0], to[1] = p[1], to[256] = p[2], to[257] = p[3];
  }
};

struct PackedQ80 : TileLayout<8, 1, false> {
  using Block = kit::blocks::Q8_0;
  __device__ static void load(Chunk& to, const uint8_t* tile, const Lane& lane) {
    load_codes(to, tile, lane);
    load_halves(to.scale, tile + kScalesAt, lane);
  }
  template <int s>
  __device__ static Operand step(const Chunk& c, const Lane&) {
    const uint4 x = c.codes[s];
    return {eight(x.x, x.y, c.scale[0][s / 4]), eight(x.z, x.w, c.scale[1][s / 4])};
  }
  __device__ static float value(const uint8_t* tile, int row, int column) {
    return kit::blocks::half(scales(tile, row) + column / 32 * 2) * static_cast<float>(code(tile, row, column) - 128);
  }
  __device__ static int file_code(const uint8_t* p, int e) { return static_cast<int8_t>(p[2 + e]) + 128; }
  __device__ static void file_scales(const uint8_t* p, int row, int sub, uint8_t* tile) {
    PackedQ40::file_scales(p, row, sub, tile + kScalesAt - PackedQ40::kScalesAt);
  }

 private:
  // A code u = 128 * top + rest stands for u - 128: 128 + rest, less 256 or, where top is set, less 128.
  __device__ static uint32_t two(uint32_t x, uint32_t scale) {
    const uint32_t less = (x & 0x00800080u) ^ 0xc380c380u;
    return fma_pair(fma_pair((x & 0x007f007fu) | k128, kOne, less), scale, kNothing);
  }
  __device__ static uint4 eight(uint32_t x, uint32_t y, uint32_t scale) {
    return {two(x, scale), two(x >> 8, scale), two(y, scale), two(y >> 8, scale)};
  }
};

// Numbers of E4M3, and four scales in F32 a row.
struct PackedF8 : TileLayout<8, 1, false> {
  using Block = kit::blocks::F8E4M3;
  __device__ static void load(Chunk& to, const uint8_t* tile, const Lane& lane) {
    load_codes(to, tile, lane);
#pragma unroll
    for (int h = 0; h < 2; ++h)
      to.scale[h][0] = twice(__uint_as_float(word_at(scales(tile, lane.row + 8 * h) + lane.part * 4)));
  }
  template <int s>
  __device__ static Operand step(const Chunk& c, const Lane&) {
    const uint4 x = c.codes[s];
    return {eight(x.x, x.y, c.scale[0][0]), eight(x.z, x.w, c.scale[1][0])};
  }
  __device__ static float value(const uint8_t* tile, int row, int column) {
    return __uint_as_float(word_at(scales(tile, row) + column / 64 * 4)) *
           kit::blocks::f8_e4m3_value(static_cast<uint8_t>(code(tile, row, column)));
  }
  __device__ static int file_code(const uint8_t* p, int e) { return p[4 + e]; }
  __device__ static void file_scales(const uint8_t* p, int row, int sub, uint8_t* tile) {  // of 32 columns
    uint8_t* const to = tile + kScalesAt + row * 16 + sub / 2 * 4;
    for (int i = 0; i < 4; ++i) to[i] = p[i];
  }

 private:
  // Sign, exponent and fraction where bf16 has them make a number 2^-120 times as large, a subnormal one too.
  __device__ static uint32_t two(uint32_t signs, uint32_t rest, uint32_t scale) {
    constexpr uint32_t k2To120 = 0x7b807b80u;
    return fma_pair(fma_pair((signs & 0x80008000u) | (rest & 0x07f007f0u), k2To120, kNothing), scale, kNothing);
  }
  __device__ static uint4 eight(uint32_t x, uint32_t y, uint32_t scale) {
    return {two(x << 8, x << 4, scale), two(x, x >> 4, scale), two(y << 8, y << 4, scale), two(y, y >> 4, scale)};
  }
};

struct PackedQ4K : TileLayout<4, 1, true> {
  using Block = kit::blocks::Q4K;
  __device__ static void load(Chunk& to, const uint8_t* tile, const Lane& lane) {
    load_codes(to, tile, lane);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint8_t* const own = scales(tile, lane.row + 8 * h) + lane.part * 2;
      const uint32_t both = word_at(block(tile, lane.row + 8 * h));
      const float scale = half_value(both), least = -half_value(both >> 16);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        to.scale[h][i] = twice(scale * static_cast<float>(own[i]));
        to.rest[h][i] = twice(least * static_cast<float>(own[i + 8]));
      }
    }
  }
  template <int s>
  __device__ static Operand step(const Chunk& c, const Lane&) {
    return affine<s>(c);
  }
  __device__ static float value(const uint8_t* tile, int row, int column) {
    const uint8_t *const s = scales(tile, row), *const b = block(tile, row);
    const int j = column / 32;
    return kit::blocks::half(b) * static_cast<float>(s[j]) * static_cast<float>(code(tile, row, column)) -
           kit::blocks::half(b + 2) * static_cast<float>(s[j + 8]);
  }
  __device__ static int file_code(const uint8_t* p, int e) {
    const uint8_t byte = p[16 + e / 64 * 32 + e % 32];
    return e % 64 / 32 ? byte >> 4 : byte & 15;
  }
  __device__ static void file_scales(const uint8_t* p, int row, int sub, uint8_t* tile) {
    const uint8_t* const s = p + 4;
    uint8_t* const to = tile + kScalesAt + row * 16 + sub;
    to[0] = static_cast<uint8_t>(sub < 4 ? s[sub] & 63 : (s[sub + 4] & 15) | ((s[sub - 4] >> 6) << 4));
    to[8] = static_cast<uint8_t>(sub < 4 ? s[sub + 4] & 63 : (s[sub + 4] >> 4) | ((s[sub] >> 6) << 4));
    if (sub == 0)
      for (int i = 0; i < 4; ++i) tile[kBlocksAt + row * 4 + i] = p[i];
  }
};

struct PackedQ6K : TileLayout<6, 1, true> {
  using Block = kit::blocks::Q6K;
  __device__ static void load(Chunk& to, const uint8_t* tile, const Lane& lane) {
    load_codes(to, tile, lane);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t own = word_at(scales(tile, lane.row + 8 * h) + lane.part * 4);
      const float scale = half_value(word_at(block(tile, lane.row + 8 * h)));
#pragma unroll
      for (int i = 0; i < 4; ++i)
        to.scale[h][i] = twice(scale * static_cast<float>(static_cast<int8_t>(own >> (8 * i))));
    }
  }
  template <int s>
  __device__ static Operand step(const Chunk& c, const Lane&) {
    uint32_t codes[2][4];
    nibbles<s>(c, codes[0], codes[1]);
    const uint32_t more = word_of(c.more[s / 4], s % 4);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int p = 0; p < 4; ++p) codes[h][p] |= (more >> (8 * h + 2 * p) & 0x00030003u) << 4;
    }
    return {scaled(codes[0], kLess160, c.scale[0][s / 2], kNothing),
            scaled(codes[1], kLess160, c.scale[1][s / 2], kNothing)};
  }
  __device__ static float value(const uint8_t* tile, int row, int column) {
    const auto scale = static_cast<int8_t>(scales(tile, row)[column / 16]);
    return kit::blocks::half(block(tile, row)) * static_cast<float>(scale) *
           static_cast<float>(code(tile, row, column) - 32);
  }
  __device__ static int file_code(const uint8_t* p, int e) {
    const int n = e / 128, g = e % 128 / 32, l = e % 32;
    const uint8_t byte = p[64 * n + 32 * (g % 2) + l];
    return (g < 2 ? byte & 15 : byte >> 4) | ((p[128 + 32 * n + l] >> (2 * g)) & 3) << 4;
  }
  __device__ static void file_scales(const uint8_t* p, int row, int sub, uint8_t* tile) {  // of 16 columns
    tile[kScalesAt + row * 16 + sub] = p[192 + sub];
    if (sub == 0) tile[kBlocksAt + row * 4] = p[208], tile[kBlocksAt + row * 4 + 1] = p[209];
  }
};

// Calls `f` with the kind of tiles of a format that has one.
template <class F>
bool visit_packed(int32_t dtype, F&& f) {
  switch (dtype) {
    case MOTLEY_Q4_0: f(PackedQ40{}); return true;
    case MOTLEY_Q4_1: f(PackedQ41{}); return true;
    case MOTLEY_Q8_0: f(PackedQ80{}); return true;
    case MOTLEY_F8_E4M3_S64: f(PackedF8{}); return true;
    case MOTLEY_Q4_K: f(PackedQ4K{}); return true;
    case MOTLEY_Q6_K: f(PackedQ6K{}); return true;
    default: return false;
  }
}

}  // namespace motley::cuda
