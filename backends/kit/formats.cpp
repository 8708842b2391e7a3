// The table of number formats. Formulas: docs/formats/gguf.md.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kit/kit.hpp"
#include "motley/blocks.hpp"

namespace motley::kit {

float f16_to_f32(uint16_t bits) { return blocks::f16_value(bits); }

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

float bf16_to_f32(uint16_t bits) { return blocks::bf16_value(bits); }

uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float f8_e4m3_to_f32(uint8_t bits) { return blocks::f8_e4m3_value(bits); }

uint8_t f32_to_f8_e4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 24) & 0x80u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  if (magnitude < 0x3c800000u) {  // below 2^-6: a multiple of 2^-9
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p9f;
    return static_cast<uint8_t>(sign | static_cast<uint32_t>(std::nearbyint(scaled)));
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return static_cast<uint8_t>(sign | std::min((rounded - 0x3c000000u) >> 20, 0x7eu));
}

float e8m0_to_f32(uint8_t exponent) { return blocks::e8m0_value(exponent); }

namespace {

template <class Block>
void dequantise(const void* from, int64_t count, float* out) {
  if constexpr (std::is_same_v<Block, blocks::F32>) {
    std::memcpy(out, from, static_cast<size_t>(count) * sizeof(float));
  } else {
    const auto* p = static_cast<const uint8_t*>(from);
    for (; count > 0; count -= Block::kBlock, p += Block::kBytes, out += Block::kBlock)
      for (int e = 0; e < Block::kBlock; ++e) out[e] = Block::at(p, e);
  }
}

template <class Block>
constexpr Format format_of(const char* name) {
  return {Block::kDtype, name, Block::kBlock, Block::kBytes, Block::kSubBlock, dequantise<Block>};
}

constexpr Format kFormats[] = {
    format_of<blocks::F32>("F32"),     format_of<blocks::F16>("F16"),        format_of<blocks::Bf16>("BF16"),
    format_of<blocks::Q8_0>("Q8_0"),   format_of<blocks::Q4_0>("Q4_0"),      format_of<blocks::Q4_1>("Q4_1"),
    format_of<blocks::Q5_0>("Q5_0"),   format_of<blocks::Q5_1>("Q5_1"),      format_of<blocks::Q2K>("Q2_K"),
    format_of<blocks::Q3K>("Q3_K"),    format_of<blocks::Q4K>("Q4_K"),       format_of<blocks::Q5K>("Q5_K"),
    format_of<blocks::Q6K>("Q6_K"),    format_of<blocks::Iq4Nl>("IQ4_NL"),   format_of<blocks::Iq4Xs>("IQ4_XS"),
    format_of<blocks::Mxfp4>("MXFP4"), format_of<blocks::F8E4M3>("F8_E4M3"),
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
    case MOTLEY_F8_E4M3:
    case MOTLEY_I8: return 1;
    default: return 0;
  }
}

}  // namespace motley::kit
