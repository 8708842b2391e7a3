// SPDX-License-Identifier: Apache-2.0
#include "cpu/block.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "kit/kit.hpp"

namespace motley::cpu {
namespace {

template <class T>
T load(const void* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
void copy_half(const uint8_t* from, int lane, uint8_t* to) { std::memcpy(to + 2 * lane, from, 2); }

// ---- 32 elements of a row as bytes: a = columns 0-15, b = 16-31, in four words of 4 columns each ----

typedef uint32_t Words __attribute__((vector_size(16)));
typedef uint64_t LongWords __attribute__((vector_size(16)));
struct Columns {
  Words a, b;
};

template <class T = uint32_t>
constexpr T every(T byte) {
  return byte * static_cast<T>(0x0101010101010101u);
}
Words words(const uint8_t* p) { return load<Words>(p); }

// The kBits bits of each of 32 bytes, from bit `bit` up.
template <int kBits>
Columns fields(const uint8_t* p, uint32_t bit) {
  constexpr uint32_t kMask = every((1u << kBits) - 1);
  return {(words(p) >> bit) & kMask, (words(p + 16) >> bit) & kMask};
}
// 16 bytes: low halves, then high halves.
Columns split_nibbles(const uint8_t* p) { return {words(p) & every(15u), (words(p) >> 4) & every(15u)}; }

// ---- one lane of a plane of kBits an element (layout.hpp) ----

void put_word(uint8_t* plane, int piece, int lane, uint32_t word) {
  std::memcpy(plane + 64 * piece + 4 * lane, &word, 4);
}
// Every second word, moved up by kUp bits, into the one before it.
template <int kUp>
Words fold(Words x) {
  return x | reinterpret_cast<Words>(reinterpret_cast<LongWords>(x) >> 32) << kUp;
}

// From bytes that have no other bits.
template <int kBits>
void store_plane(const Columns& c, int lane, uint8_t* plane) {
  if constexpr (kBits == 8) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) put_word(plane, 2 * j, lane, c.a[j]), put_word(plane, 2 * j + 1, lane, c.b[j]);
  } else if constexpr (kBits == 4) {
    const Words x = c.a | c.b << 4;
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) put_word(plane, j, lane, x[j]);
  } else if constexpr (kBits == 2) {
    const Words x = fold<4>(c.a | c.b << 2);
    put_word(plane, 0, lane, x[0]), put_word(plane, 1, lane, x[2]);
  } else {
    const Words x = fold<2>(c.a | c.b << 1);
    put_word(plane, 0, lane, x[0] | x[2] << 4);
  }
}

// The 32 fifth bits of Q5_0 and Q5_1 go from bit e = 16 h + 4 j + i straight to bit 8 i + 2 j + h of their word.
constexpr auto kSpread = [] {
  std::array<uint32_t, 256> spread{};  // of 8 bits, as if h = 0 and j = 0, 1
  for (uint32_t x = 0; x < 256; ++x) {
    for (uint32_t bit = 0; bit < 8; ++bit) spread[x] |= ((x >> bit) & 1) << (8 * (bit % 4) + 2 * (bit / 4));
  }
  return spread;
}();
void store_fifth_bits(const uint8_t* p, int lane, uint8_t* plane) {
  put_word(plane, 0, lane, kSpread[p[0]] | kSpread[p[1]] << 4 | kSpread[p[2]] << 1 | kSpread[p[3]] << 5);
}

// ---- blocks of the file, at p: the planes, the scales and the header of the 32 columns from 32 j ----

struct FileQ8_0 {
  static constexpr int kElements = 32, kBytes = 34;
  Columns low(uint32_t) const { return {words(p + 2) ^ every(128u), words(p + 18) ^ every(128u)}; }
  void scales(uint32_t, int lane, uint8_t* to) const { copy_half(p, lane, to); }
  const uint8_t* p;
};
struct FileQ4_0 {
  static constexpr int kElements = 32, kBytes = 18;
  Columns low(uint32_t) const { return split_nibbles(p + 2); }
  void scales(uint32_t, int lane, uint8_t* to) const { copy_half(p, lane, to); }
  const uint8_t* p;
};
struct FileQ5_0 {
  static constexpr int kElements = 32, kBytes = 22;
  Columns low(uint32_t) const { return split_nibbles(p + 6); }
  void store_high(uint32_t, int lane, uint8_t* plane) const { store_fifth_bits(p + 2, lane, plane); }
  void scales(uint32_t, int lane, uint8_t* to) const { copy_half(p, lane, to); }
  const uint8_t* p;
};
struct FileQ4_1 {
  static constexpr int kElements = 32, kBytes = 20;
  Columns low(uint32_t) const { return split_nibbles(p + 4); }
  void scales(uint32_t, int lane, uint8_t* to) const { copy_half(p, lane, to), copy_half(p + 2, lane, to + 32); }
  const uint8_t* p;
};
struct FileQ5_1 {
  static constexpr int kElements = 32, kBytes = 24;
  Columns low(uint32_t) const { return split_nibbles(p + 8); }
  void store_high(uint32_t, int lane, uint8_t* plane) const { store_fifth_bits(p + 4, lane, plane); }
  void scales(uint32_t, int lane, uint8_t* to) const { copy_half(p, lane, to), copy_half(p + 2, lane, to + 32); }
  const uint8_t* p;
};
struct FileMXFP4 {
  static constexpr int kElements = 32, kBytes = 17;
  Columns low(uint32_t) const { return split_nibbles(p + 1); }
  void scales(uint32_t, int lane, uint8_t* to) const { to[lane] = p[0]; }
  const uint8_t* p;
};
struct FileIQ4_XS {
  static constexpr int kElements = 256, kBytes = 136;
  Columns low(uint32_t j) const { return split_nibbles(p + 8 + 16 * j); }
  void scales(uint32_t j, int lane, uint8_t* to) const {
    const int low = (p[4 + j / 2] >> (4 * (j % 2))) & 15, high = (load<uint16_t>(p + 2) >> (2 * j)) & 3;
    to[lane] = static_cast<uint8_t>((low | high << 4) - 32);
  }
  void header(int lane, uint8_t* to) const { copy_half(p, lane, to); }
  const uint8_t* p;
};

// Byte k of 16 that lie in two words.
uint8_t byte_of(const uint64_t (&bytes)[2], uint32_t k) { return static_cast<uint8_t>(bytes[k / 8] >> (k % 8 * 8)); }

struct FileQ2_K {
  static constexpr int kElements = 256, kBytes = 84;
  Columns low(uint32_t j) const { return fields<2>(p + 16 + 32 * (j / 4), 2 * (j % 4)); }
  void scales(uint32_t j, int lane, uint8_t* to) const { to[lane] = p[2 * j], to[16 + lane] = p[2 * j + 1]; }
  void header(int lane, uint8_t* to) const { copy_half(p + 80, lane, to), copy_half(p + 82, lane, to + 32); }
  const uint8_t* p;
};
struct FileQ3_K {
  static constexpr int kElements = 256, kBytes = 110;
  // All 16 scales at once, in bytes: 4 low bits | 2 high bits << 4, less 32 (the sign is bit 5, turned).
  explicit FileQ3_K(const uint8_t* block) : p(block) {
    const auto low = load<uint64_t>(p + 96);
    const uint64_t high = load<uint32_t>(p + 104);
    for (uint32_t i = 0; i < 2; ++i) {
      const uint64_t first = (high >> (4 * i)) & every(uint64_t{3}) & 0xffffffffu;
      const uint64_t second = (high >> (4 * i + 2)) & every(uint64_t{3}) & 0xffffffffu;
      const uint64_t x = ((low >> (4 * i)) & every(uint64_t{15})) | first << 4 | second << 36;
      const uint64_t turned = x ^ every(uint64_t{32}), sign = turned & every(uint64_t{32});
      scale[i] = turned | sign << 1 | sign << 2;
    }
  }
  Columns low(uint32_t j) const { return fields<2>(p + 32 + 32 * (j / 4), 2 * (j % 4)); }
  Columns high(uint32_t j) const { return fields<1>(p, j); }
  void scales(uint32_t j, int lane, uint8_t* to) const {
    to[lane] = byte_of(scale, 2 * j), to[16 + lane] = byte_of(scale, 2 * j + 1);
  }
  void header(int lane, uint8_t* to) const { copy_half(p + 108, lane, to); }
  const uint8_t* p;
  uint64_t scale[2];
};

// Scales and minima of 6 bits, and the header, of Q4_K and Q5_K.
struct SixBitScales {
  explicit SixBitScales(const uint8_t* block) : p(block) {
    const uint64_t a = load<uint32_t>(p + 4), b = load<uint32_t>(p + 8), c = load<uint32_t>(p + 12);
    const uint64_t six = every(63u), four = every(15u), two = every(3u);
    scale[0] = (a & six) | ((c & four) | ((a >> 6) & two) << 4) << 32;
    scale[1] = (b & six) | (((c >> 4) & four) | ((b >> 6) & two) << 4) << 32;
  }
  void scales(uint32_t j, int lane, uint8_t* to) const {
    to[lane] = byte_of(scale, j), to[16 + lane] = byte_of(scale, 8 + j);
  }
  void header(int lane, uint8_t* to) const { copy_half(p, lane, to), copy_half(p + 2, lane, to + 32); }
  const uint8_t* p;
  uint64_t scale[2];  // scales, minima
};
struct FileQ4_K : SixBitScales {
  static constexpr int kElements = 256, kBytes = 144;
  using SixBitScales::SixBitScales;
  Columns low(uint32_t j) const { return fields<4>(p + 16 + 32 * (j / 2), 4 * (j % 2)); }
};
struct FileQ5_K : SixBitScales {
  static constexpr int kElements = 256, kBytes = 176;
  using SixBitScales::SixBitScales;
  Columns low(uint32_t j) const { return fields<4>(p + 48 + 32 * (j / 2), 4 * (j % 2)); }
  Columns high(uint32_t j) const { return fields<1>(p + 16, j); }
};
struct FileQ6_K {
  static constexpr int kElements = 256, kBytes = 210;
  Columns low(uint32_t j) const { return fields<4>(p + 64 * (j / 4) + 32 * (j % 2), j % 4 / 2 * 4); }
  Columns high(uint32_t j) const { return fields<2>(p + 128 + 32 * (j / 4), 2 * (j % 4)); }
  void scales(uint32_t j, int lane, uint8_t* to) const { to[lane] = p[192 + 2 * j], to[16 + lane] = p[193 + 2 * j]; }
  void header(int lane, uint8_t* to) const { copy_half(p + 208, lane, to); }
  const uint8_t* p;
};

// ---- a row of a group ----

// The 32 columns from 32 j of a block of the file.
template <PanelKind kKind, class F>
inline void pack_block(const F& file, uint32_t j, int lane, uint8_t* block) {
  constexpr PanelFormat kFormat = format_of(kKind);
  store_plane<kFormat.low_bits>(file.low(j), lane, block);
  [[maybe_unused]] uint8_t* high = block + 64 * kFormat.low_bits;
  if constexpr (requires { file.store_high(j, lane, high); }) {
    file.store_high(j, lane, high);
  } else if constexpr (kFormat.high_bits > 0) {
    store_plane<kFormat.high_bits>(file.high(j), lane, high);
  }
  file.scales(j, lane, block + kFormat.plane_bytes());
}

template <PanelKind kKind, class F>
void pack(const uint8_t* row, std::span<const int64_t> columns, int lane, uint8_t* header, uint8_t* blocks) {
  constexpr int64_t kBlocks = F::kElements / kBlockColumns;
  const auto block_of = [row](int64_t column) {
    return F{row + static_cast<uint64_t>(column) / F::kElements * F::kBytes};
  };
  F file = block_of(columns.front());
  if (kBlocks > 1 && columns.size() == kBlocks) {  // a whole block: where its parts lie is known here
#pragma GCC unroll 8
    for (uint32_t j = 0; j < kBlocks; ++j) pack_block<kKind>(file, j, lane, blocks + j * block_bytes(kKind));
  } else {
    for (const int64_t column : columns) {
      if constexpr (kBlocks == 1) file = block_of(column);
      const auto j = static_cast<uint32_t>(static_cast<uint64_t>(column) % F::kElements / kBlockColumns);
      pack_block<kKind>(file, j, lane, blocks);
      blocks += block_bytes(kKind);
    }
  }
  if constexpr (format_of(kKind).header_bytes > 0) file.header(lane, header);
}

constexpr PackGroup kPackGroup[] = {
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    pack<PanelKind::kQ8_0, FileQ8_0>,
    pack<PanelKind::kQ4_0, FileQ4_0>,
    pack<PanelKind::kQ4_1, FileQ4_1>,
    pack<PanelKind::kQ5_0, FileQ5_0>,
    pack<PanelKind::kQ5_1, FileQ5_1>,
    pack<PanelKind::kQ2_K, FileQ2_K>,
    pack<PanelKind::kQ3_K, FileQ3_K>,
    pack<PanelKind::kQ4_K, FileQ4_K>,
    pack<PanelKind::kQ5_K, FileQ5_K>,
    pack<PanelKind::kQ6_K, FileQ6_K>,
    pack<PanelKind::kIQ4_NL, FileQ4_0>,  // the same bytes; the nibbles mean other numbers
    pack<PanelKind::kIQ4_XS, FileIQ4_XS>,
    pack<PanelKind::kMXFP4, FileMXFP4>,
};
static_assert(std::size(kPackGroup) == static_cast<size_t>(PanelKind::kCount));

// ---- and back ----

// Adds the bits that a plane holds of one lane's elements, moved up to bit `to`.
void read_plane(const uint8_t* plane, int bits, int to, int lane, int32_t (&q)[kBlockColumns]) {
  for (int column = 0; column < kBlockColumns; ++column) {
    const int at = (column % 16 / 4 * 2 + column / 16) * bits;  // layout.hpp: k * b
    const uint8_t byte = plane[at / 8 * 64 + 4 * lane + column % 4];
    q[column] |= ((byte >> (at % 8)) & ((1 << bits) - 1)) << to;
  }
}

float half_at(const uint8_t* p, int lane) { return kit::f16_to_f32(load<uint16_t>(p + 2 * lane)); }
float signed_at(const uint8_t* p, int lane) { return static_cast<float>(static_cast<int8_t>(p[lane])); }

// Of columns 0-15 and 16-31.
struct Scales {
  float scale[2], minimum[2];
};
Scales scales_of(PanelKind kind, const uint8_t* p, const uint8_t* header, int lane) {
  switch (kind) {
    case PanelKind::kQ4_1:
    case PanelKind::kQ5_1: {
      const float d = half_at(p, lane), m = half_at(p + 32, lane);
      return {{d, d}, {m, m}};
    }
    case PanelKind::kQ4_K:
    case PanelKind::kQ5_K: {
      const float d = half_at(header, lane) * static_cast<float>(p[lane]);
      const float m = -(half_at(header + 32, lane) * static_cast<float>(p[16 + lane]));
      return {{d, d}, {m, m}};
    }
    case PanelKind::kQ2_K: {
      const float d = half_at(header, lane), m = -half_at(header + 32, lane);
      const int first = p[lane], second = p[16 + lane];
      return {{d * static_cast<float>(first & 15), d * static_cast<float>(second & 15)},
              {m * static_cast<float>(first >> 4), m * static_cast<float>(second >> 4)}};
    }
    case PanelKind::kQ3_K:
    case PanelKind::kQ6_K: {
      const float d = half_at(header, lane);
      return {{d * signed_at(p, lane), d * signed_at(p + 16, lane)}, {}};
    }
    case PanelKind::kIQ4_XS: {
      const float d = half_at(header, lane) * signed_at(p, lane);
      return {{d, d}, {}};
    }
    case PanelKind::kMXFP4: {
      const float d = kit::e8m0_to_f32(p[lane]);
      return {{d, d}, {}};
    }
    default: {  // Q8_0, Q4_0, Q5_0, IQ4_NL
      const float d = half_at(p, lane);
      return {{d, d}, {}};
    }
  }
}

constexpr int kPieces = 8;  // the numbers k of layout.hpp

// The elements with number k of a block, 4 of each lane.
void elements_of(const PanelFormat& f, const uint8_t* block, int k, int16_t (&x)[4 * kPanelRows]) {
  const int low_at = k * f.low_bits, high_at = k * f.high_bits;
  const uint8_t *low = block + low_at / 8 * 64, *high = block + 64 * f.low_bits + high_at / 8 * 64;
  const int low_mask = (1 << f.low_bits) - 1, high_mask = (1 << f.high_bits) - 1;
  for (int i = 0; i < 4 * kPanelRows; ++i) x[i] = static_cast<int16_t>((low[i] >> low_at % 8) & low_mask);
  if (f.high_bits > 0) {
    for (int i = 0; i < 4 * kPanelRows; ++i) {
      x[i] = static_cast<int16_t>(x[i] | ((high[i] >> high_at % 8) & high_mask) << f.low_bits);
    }
  }
  if (f.has_codebook()) {
    for (int16_t& e : x) e = static_cast<int16_t>(f.value_of(e));
  } else {
    for (int16_t& e : x) e = static_cast<int16_t>(e - f.offset);
  }
}

int largest_element(const PanelFormat& f) {
  if (!f.has_codebook()) return std::max(f.offset, (1 << (f.low_bits + f.high_bits)) - 1 - f.offset);
  int largest = 0;
  for (int code = 0; code < 16; ++code) largest = std::max(largest, std::abs(f.value_of(code)));
  return largest;
}

}  // namespace

PackGroup pack_group(PanelKind kind) { return kPackGroup[static_cast<int>(kind)]; }

void add_squares(PanelKind kind, const uint8_t* block, const uint8_t* header, LaneSquares* to) {
  const PanelFormat& f = format_of(kind);
  int32_t sums[2][4 * kPanelRows] = {}, squares[2][4 * kPanelRows] = {};  // by halves of the columns
  for (int k = 0; k < kPieces; ++k) {
    int16_t x[4 * kPanelRows];
    elements_of(f, block, k, x);
    for (int i = 0; i < 4 * kPanelRows; ++i) sums[k % 2][i] += x[i], squares[k % 2][i] += int32_t{x[i]} * x[i];
  }
  for (int lane = 0; lane < kPanelRows; ++lane) {
    const Scales s = scales_of(kind, block + f.plane_bytes(), header, lane);
    for (int half = 0; half < 2; ++half) {
      const auto all = [&](const int32_t* x) {
        return x[4 * lane] + x[4 * lane + 1] + x[4 * lane + 2] + x[4 * lane + 3];
      };
      const double d = s.scale[half], m = s.minimum[half], term = std::fabs(d) * largest_element(f) + std::fabs(m);
      to->values[lane] += d * d * all(squares[half]) + 2 * d * m * all(sums[half]) + 16 * m * m;
      to->terms[lane] += 16 * term * term;
    }
  }
}

void read_block(PanelKind kind, const uint8_t* block, const uint8_t* header, int lane, float* out) {
  const PanelFormat& f = format_of(kind);
  int32_t q[kBlockColumns] = {};
  read_plane(block, f.low_bits, 0, lane, q);
  if (f.high_bits > 0) read_plane(block + 64 * f.low_bits, f.high_bits, f.low_bits, lane, q);
  for (int32_t& x : q) x = f.has_codebook() ? f.value_of(x) : x - f.offset;
  const Scales s = scales_of(kind, block + f.plane_bytes(), header, lane);
  for (int i = 0; i < kBlockColumns; ++i) out[i] = s.scale[i / 16] * static_cast<float>(q[i]) + s.minimum[i / 16];
}

}  // namespace motley::cpu
