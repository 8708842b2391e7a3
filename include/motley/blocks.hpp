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

// Quantised formats say what an element's bits are (`code`), and the K ones which scale they are multiplied with.
struct Q4_0 : Layout<MOTLEY_Q4_0, 32, 18, 32> {
  static constexpr int code(const uint8_t* p, int e) { return nibble(p + 2, e); }
  static constexpr float at(const uint8_t* p, int e) { return half(p) * static_cast<float>(code(p, e) - 8); }
};
struct Q4_1 : Layout<MOTLEY_Q4_1, 32, 20, 32> {
  static constexpr int code(const uint8_t* p, int e) { return nibble(p + 4, e); }
  static constexpr float at(const uint8_t* p, int e) { return half(p) * static_cast<float>(code(p, e)) + half(p + 2); }
};
struct Q5_0 : Layout<MOTLEY_Q5_0, 32, 22, 32> {
  static constexpr int code(const uint8_t* p, int e) { return nibble(p + 6, e) | fifth(p + 2, e); }
  static constexpr float at(const uint8_t* p, int e) { return half(p) * static_cast<float>(code(p, e) - 16); }
};
struct Q5_1 : Layout<MOTLEY_Q5_1, 32, 24, 32> {
  static constexpr int code(const uint8_t* p, int e) { return nibble(p + 8, e) | fifth(p + 4, e); }
  static constexpr float at(const uint8_t* p, int e) { return half(p) * static_cast<float>(code(p, e)) + half(p + 2); }
};
struct Q8_0 : Layout<MOTLEY_Q8_0, 32, 34, 32> {
  static constexpr int code(const uint8_t* p, int e) { return static_cast<int8_t>(p[2 + e]); }
  static constexpr float at(const uint8_t* p, int e) { return half(p) * static_cast<float>(code(p, e)); }
};

struct F8E4M3 : Layout<MOTLEY_F8_E4M3_S64, 64, 68, 32> {
  static constexpr int code(const uint8_t* p, int e) { return p[4 + e]; }
  static constexpr float at(const uint8_t* p, int e) {
    return std::bit_cast<float>(double_word(p)) * f8_e4m3_value(static_cast<uint8_t>(code(p, e)));
  }
};

struct Q2K : Layout<MOTLEY_Q2_K, 256, 84, 16> {
  static constexpr int code(const uint8_t* p, int e) {
    return (p[16 + e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2)) & 3;
  }
  static constexpr float at(const uint8_t* p, int e) {
    const int s = p[e / 16];
    return half(p + 80) * static_cast<float>(s & 15) * static_cast<float>(code(p, e)) -
           half(p + 82) * static_cast<float>(s >> 4);
  }
};
struct Q3K : Layout<MOTLEY_Q3_K, 256, 110, 16> {
  static constexpr int code(const uint8_t* p, int e) {
    const int n = e / 128, g = (e % 128) / 32, l = e % 32;
    return ((p[32 + 32 * n + l] >> (2 * g)) & 3) | ((p[l] >> (4 * n + g)) & 1) << 2;
  }
  static constexpr int scale(const uint8_t* p, int k) {  // of elements from 16 * k
    const uint8_t* const s = p + 96;
    return ((k < 8 ? s[k] & 15 : s[k - 8] >> 4) | ((s[8 + k % 4] >> (2 * (k / 4))) & 3) << 4) - 32;
  }
  static constexpr float at(const uint8_t* p, int e) {
    return half(p + 108) * static_cast<float>(scale(p, e / 16)) * static_cast<float>(code(p, e) - 4);
  }
};
// Q4_K, and Q5_K with its 32 bytes of fifth bits between the scales and the nibbles.
template <bool kFifth>
struct Q4OrQ5K : Layout<kFifth ? MOTLEY_Q5_K : MOTLEY_Q4_K, 256, kFifth ? 176 : 144, 32> {
  static constexpr int code(const uint8_t* p, int e) {
    const int j = e / 32, l = e % 32;
    const uint8_t byte = p[(kFifth ? 48 : 16) + 32 * (j / 2) + l];
    return (j % 2 ? byte >> 4 : byte & 15) | (kFifth ? ((p[16 + l] >> j) & 1) << 4 : 0);
  }
  static constexpr int scale(const uint8_t* p, int j) {  // of elements from 32 * j
    const uint8_t* const s = p + 4;
    return j < 4 ? s[j] & 63 : (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
  }
  static constexpr int min(const uint8_t* p, int j) {
    const uint8_t* const s = p + 4;
    return j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
  }
  static constexpr float at(const uint8_t* p, int e) {
    return half(p) * static_cast<float>(scale(p, e / 32)) * static_cast<float>(code(p, e)) -
           half(p + 2) * static_cast<float>(min(p, e / 32));
  }
};
using Q4K = Q4OrQ5K<false>;
using Q5K = Q4OrQ5K<true>;
struct Q6K : Layout<MOTLEY_Q6_K, 256, 210, 16> {
  static constexpr int code(const uint8_t* p, int e) {
    const int n = e / 128, g = (e % 128) / 32, l = e % 32;
    const uint8_t byte = p[64 * n + 32 * (g % 2) + l];
    return (g < 2 ? byte & 15 : byte >> 4) | ((p[128 + 32 * n + l] >> (2 * g)) & 3) << 4;
  }
  static constexpr int scale(const uint8_t* p, int k) { return static_cast<int8_t>(p[192 + k]); }
  static constexpr float at(const uint8_t* p, int e) {
    return half(p + 208) * static_cast<float>(scale(p, e / 16)) * static_cast<float>(code(p, e) - 32);
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
  static constexpr int code(const uint8_t* p, int e) { return nibble(p + 2, e); }
  static constexpr float at(const uint8_t* p, int e) { return half(p) * static_cast<float>(iq4_value(code(p, e))); }
};
struct Iq4Xs : Layout<MOTLEY_IQ4_XS, 256, 136, 32> {
  static constexpr int code(const uint8_t* p, int e) { return nibble(p + 8 + e / 32 * 16, e % 32); }
  static constexpr int scale(const uint8_t* p, int j) {  // of elements from 32 * j
    return (((p[4 + j / 2] >> (4 * (j % 2))) & 15) | ((word(p + 2) >> (2 * j)) & 3) << 4) - 32;
  }
  static constexpr float at(const uint8_t* p, int e) {
    return half(p) * static_cast<float>(scale(p, e / 32)) * static_cast<float>(iq4_value(code(p, e)));
  }
};
struct Mxfp4 : Layout<MOTLEY_MXFP4, 32, 17, 32> {
  static constexpr int code(const uint8_t* p, int e) { return nibble(p + 1, e); }
  static constexpr float at(const uint8_t* p, int e) {
    return e8m0_value(p[0]) * static_cast<float>(fp4_value(code(p, e)));
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
