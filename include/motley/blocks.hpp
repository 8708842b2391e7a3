// Every number format as formulas: the value of element `e` of a block. Constant expressions in plain types, so that
// the compiler of any device can take them. For kit, the plugins on it and the model room. The layouts:
// docs/formats/gguf.md, safetensors.md. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>

#include "motley/types.h"

namespace motley::blocks {

constexpr uint16_t word(const uint8_t* at) { return static_cast<uint16_t>(at[0] | at[1] << 8); }
constexpr uint32_t double_word(const uint8_t* at) { return word(at) | static_cast<uint32_t>(word(at + 2)) << 16; }

constexpr float f16_value(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 31u, fraction = bits & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent == 0) {  // zero and subnormals: exact in f32
    const float value = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
}

// E4M3 of "FP8 formats for deep learning" (arXiv:2209.05433): no infinities, S.1111.111 is no number.
constexpr float f8_e4m3_value(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24, exponent = (bits >> 3) & 15u, fraction = bits & 7u;
  if ((bits & 0x7f) == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent == 0) return (sign ? -0x1p-9f : 0x1p-9f) * static_cast<float>(fraction);
  return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (fraction << 20));
}

constexpr float bf16_value(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// 2^(exponent - 128): the two smallest are subnormal numbers of f32.
constexpr float e8m0_value(uint8_t exponent) {
  return std::bit_cast<float>(exponent < 2 ? 0x200000u << exponent : static_cast<uint32_t>(exponent - 1) << 23);
}

constexpr float half(const uint8_t* at) { return f16_value(word(at)); }

// Elements of a block, its bytes, and on whose multiples a column cut may fall.
template <int32_t dtype, int32_t block, int32_t bytes, int32_t sub_block>
struct Layout {
  static constexpr int32_t kDtype = dtype, kBlock = block, kBytes = bytes, kSubBlock = sub_block;
};

// Element e of 32 nibbles: low halves first.
constexpr int nibble(const uint8_t* at, int e) { return e < 16 ? at[e] & 15 : at[e - 16] >> 4; }
// Bit e of the 32 bits at `at`, as the fifth of an element.
constexpr int fifth(const uint8_t* at, int e) { return static_cast<int>((double_word(at) >> e) & 1) << 4; }

struct F32 : Layout<MOTLEY_F32, 1, 4, 1> {
  static constexpr float at(const uint8_t* p, int) { return std::bit_cast<float>(double_word(p)); }
};
struct F16 : Layout<MOTLEY_F16, 1, 2, 1> {
  static constexpr float at(const uint8_t* p, int) { return half(p); }
};
struct Bf16 : Layout<MOTLEY_BF16, 1, 2, 1> {
  static constexpr float at(const uint8_t* p, int) { return bf16_value(word(p)); }
};

struct Q4_0 : Layout<MOTLEY_Q4_0, 32, 18, 32> {
  static constexpr float at(const uint8_t* p, int e) { return half(p) * static_cast<float>(nibble(p + 2, e) - 8); }
};
struct Q4_1 : Layout<MOTLEY_Q4_1, 32, 20, 32> {
  static constexpr float at(const uint8_t* p, int e) {
    return half(p) * static_cast<float>(nibble(p + 4, e)) + half(p + 2);
  }
};
struct Q5_0 : Layout<MOTLEY_Q5_0, 32, 22, 32> {
  static constexpr float at(const uint8_t* p, int e) {
    return half(p) * static_cast<float>((nibble(p + 6, e) | fifth(p + 2, e)) - 16);
  }
};
struct Q5_1 : Layout<MOTLEY_Q5_1, 32, 24, 32> {
  static constexpr float at(const uint8_t* p, int e) {
    return half(p) * static_cast<float>(nibble(p + 8, e) | fifth(p + 4, e)) + half(p + 2);
  }
};
struct Q8_0 : Layout<MOTLEY_Q8_0, 32, 34, 32> {
  static constexpr float at(const uint8_t* p, int e) {
    return half(p) * static_cast<float>(static_cast<int8_t>(p[2 + e]));
  }
};

struct F8E4M3 : Layout<MOTLEY_F8_E4M3_S64, 64, 68, 32> {
  static constexpr float at(const uint8_t* p, int e) {
    return std::bit_cast<float>(double_word(p)) * f8_e4m3_value(p[4 + e]);
  }
};

struct Q2K : Layout<MOTLEY_Q2_K, 256, 84, 16> {
  static constexpr float at(const uint8_t* p, int e) {
    const int n = e / 128, g = (e % 128) / 32, l = e % 32, s = p[e / 16];
    const int q = (p[16 + 32 * n + l] >> (2 * g)) & 3;
    return half(p + 80) * static_cast<float>(s & 15) * static_cast<float>(q) -
           half(p + 82) * static_cast<float>(s >> 4);
  }
};
struct Q3K : Layout<MOTLEY_Q3_K, 256, 110, 16> {
  static constexpr float at(const uint8_t* p, int e) {
    const uint8_t *hm = p, *qs = p + 32, *s = p + 96;
    const int n = e / 128, g = (e % 128) / 32, l = e % 32, k = e / 16;
    const int low = (qs[32 * n + l] >> (2 * g)) & 3, high = (hm[l] >> (4 * n + g)) & 1;
    const int scale = ((k < 8 ? s[k] & 15 : s[k - 8] >> 4) | ((s[8 + k % 4] >> (2 * (k / 4))) & 3) << 4) - 32;
    return half(p + 108) * static_cast<float>(scale) * static_cast<float>((low | high << 2) - 4);
  }
};
// Q4_K, and Q5_K with its 32 bytes of fifth bits between the scales and the nibbles.
template <bool kFifth>
constexpr float q4_or_q5_k(const uint8_t* p, int e) {
  const uint8_t *s = p + 4, *qh = p + 16, *qs = p + (kFifth ? 48 : 16);
  const int j = e / 32, l = e % 32;
  const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
  const int min = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
  const uint8_t byte = qs[32 * (j / 2) + l];
  const int q = (j % 2 ? byte >> 4 : byte & 15) | (kFifth ? ((qh[l] >> j) & 1) << 4 : 0);
  return half(p) * static_cast<float>(scale) * static_cast<float>(q) - half(p + 2) * static_cast<float>(min);
}
struct Q4K : Layout<MOTLEY_Q4_K, 256, 144, 32> {
  static constexpr float at(const uint8_t* p, int e) { return q4_or_q5_k<false>(p, e); }
};
struct Q5K : Layout<MOTLEY_Q5_K, 256, 176, 32> {
  static constexpr float at(const uint8_t* p, int e) { return q4_or_q5_k<true>(p, e); }
};
struct Q6K : Layout<MOTLEY_Q6_K, 256, 210, 16> {
  static constexpr float at(const uint8_t* p, int e) {
    const uint8_t *ql = p, *qh = p + 128;
    const int n = e / 128, g = (e % 128) / 32, l = e % 32;
    const uint8_t byte = ql[64 * n + 32 * (g % 2) + l];
    const int low = g < 2 ? byte & 15 : byte >> 4, high = (qh[32 * n + l] >> (2 * g)) & 3;
    const int scale = static_cast<int8_t>(p[192 + e / 16]);
    return half(p + 208) * static_cast<float>(scale) * static_cast<float>((low | high << 4) - 32);
  }
};

constexpr int iq4_value(int nibble) {
  constexpr int8_t kValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return kValues[nibble];
}
constexpr int fp4_value(int nibble) {
  constexpr int8_t kValues[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  return kValues[nibble];
}
struct Iq4Nl : Layout<MOTLEY_IQ4_NL, 32, 18, 32> {
  static constexpr float at(const uint8_t* p, int e) {
    return half(p) * static_cast<float>(iq4_value(nibble(p + 2, e)));
  }
};
struct Iq4Xs : Layout<MOTLEY_IQ4_XS, 256, 136, 32> {
  static constexpr float at(const uint8_t* p, int e) {
    const int j = e / 32;
    const int low = (p[4 + j / 2] >> (4 * (j % 2))) & 15, scale = (low | ((word(p + 2) >> (2 * j)) & 3) << 4) - 32;
    return half(p) * static_cast<float>(scale) * static_cast<float>(iq4_value(nibble(p + 8 + 16 * j, e % 32)));
  }
};
struct Mxfp4 : Layout<MOTLEY_MXFP4, 32, 17, 32> {
  static constexpr float at(const uint8_t* p, int e) {
    return e8m0_value(p[0]) * static_cast<float>(fp4_value(nibble(p + 1, e)));
  }
};

// Calls `f` with an object of the format's type; false if there is none of that dtype.
template <class F>
bool visit(int32_t dtype, F&& f) {
  const auto pick = [&]<class... Formats>(Formats... formats) {
    return ((Formats::kDtype == dtype && (f(formats), true)) || ...);
  };
  return pick(F32{}, F16{}, Bf16{}, Q8_0{}, Q4_0{}, Q4_1{}, Q5_0{}, Q5_1{}, Q2K{}, Q3K{}, Q4K{}, Q5K{}, Q6K{}, Iq4Nl{},
              Iq4Xs{}, Mxfp4{}, F8E4M3{});
}

}  // namespace motley::blocks
