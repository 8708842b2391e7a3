// SPDX-License-Identifier: Apache-2.0
#include "cpu/block.hpp"

#include <cstddef>
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
struct Columns {
  Words a, b;
};

constexpr uint32_t every(uint32_t byte) { return byte * 0x01010101u; }
Words words(const uint8_t* p) { return load<Words>(p); }

// The low or, from bit 4, the high halves of 32 bytes.
Columns nibbles(const uint8_t* p, int bit) {
  return {(words(p) >> bit) & every(15), (words(p + 16) >> bit) & every(15)};
}
// 16 bytes: low halves, then high halves.
Columns split_nibbles(const uint8_t* p) { return {words(p) & every(15), (words(p) >> 4) & every(15)}; }
// Two bits of each of 32 bytes, from bit `bit` up.
Columns pairs(const uint8_t* p, int bit) { return {(words(p) >> bit) & every(3), (words(p + 16) >> bit) & every(3)}; }
// One bit of each of 32 bytes.
Columns bits(const uint8_t* p, int bit) { return {(words(p) >> bit) & every(1), (words(p + 16) >> bit) & every(1)}; }
Columns join(const Columns& low, const Columns& high, int low_bits) {
  return {low.a | high.a << low_bits, low.b | high.b << low_bits};
}

// Bit k of 16 bits as byte k, 0 or 1.
Words spread(uint32_t sixteen) {
  const auto eight = [](uint64_t x) {
    const uint64_t own = (x * 0x0101010101010101u) & 0x8040201008040201u;  // bit k in byte k
    return ((own + 0x7f7f7f7f7f7f7f7fu) >> 7) & 0x0101010101010101u;
  };
  const uint64_t both[2] = {eight(sixteen & 255), eight(sixteen >> 8)};
  return load<Words>(both);
}
Columns fifth_bits(const uint8_t* p) {
  const auto qh = load<uint32_t>(p);
  return {spread(qh & 0xffff), spread(qh >> 16)};
}

// ---- the file's blocks: elements, scales of one block of 32, header ----

struct FileQ8_0 {
  static constexpr int kElements = 32, kBytes = 34;
  static Columns columns(const uint8_t* p, int) { return {words(p + 2) ^ every(128), words(p + 18) ^ every(128)}; }
  static void scales(const uint8_t* p, int, int lane, uint8_t* to) { copy_half(p, lane, to); }
};
struct FileQ4_0 {
  static constexpr int kElements = 32, kBytes = 18;
  static Columns columns(const uint8_t* p, int) { return split_nibbles(p + 2); }
  static void scales(const uint8_t* p, int, int lane, uint8_t* to) { copy_half(p, lane, to); }
};
struct FileQ5_0 {
  static constexpr int kElements = 32, kBytes = 22;
  static Columns columns(const uint8_t* p, int) { return join(split_nibbles(p + 6), fifth_bits(p + 2), 4); }
  static void scales(const uint8_t* p, int, int lane, uint8_t* to) { copy_half(p, lane, to); }
};
struct WithMinimum {
  static void scales(const uint8_t* p, int, int lane, uint8_t* to) {
    copy_half(p, lane, to);
    copy_half(p + 2, lane, to + 32);
  }
};
struct FileQ4_1 : WithMinimum {
  static constexpr int kElements = 32, kBytes = 20;
  static Columns columns(const uint8_t* p, int) { return split_nibbles(p + 4); }
};
struct FileQ5_1 : WithMinimum {
  static constexpr int kElements = 32, kBytes = 24;
  static Columns columns(const uint8_t* p, int) { return join(split_nibbles(p + 8), fifth_bits(p + 4), 4); }
};

struct FileMXFP4 {
  static constexpr int kElements = 32, kBytes = 17;
  static Columns columns(const uint8_t* p, int) { return split_nibbles(p + 1); }
  static void scales(const uint8_t* p, int, int lane, uint8_t* to) { to[lane] = p[0]; }
};
struct FileIQ4_XS {
  static constexpr int kElements = 256, kBytes = 136;
  static Columns columns(const uint8_t* p, int j) { return split_nibbles(p + 8 + 16 * j); }
  static void scales(const uint8_t* p, int j, int lane, uint8_t* to) {
    const int low = (p[4 + j / 2] >> (4 * (j % 2))) & 15, high = (load<uint16_t>(p + 2) >> (2 * j)) & 3;
    to[lane] = static_cast<uint8_t>((low | high << 4) - 32);
  }
  static void header(const uint8_t* p, int lane, uint8_t* to) { copy_half(p, lane, to); }
};

struct FileQ2_K {
  static constexpr int kElements = 256, kBytes = 84;
  static Columns columns(const uint8_t* p, int j) { return pairs(p + 16 + 32 * (j / 4), 2 * (j % 4)); }
  static void scales(const uint8_t* p, int j, int lane, uint8_t* to) {
    to[lane] = p[2 * j];
    to[16 + lane] = p[2 * j + 1];
  }
  static void header(const uint8_t* p, int lane, uint8_t* to) { WithMinimum::scales(p + 80, 0, lane, to); }
};
struct FileQ3_K {
  static constexpr int kElements = 256, kBytes = 110;
  static Columns columns(const uint8_t* p, int j) {
    return join(pairs(p + 32 + 32 * (j / 4), 2 * (j % 4)), bits(p, j), 2);
  }
  static void scales(const uint8_t* p, int j, int lane, uint8_t* to) {
    const uint8_t* s = p + 96;
    for (int i = 0; i < 2; ++i) {
      const int k = 2 * j + i, low = k < 8 ? s[k] & 15 : s[k - 8] >> 4, high = (s[8 + k % 4] >> (2 * (k / 4))) & 3;
      to[16 * i + lane] = static_cast<uint8_t>((low | high << 4) - 32);
    }
  }
  static void header(const uint8_t* p, int lane, uint8_t* to) { copy_half(p + 108, lane, to); }
};

// Scales and minima of 6 bits, and the header, of Q4_K and Q5_K.
struct SixBitScales {
  static void scales(const uint8_t* p, int j, int lane, uint8_t* to) {
    const uint8_t* s = p + 4;
    to[lane] = static_cast<uint8_t>(j < 4 ? s[j] & 63 : (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4));
    to[16 + lane] = static_cast<uint8_t>(j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | ((s[j] >> 6) << 4));
  }
  static void header(const uint8_t* p, int lane, uint8_t* to) { WithMinimum::scales(p, 0, lane, to); }
};
struct FileQ4_K : SixBitScales {
  static constexpr int kElements = 256, kBytes = 144;
  static Columns columns(const uint8_t* p, int j) { return nibbles(p + 16 + 32 * (j / 2), 4 * (j % 2)); }
};
struct FileQ5_K : SixBitScales {
  static constexpr int kElements = 256, kBytes = 176;
  static Columns columns(const uint8_t* p, int j) {
    return join(nibbles(p + 48 + 32 * (j / 2), 4 * (j % 2)), bits(p + 16, j), 4);
  }
};
struct FileQ6_K {
  static constexpr int kElements = 256, kBytes = 210;
  static Columns columns(const uint8_t* p, int j) {
    const int n = j / 4, g = j % 4;
    return join(nibbles(p + 64 * n + 32 * (g % 2), g < 2 ? 0 : 4), pairs(p + 128 + 32 * n, 2 * g), 4);
  }
  static void scales(const uint8_t* p, int j, int lane, uint8_t* to) {
    to[lane] = p[192 + 2 * j];
    to[16 + lane] = p[192 + 2 * j + 1];
  }
  static void header(const uint8_t* p, int lane, uint8_t* to) { copy_half(p + 208, lane, to); }
};

// ---- a row of a group ----

// One lane of a plane of kBits an element, from bytes that have no other bits.
template <int kBits>
void store_plane(const Columns& c, int lane, uint8_t* plane) {
  const auto put = [=](int piece, uint32_t word) { std::memcpy(plane + 64 * piece + 4 * lane, &word, 4); };
  const Words x = c.a | c.b << (kBits % 8);
  if constexpr (kBits == 8) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) put(2 * j, c.a[j]), put(2 * j + 1, c.b[j]);
  } else if constexpr (kBits == 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) put(j, x[j]);
  } else if constexpr (kBits == 2) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) put(h, x[2 * h] | x[2 * h + 1] << 4);
  } else {
    put(0, x[0] | x[1] << 2 | x[2] << 4 | x[3] << 6);
  }
}

template <PanelKind kKind, class F>
void pack(const uint8_t* row, std::span<const int64_t> columns, int lane, uint8_t* header, uint8_t* blocks) {
  constexpr PanelFormat kFormat = format_of(kKind);
  constexpr int kLow = kFormat.low_bits, kHigh = kFormat.high_bits;
  const uint8_t* p = row;
  for (const int64_t column : columns) {
    p = row + column / F::kElements * F::kBytes;
    const int j = static_cast<int>(column % F::kElements / kBlockColumns);
    const Columns c = F::columns(p, j);
    if constexpr (kHigh == 0) {
      store_plane<kLow>(c, lane, blocks);
    } else {
      constexpr uint32_t kLowMask = every((1u << kLow) - 1), kHighMask = every((1u << kHigh) - 1);
      store_plane<kLow>({c.a & kLowMask, c.b & kLowMask}, lane, blocks);
      store_plane<kHigh>({(c.a >> kLow) & kHighMask, (c.b >> kLow) & kHighMask}, lane, blocks + 64 * kLow);
    }
    F::scales(p, j, lane, blocks + kFormat.plane_bytes());
    blocks += block_bytes(kKind);
  }
  if constexpr (kFormat.header_bytes > 0) F::header(p, lane, header);
}

constexpr PackGroup kPackGroup[] = {
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

}  // namespace

PackGroup pack_group(PanelKind kind) { return kPackGroup[static_cast<int>(kind)]; }

void read_block(PanelKind kind, const uint8_t* block, const uint8_t* header, int lane, float* out) {
  const PanelFormat& f = format_of(kind);
  int32_t q[kBlockColumns] = {};
  read_plane(block, f.low_bits, 0, lane, q);
  if (f.high_bits > 0) read_plane(block + 64 * f.low_bits, f.high_bits, f.low_bits, lane, q);
  for (int32_t& x : q) x = f.values != nullptr ? f.values[x] : x - f.offset;
  const Scales s = scales_of(kind, block + f.plane_bytes(), header, lane);
  for (int i = 0; i < kBlockColumns; ++i) out[i] = s.scale[i / 16] * static_cast<float>(q[i]) + s.minimum[i / 16];
}

}  // namespace motley::cpu
