// Quantised weights: re-laid once into tiles of 16 rows by 256 columns, in the order in which lanes read them
// (tiles.cuh); their values become bf16 numbers when they are read: a scale (and what is added) is rounded to bf16, the
// value once more. A format says what a tile holds of it, how codes become numbers, and where scales come from.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>

#include "cuda/products/tiles.cuh"
#include "motley/blocks.hpp"

namespace motley::cuda {

constexpr uint32_t kOne = 0x3f803f80u;      // of bf16, twice
constexpr uint32_t k128 = 0x43004300u;      // a small number in the lowest bits is added to it
constexpr uint32_t kNothing = 0x80008000u;  // -0: adds nothing, to zeros neither

// `count` bits from bit `from` of either half of a word, at bit `to` of these.
__device__ inline uint32_t moved(uint32_t word, int from, int count, int to) {
  const uint32_t mask = ((1u << count) - 1) * 0x00010001u << to;
  return (from >= to ? word >> (from - to) : word << (to - from)) & mask;
}

// A tile's bytes: codes by planes, first their lowest bits (of 16 rows, 512 bytes for each of `low`), then the `more`
// highest ones; `runs` times `scales` bytes a row; `blocks` bytes a row, of scales of scales. `group` columns have a
// scale.
struct TileShape {
  int low, more, scales, runs, blocks, group;
};

// A lane's codes of a tile: of 64 columns in a row of two rows.
template <TileShape kShape>
struct Codes {
  uint4 low[kShape.low], more[kShape.more ? kShape.more : 1];

  // Where pair p (of 4) of a step's 8 columns lies in a plane.
  struct Place {
    int word, shift;
  };
  __host__ __device__ static constexpr Place place(int bits, int step, int high, int pair) {
    const int i = 8 * step + 4 * high + pair, each = 16 / bits;
    return {i / each, i % each * bits};
  }
  // A pair of codes, in the lowest bits of either half.
  __device__ uint32_t pair(int step, int high, int p) const {
    const Place at = place(kShape.low, step, high, p);
    const uint32_t lowest = moved(word_of(low[at.word / 4], at.word % 4), at.shift, kShape.low, 0);
    if constexpr (kShape.more == 0) {
      return lowest;
    } else {
      const Place also = place(kShape.more, step, high, p);
      return lowest | moved(word_of(more[also.word / 4], also.word % 4), also.shift, kShape.more, kShape.low);
    }
  }
  // Of a step's 8 columns, where codes are of 4 or 8 bits in one plane: all of a row, or one half of them.
  __device__ uint32_t word(int step, int high, int half = 0) const {
    static_assert(kShape.more == 0 && (kShape.low == 4 || kShape.low == 8));
    const int i = (2 * step + high) * (kShape.low / 4) + half;
    return word_of(low[i / 4], i % 4);
  }
};

// A kind of weights that products read.
template <class Format>
struct Packed {
  using Block = typename Format::Block;
  static constexpr TileShape kShape = Format::kShape;
  static constexpr bool kF16 = false, kRest = Format::kRest;
  static constexpr int kColumns = 256, kSteps = kColumns / kStep, kPartColumns = kColumns;
  // A lane has 64 columns in a row, so that few scales serve all of them.
  static constexpr int kLaneColumns = 64, kScales = kLaneColumns / kShape.group;
  __host__ __device__ static constexpr int unit(int i) { return i % 8 * 4 + i / 8; }
  static constexpr int kPlane = 512;  // bytes of a bit of every code
  static constexpr int kMoreAt = kShape.low * kPlane, kScalesAt = kMoreAt + kShape.more * kPlane,
                       kBlocksAt = kScalesAt + kShape.runs * kShape.scales * kTileRows,
                       kTileBytes = kBlocksAt + kShape.blocks * kTileRows;
  static_assert(kTileBytes % 16 == 0);
  struct Chunk {
    Codes<kShape> codes;
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
  __device__ static void load(Chunk& to, const uint8_t* tile, const Lane& lane) {
#pragma unroll
    for (int i = 0; i < kShape.low; ++i) to.codes.low[i] = load16(tile + i * 512 + lane.index * 16);
#pragma unroll
    for (int i = 0; i < kShape.more; ++i) to.codes.more[i] = load16(tile + kMoreAt + i * 512 + lane.index * 16);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float scale[kScales], rest[kScales];
      read_scales(tile, lane.row + 8 * h, lane.part, scale, rest);
#pragma unroll
      for (int i = 0; i < kScales; ++i) {
        to.scale[h][i] = twice(scale[i]);
        if (kRest) to.rest[h][i] = twice(rest[i]);
      }
    }
  }
  template <int s>
  __device__ static Operand step(const Chunk& c, const Lane&) {
    constexpr int i = 8 * s / kShape.group;
    return {Format::values(c.codes, s, 0, c.scale[0][i], kRest ? c.rest[0][i] : kNothing),
            Format::values(c.codes, s, 1, c.scale[1][i], kRest ? c.rest[1][i] : kNothing)};
  }

  // One number of a tile, not rounded.
  __device__ static float value(const uint8_t* tile, int row, int column) {
    const auto* words = reinterpret_cast<const uint32_t*>(tile);
    uint32_t code = 0;
    each_place(row, column,
               [&](int word, int shift, int from, uint32_t mask) { code |= (words[word] >> shift & mask) << from; });
    float scale[kScales], rest[kScales];
    read_scales(tile, row, column / kLaneColumns, scale, rest);
    const int i = column % kLaneColumns / kShape.group;
    const float product = scale[i] * Format::number(static_cast<int>(code));
    return kRest ? product + rest[i] : product;
  }
  // To a tile of zeros, from a block as a file has it: element e, which comes to `column`.
  __device__ static void put(uint8_t* tile, int row, int column, const uint8_t* block, int e) {
    auto* const words = reinterpret_cast<uint32_t*>(tile);
    const auto code = static_cast<uint32_t>(Block::code(block, e)) + Format::kAdded;
    each_place(row, column, [&](int word, int shift, int from, uint32_t mask) {
      atomicOr(words + word, (code >> from & mask) << shift);
    });
    if (e % Block::kSubBlock == 0)
      Format::keep_scales(block, column / Block::kSubBlock, tile + kScalesAt + row * kShape.scales,
                          tile + kBlocksAt + row * kShape.blocks);
  }

 private:
  __device__ static void read_scales(const uint8_t* tile, int row, int part, float* scale, float* rest) {
    Format::read_scales(tile + kScalesAt + row * kShape.scales, tile + kBlocksAt + row * kShape.blocks, part, scale,
                        rest);
  }
  // f(word, shift, the code's bit that lies there, mask) for each plane.
  template <class F>
  __device__ static void each_place(int row, int column, F&& f) {
    const int lane = row % 8 * 4 + column / kLaneColumns, step = column % kLaneColumns / 8;
    const int e = Format::order(column % 8);
    const auto plane = [&](int first, int bits, int from) {
      const auto at = Codes<kShape>::place(bits, step, row / 8, e / 2);
      f(first / 4 + at.word / 4 * 128 + lane * 4 + at.word % 4, 16 * (e % 2) + at.shift, from, (1u << bits) - 1);
    };
    plane(0, kShape.low, 0);
    if constexpr (kShape.more > 0) plane(kMoreAt, kShape.more, kShape.low);
  }
};

// ---- codes and what they stand for ----

// Codes that lie in a tile as the file has them, one behind the other.
template <bool kHasRest>
struct PlainCodes {
  static constexpr bool kRest = kHasRest;           // something is added to a code times its scale
  static constexpr uint32_t kAdded = 0;             // when a code comes from a file
  __device__ static int order(int e) { return e; }  // of a step's 8 columns, in a tile
};

// A whole number less `offset`, of up to six bits.
template <int kOffset, bool kHasRest>
struct WholeNumbers : PlainCodes<kHasRest> {
  __device__ static float number(int code) { return static_cast<float>(code - kOffset); }
  // Of a step's 8 columns, in bf16; high: which of the two rows.
  template <class Codes>
  __device__ static uint4 values(const Codes& codes, int step, int high, uint32_t scale, uint32_t rest) {
    constexpr uint32_t kLess = 0xc300c300u + kOffset * 0x00010001u;  // -128 - kOffset
    uint4 out;
    uint32_t* const to = &out.x;
#pragma unroll
    for (int p = 0; p < 4; ++p) to[p] = fma_pair(fma_pair(codes.pair(step, high, p) | k128, kOne, kLess), scale, rest);
    return out;
  }
};

// Signed bytes, held with 128 added.
struct SignedBytes : WholeNumbers<128, false> {
  static constexpr uint32_t kAdded = 128;
  template <class Codes>
  __device__ static uint4 values(const Codes& codes, int step, int high, uint32_t scale, uint32_t) {
    const uint32_t x = codes.word(step, high, 0), y = codes.word(step, high, 1);
    return {two(x, scale), two(x >> 8, scale), two(y, scale), two(y >> 8, scale)};
  }

 private:
  // A code u = 128 * top + rest stands for u - 128: 128 + rest, less 256 or, where top is set, less 128.
  __device__ static uint32_t two(uint32_t x, uint32_t scale) {
    const uint32_t less = (x & 0x00800080u) ^ 0xc380c380u;
    return fma_pair(fma_pair((x & 0x007f007fu) | k128, kOne, less), scale, kNothing);
  }
};

// Numbers of E4M3.
struct SmallFloats : PlainCodes<false> {
  __device__ static float number(int code) { return kit::blocks::f8_e4m3_value(static_cast<uint8_t>(code)); }
  template <class Codes>
  __device__ static uint4 values(const Codes& codes, int step, int high, uint32_t scale, uint32_t) {
    const uint32_t x = codes.word(step, high, 0), y = codes.word(step, high, 1);
    return {two(x << 8, x << 4, scale), two(x, x >> 4, scale), two(y << 8, y << 4, scale), two(y, y >> 4, scale)};
  }

 private:
  // Sign, exponent and fraction where bf16 has them make a number 2^-120 times as large, a subnormal one too.
  __device__ static uint32_t two(uint32_t signs, uint32_t rest, uint32_t scale) {
    constexpr uint32_t k2To120 = 0x7b807b80u;
    return fma_pair(fma_pair((signs & 0x80008000u) | (rest & 0x07f007f0u), k2To120, kNothing), scale, kNothing);
  }
};

// Numbers of E2M1, times two.
struct SmallestFloats : PlainCodes<false> {
  __device__ static float number(int code) { return static_cast<float>(kit::blocks::fp4_value(code)); }
  // As above: 2^-127 times as large.
  template <class Codes>
  __device__ static uint4 values(const Codes& codes, int step, int high, uint32_t scale, uint32_t) {
    constexpr uint32_t k2To127 = 0x7f007f00u;
    const uint32_t word = codes.word(step, high);
    uint4 out;
    uint32_t* const to = &out.x;
#pragma unroll
    for (int p = 0; p < 4; ++p)
      to[p] = fma_pair(fma_pair(moved(word, 4 * p + 3, 1, 15) | moved(word, 4 * p, 3, 6), k2To127, kNothing), scale,
                       kNothing);
    return out;
  }
};

// The 16 numbers of IQ4, of which both bytes in bf16 are looked up.
struct TableNumbers : PlainCodes<false> {
  // Four are looked up at once: columns 0, 2, 1, 3 of a word's lower half.
  __device__ static int order(int e) { return e % 2 * 4 + e % 4 / 2 * 2 + e / 4; }
  __device__ static float number(int code) { return static_cast<float>(kit::blocks::iq4_value(code)); }
  template <class Codes>
  __device__ static uint4 values(const Codes& codes, int step, int high, uint32_t scale, uint32_t) {
    const uint32_t word = codes.word(step, high), at = word & 0x77777777u;
    const uint32_t upper = (word >> 1 & 0x44444444u) | 0x32103210u;  // byte i of the first or of the second
    uint4 out;
    four(at, upper, scale, out.x, out.y), four(at >> 16, upper >> 16, scale, out.z, out.w);
    return out;
  }

 private:
  // A byte of the bf16 numbers of four codes.
  static constexpr uint32_t table(int first, int byte) {
    uint32_t bytes = 0;
    for (int i = 0; i < 4; ++i) {
      const auto bits = std::bit_cast<uint32_t>(static_cast<float>(kit::blocks::iq4_value(first + i)));
      bytes |= (bits >> (16 + 8 * byte) & 0xffu) << (8 * i);
    }
    return bytes;
  }
  // Selectors without highest bits, which __byte_perm would take away.
  __device__ static uint32_t picked(uint32_t a, uint32_t b, uint32_t which) {
    uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(which));
    return d;
  }
  template <int kByte>
  __device__ static uint32_t bytes_of(uint32_t at, uint32_t upper) {
    constexpr uint32_t k0 = table(0, kByte), k4 = table(4, kByte), k8 = table(8, kByte), k12 = table(12, kByte);
    return picked(picked(k0, k4, at), picked(k8, k12, at), upper);
  }
  __device__ static void four(uint32_t at, uint32_t upper, uint32_t scale, uint32_t& first, uint32_t& second) {
    const uint32_t low = bytes_of<0>(at, upper), high = bytes_of<1>(at, upper);
    first = fma_pair(picked(low, high, 0x6240), scale, kNothing);
    second = fma_pair(picked(low, high, 0x7351), scale, kNothing);
  }
};

// ---- scales ----

// One F16 for 32 columns, and one of what is added if there is that.
template <class Numbers, class FileBlock, int kLow, int kMore>
struct HalfScales : Numbers {
  using Block = FileBlock;
  static constexpr int kRun = 16;
  static constexpr TileShape kShape{kLow, kMore, kRun, Numbers::kRest ? 2 : 1, 0, 32};
  __device__ static void keep_scales(const uint8_t* p, int sub, uint8_t* scales, uint8_t*) {
    for (int i = 0; i < 2; ++i) {
      scales[2 * sub + i] = p[i];
      if (Numbers::kRest) scales[kRun * kTileRows + 2 * sub + i] = p[2 + i];
    }
  }
  __device__ static void read_scales(const uint8_t* scales, const uint8_t*, int part, float* scale, float* rest) {
    const auto read = [&](const uint8_t* from, float* to) {
      const uint32_t two = word_at(from + part * 4);
      to[0] = half_value(two), to[1] = half_value(two >> 16);
    };
    read(scales, scale);
    if (Numbers::kRest) read(scales + kRun * kTileRows, rest);
  }
};

// Q4_K and Q5_K: a byte for 32 columns and one of what is taken away, and an F16 of a block for each.
template <bool kFifth>
struct BytePairs : WholeNumbers<0, true> {
  using Block = kit::blocks::Q4OrQ5K<kFifth>;
  static constexpr TileShape kShape{4, kFifth ? 1 : 0, 16, 1, 4, 32};
  __device__ static void keep_scales(const uint8_t* p, int sub, uint8_t* scales, uint8_t* block) {
    scales[sub] = static_cast<uint8_t>(Block::scale(p, sub));
    scales[8 + sub] = static_cast<uint8_t>(Block::min(p, sub));
    if (sub == 0)
      for (int i = 0; i < 4; ++i) block[i] = p[i];
  }
  __device__ static void read_scales(const uint8_t* scales, const uint8_t* block, int part, float* scale, float* rest) {
    const uint8_t* const own = scales + part * 2;
    const uint32_t both = word_at(block);
    const float of_scales = half_value(both), of_rests = -half_value(both >> 16);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      scale[i] = of_scales * static_cast<float>(own[i]);
      rest[i] = of_rests * static_cast<float>(own[8 + i]);
    }
  }
};

// A nibble for 16 columns and one of what is taken away, and an F16 of a block for each.
struct NibblePairs : WholeNumbers<0, true> {
  using Block = kit::blocks::Q2K;
  static constexpr TileShape kShape{2, 0, 16, 1, 4, 16};
  __device__ static void keep_scales(const uint8_t* p, int sub, uint8_t* scales, uint8_t* block) {
    scales[sub] = p[sub];
    if (sub == 0)
      for (int i = 0; i < 4; ++i) block[i] = p[80 + i];
  }
  __device__ static void read_scales(const uint8_t* scales, const uint8_t* block, int part, float* scale, float* rest) {
    const uint32_t own = word_at(scales + part * 4), both = word_at(block);
    const float of_scales = half_value(both), of_rests = -half_value(both >> 16);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scale[i] = of_scales * static_cast<float>(own >> (8 * i) & 15u);
      rest[i] = of_rests * static_cast<float>(own >> (8 * i + 4) & 15u);
    }
  }
};

// A signed byte for some columns, and an F16 of a block, which has it at kHalfAt.
template <class Numbers, class FileBlock, int kLow, int kMore, int kHalfAt>
struct SignedScales : Numbers {
  using Block = FileBlock;
  static constexpr int kEach = Block::kSubBlock, kOfLane = 64 / kEach;
  static constexpr TileShape kShape{kLow, kMore, 256 / kEach, 1, 2, kEach};
  __device__ static void keep_scales(const uint8_t* p, int sub, uint8_t* scales, uint8_t* block) {
    scales[sub] = static_cast<uint8_t>(Block::scale(p, sub));
    if (sub == 0) block[0] = p[kHalfAt], block[1] = p[kHalfAt + 1];
  }
  __device__ static void read_scales(const uint8_t* scales, const uint8_t* block, int part, float* scale, float*) {
    const uint8_t* const own = scales + part * kOfLane;
    const uint32_t bytes = kOfLane == 4 ? word_at(own) : *reinterpret_cast<const uint16_t*>(own);
    const float of_scales = half_value(*reinterpret_cast<const uint16_t*>(block));
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) scale[i] = of_scales * static_cast<float>(static_cast<int8_t>(bytes >> (8 * i)));
  }
};

// A power of two for 32 columns.
struct PowerScales : SmallestFloats {
  using Block = kit::blocks::Mxfp4;
  static constexpr TileShape kShape{4, 0, 8, 1, 0, 32};
  __device__ static void keep_scales(const uint8_t* p, int sub, uint8_t* scales, uint8_t*) { scales[sub] = p[0]; }
  __device__ static void read_scales(const uint8_t* scales, const uint8_t*, int part, float* scale, float*) {
    for (int i = 0; i < 2; ++i) scale[i] = kit::blocks::e8m0_value(scales[2 * part + i]);
  }
};

// An F32 for 64 columns.
struct FloatScales : SmallFloats {
  using Block = kit::blocks::F8E4M3;
  static constexpr TileShape kShape{8, 0, 16, 1, 0, 64};
  __device__ static void keep_scales(const uint8_t* p, int sub, uint8_t* scales, uint8_t*) {  // of 32 columns
    for (int i = 0; i < 4 && sub % 2 == 0; ++i) scales[sub / 2 * 4 + i] = p[i];
  }
  __device__ static void read_scales(const uint8_t* scales, const uint8_t*, int part, float* scale, float*) {
    scale[0] = __uint_as_float(word_at(scales + part * 4));
  }
};

using PackedQ40 = Packed<HalfScales<WholeNumbers<8, false>, kit::blocks::Q4_0, 4, 0>>;
using PackedQ41 = Packed<HalfScales<WholeNumbers<0, true>, kit::blocks::Q4_1, 4, 0>>;
using PackedQ50 = Packed<HalfScales<WholeNumbers<16, false>, kit::blocks::Q5_0, 4, 1>>;
using PackedQ51 = Packed<HalfScales<WholeNumbers<0, true>, kit::blocks::Q5_1, 4, 1>>;
using PackedQ80 = Packed<HalfScales<SignedBytes, kit::blocks::Q8_0, 8, 0>>;
using PackedF8 = Packed<FloatScales>;
using PackedQ2K = Packed<NibblePairs>;
using PackedQ3K = Packed<SignedScales<WholeNumbers<4, false>, kit::blocks::Q3K, 2, 1, 108>>;
using PackedQ4K = Packed<BytePairs<false>>;
using PackedQ5K = Packed<BytePairs<true>>;
using PackedQ6K = Packed<SignedScales<WholeNumbers<32, false>, kit::blocks::Q6K, 4, 2, 208>>;
using PackedIq4Nl = Packed<HalfScales<TableNumbers, kit::blocks::Iq4Nl, 4, 0>>;
using PackedIq4Xs = Packed<SignedScales<TableNumbers, kit::blocks::Iq4Xs, 4, 0, 0>>;
using PackedMxfp4 = Packed<PowerScales>;

// Calls `f` with the kind of tiles of a format that has one; else false.
template <class F>
bool visit_packed(int32_t dtype, F&& f) {
  const auto pick = [&]<class... Kinds>(Kinds... kinds) {
    return ((Kinds::Block::kDtype == dtype && (f(kinds), true)) || ...);
  };
  return pick(PackedQ40{}, PackedQ41{}, PackedQ50{}, PackedQ51{}, PackedQ80{}, PackedF8{}, PackedQ2K{}, PackedQ3K{},
              PackedQ4K{}, PackedQ5K{}, PackedQ6K{}, PackedIq4Nl{}, PackedIq4Xs{}, PackedMxfp4{});
}

}  // namespace motley::cuda
