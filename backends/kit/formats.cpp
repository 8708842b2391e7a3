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

void from_q8_0(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (; count > 0; count -= 32, p += 34, out += 32) {
    const float d = half(p);
    for (int e = 0; e < 32; ++e) out[e] = d * static_cast<float>(static_cast<int8_t>(p[2 + e]));
  }
}

void from_q4_k(const void* from, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (; count > 0; count -= 256, p += 144, out += 256) {
    const float d = half(p), dmin = half(p + 2);
    const uint8_t *s = p + 4, *qs = p + 16;
    for (int j = 0; j < 8; ++j) {
      const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
      const int min = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
      const float dj = d * static_cast<float>(scale), mj = dmin * static_cast<float>(min);
      for (int l = 0; l < 32; ++l) {
        const uint8_t byte = qs[32 * (j / 2) + l];
        out[32 * j + l] = dj * static_cast<float>(j % 2 ? byte >> 4 : byte & 15) - mj;
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

constexpr Format kFormats[] = {
    {MOTLEY_F32, "F32", 1, 4, 1, from_f32},         {MOTLEY_F16, "F16", 1, 2, 1, from_f16},
    {MOTLEY_BF16, "BF16", 1, 2, 1, from_bf16},      {MOTLEY_Q8_0, "Q8_0", 32, 34, 32, from_q8_0},
    {MOTLEY_Q4_0, "Q4_0", 32, 18, 32, from_q4_0},   {MOTLEY_Q4_1, "Q4_1", 32, 20, 32, from_q4_1},
    {MOTLEY_Q4_K, "Q4_K", 256, 144, 32, from_q4_k}, {MOTLEY_Q6_K, "Q6_K", 256, 210, 16, from_q6_k},
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
