// The table of number formats. Formulas: docs/formats/gguf.md.
// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <cmath>
#include <cstring>

#include "kit/kit.hpp"

namespace motley::kit {

float f16_to_f32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 31u, fraction = bits & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent == 0) {  // zero and subnormals: exact in f32
    const float value = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
}

uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or beyond
  if (magnitude < 0x38800000u) {                                               // below 2^-14: a multiple of 2^-24
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p24f;
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(scaled)));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

float bf16_to_f32(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float e8m0_to_f32(uint8_t exponent) { return std::ldexp(1.0f, exponent - 128); }

namespace {

template <class T>
T load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
float half(const uint8_t* at) { return f16_to_f32(load<uint16_t>(at)); }

void from_f32(const void* from, int64_t count, float* out) { std::memcpy(out, from, static_cast<size_t>(count) * 4); }

void from_f16(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (int64_t i = 0; i < count; ++i) out[i] = half(p + 2 * i);
}

void from_bf16(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_f32(load<uint16_t>(p + 2 * i));
}

void from_q4_0(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (; count > 0; count -= 32, p += 18, out += 32) {
    const float d = half(p);
    for (int e = 0; e < 16; ++e) {
      out[e] = d * static_cast<float>((p[2 + e] & 15) - 8);
      out[e + 16] = d * static_cast<float>((p[2 + e] >> 4) - 8);
    }
  }
}

void from_q4_1(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (; count > 0; count -= 32, p += 20, out += 32) {
    const float d = half(p), m = half(p + 2);
    for (int e = 0; e < 16; ++e) {
      out[e] = d * static_cast<float>(p[4 + e] & 15) + m;
      out[e + 16] = d * static_cast<float>(p[4 + e] >> 4) + m;
    }
  }
}

// Bit e of the 32 bits at `qh`: the fifth of element e.
int fifth(uint32_t qh, int e) { return static_cast<int>((qh >> e) & 1) << 4; }

void from_q5_0(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (; count > 0; count -= 32, p += 22, out += 32) {
    const float d = half(p);
    const auto qh = load<uint32_t>(p + 2);
    for (int e = 0; e < 16; ++e) {
      out[e] = d * static_cast<float>(((p[6 + e] & 15) | fifth(qh, e)) - 16);
      out[e + 16] = d * static_cast<float>(((p[6 + e] >> 4) | fifth(qh, e + 16)) - 16);
    }
  }
}

void from_q5_1(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (; count > 0; count -= 32, p += 24, out += 32) {
    const float d = half(p), m = half(p + 2);
    const auto qh = load<uint32_t>(p + 4);
    for (int e = 0; e < 16; ++e) {
      out[e] = d * static_cast<float>((p[8 + e] & 15) | fifth(qh, e)) + m;
      out[e + 16] = d * static_cast<float>((p[8 + e] >> 4) | fifth(qh, e + 16)) + m;
    }
  }
}

void from_q8_0(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (; count > 0; count -= 32, p += 34, out += 32) {
    const float d = half(p);
    for (int e = 0; e < 32; ++e) out[e] = d * static_cast<float>(static_cast<int8_t>(p[2 + e]));
  }
}

void from_q2_k(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (; count > 0; count -= 256, p += 84, out += 256) {
    const float d = half(p + 80), dmin = half(p + 82);
    for (int e = 0; e < 256; ++e) {
      const int n = e / 128, g = (e % 128) / 32, l = e % 32, s = p[e / 16];
      const int q = (p[16 + 32 * n + l] >> (2 * g)) & 3;
      out[e] = d * static_cast<float>(s & 15) * static_cast<float>(q) - dmin * static_cast<float>(s >> 4);
    }
  }
}

void from_q3_k(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (; count > 0; count -= 256, p += 110, out += 256) {
    const uint8_t *hm = p, *qs = p + 32, *s = p + 96;
    const float d = half(p + 108);
    for (int e = 0; e < 256; ++e) {
      const int n = e / 128, g = (e % 128) / 32, l = e % 32, k = e / 16;
      const int low = (qs[32 * n + l] >> (2 * g)) & 3, high = (hm[l] >> (4 * n + g)) & 1;
      const int scale = ((k < 8 ? s[k] & 15 : s[k - 8] >> 4) | ((s[8 + k % 4] >> (2 * (k / 4))) & 3) << 4) - 32;
      out[e] = d * static_cast<float>(scale) * static_cast<float>((low | high << 2) - 4);
    }
  }
}

// Q4_K, and Q5_K with its 32 bytes of fifth bits between the scales and the nibbles.
template <bool kFifth>
void from_q4_or_q5_k(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (; count > 0; count -= 256, p += kFifth ? 176 : 144, out += 256) {
    const float d = half(p), dmin = half(p + 2);
    const uint8_t *s = p + 4, *qh = p + 16, *qs = p + (kFifth ? 48 : 16);
    for (int j = 0; j < 8; ++j) {
      const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
      const int min = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
      const float dj = d * static_cast<float>(scale), mj = dmin * static_cast<float>(min);
      for (int l = 0; l < 32; ++l) {
        const uint8_t byte = qs[32 * (j / 2) + l];
        const int q = (j % 2 ? byte >> 4 : byte & 15) | (kFifth ? ((qh[l] >> j) & 1) << 4 : 0);
        out[32 * j + l] = dj * static_cast<float>(q) - mj;
      }
    }
  }
}

void from_q6_k(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (; count > 0; count -= 256, p += 210, out += 256) {
    const uint8_t *ql = p, *qh = p + 128;
    const float d = half(p + 208);
    for (int e = 0; e < 256; ++e) {
      const int n = e / 128, g = (e % 128) / 32, l = e % 32;
      const uint8_t byte = ql[64 * n + 32 * (g % 2) + l];
      const int low = g < 2 ? byte & 15 : byte >> 4, high = (qh[32 * n + l] >> (2 * g)) & 3;
      const int scale = static_cast<int8_t>(p[192 + e / 16]);
      out[e] = d * static_cast<float>(scale) * static_cast<float>((low | high << 4) - 32);
    }
  }
}

constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kFp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

void from_table(const uint8_t* nibbles, const int8_t (&values)[16], float scale, float* out) {
  for (int e = 0; e < 16; ++e) {
    out[e] = scale * static_cast<float>(values[nibbles[e] & 15]);
    out[e + 16] = scale * static_cast<float>(values[nibbles[e] >> 4]);
  }
}

void from_iq4_nl(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (; count > 0; count -= 32, p += 18, out += 32) from_table(p + 2, kIq4Values, half(p), out);
}

void from_iq4_xs(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (; count > 0; count -= 256, p += 136, out += 256) {
    const float d = half(p);
    const int high = load<uint16_t>(p + 2);
    for (int j = 0; j < 8; ++j) {
      const int low = (p[4 + j / 2] >> (4 * (j % 2))) & 15, scale = (low | ((high >> (2 * j)) & 3) << 4) - 32;
      from_table(p + 8 + 16 * j, kIq4Values, d * static_cast<float>(scale), out + 32 * j);
    }
  }
}

void from_mxfp4(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (; count > 0; count -= 32, p += 17, out += 32) from_table(p + 1, kFp4Values, e8m0_to_f32(p[0]), out);
}

constexpr Format kFormats[] = {
    {MOTLEY_F32, "F32", 1, 4, 1, from_f32},
    {MOTLEY_F16, "F16", 1, 2, 1, from_f16},
    {MOTLEY_BF16, "BF16", 1, 2, 1, from_bf16},
    {MOTLEY_Q8_0, "Q8_0", 32, 34, 32, from_q8_0},
    {MOTLEY_Q4_0, "Q4_0", 32, 18, 32, from_q4_0},
    {MOTLEY_Q4_1, "Q4_1", 32, 20, 32, from_q4_1},
    {MOTLEY_Q5_0, "Q5_0", 32, 22, 32, from_q5_0},
    {MOTLEY_Q5_1, "Q5_1", 32, 24, 32, from_q5_1},
    {MOTLEY_Q2_K, "Q2_K", 256, 84, 16, from_q2_k},
    {MOTLEY_Q3_K, "Q3_K", 256, 110, 16, from_q3_k},
    {MOTLEY_Q4_K, "Q4_K", 256, 144, 32, from_q4_or_q5_k<false>},
    {MOTLEY_Q5_K, "Q5_K", 256, 176, 32, from_q4_or_q5_k<true>},
    {MOTLEY_Q6_K, "Q6_K", 256, 210, 16, from_q6_k},
    {MOTLEY_IQ4_NL, "IQ4_NL", 32, 18, 32, from_iq4_nl},
    {MOTLEY_IQ4_XS, "IQ4_XS", 256, 136, 32, from_iq4_xs},
    {MOTLEY_MXFP4, "MXFP4", 32, 17, 32, from_mxfp4},
};

}  // namespace

const Format* find_format(int32_t dtype) {
  for (const Format& format : kFormats)
    if (format.dtype == dtype) return &format;
  return nullptr;
}

uint64_t weight_formats() {
  uint64_t mask = 0;
  for (const Format& format : kFormats) mask |= uint64_t{1} << format.dtype;
  return mask;
}

int64_t element_bytes(int32_t dtype) {
  switch (dtype) {
    case MOTLEY_F32:
    case MOTLEY_I32: return 4;
    case MOTLEY_F16:
    case MOTLEY_BF16: return 2;
    case MOTLEY_I8: return 1;
    default: return 0;
  }
}

}  // namespace motley::kit
