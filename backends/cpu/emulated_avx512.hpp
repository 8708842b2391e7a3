// AVX-512 on SIMDe, under its own names: the plugin's sources then run on machines without it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <cstdint>

// What SIMDe 0.7.4 does not have, in halves.
static simde__m512 joined(simde__m256 low, simde__m256 high) {
  alignas(64) float out[16];
  simde_mm256_store_ps(out, low);
  simde_mm256_store_ps(out + 8, high);
  return simde_mm512_load_ps(out);
}
static simde__m512i joined(simde__m256i low, simde__m256i high) {
  return simde_mm512_castps_si512(joined(simde_mm256_castsi256_ps(low), simde_mm256_castsi256_ps(high)));
}
static simde__m256 half(simde__m512 x, int which) {
  alignas(64) float in[16];
  simde_mm512_store_ps(in, x);
  return simde_mm256_load_ps(in + 8 * which);
}
static simde__m512i emulated_cvtps_epi32(simde__m512 x) {
  return joined(simde_mm256_cvtps_epi32(half(x, 0)), simde_mm256_cvtps_epi32(half(x, 1)));
}
static simde__m512 emulated_cvtph_ps(simde__m256i x) {
  return joined(_mm256_cvtph_ps(simde_mm256_castsi256_si128(x)), _mm256_cvtph_ps(simde_mm256_extracti128_si256(x, 1)));
}
static simde__m256i emulated_cvtps_ph(simde__m512 x) {
  return simde_mm256_set_m128i(_mm256_cvtps_ph(half(x, 1), _MM_FROUND_TO_NEAREST_INT),
                               _mm256_cvtps_ph(half(x, 0), _MM_FROUND_TO_NEAREST_INT));
}
static simde__m512i emulated_cvtepu16_epi32(simde__m256i x) {
  return joined(simde_mm256_cvtepu16_epi32(simde_mm256_castsi256_si128(x)),
                simde_mm256_cvtepu16_epi32(simde_mm256_extracti128_si256(x, 1)));
}
static simde__m512i emulated_cvtepi8_epi32(simde__m128i x) {
  return joined(simde_mm256_cvtepi8_epi32(x), simde_mm256_cvtepi8_epi32(simde_mm_srli_si128(x, 8)));
}
static simde__m512i emulated_cvtepu8_epi32(simde__m128i x) {
  return joined(simde_mm256_cvtepu8_epi32(x), simde_mm256_cvtepu8_epi32(simde_mm_srli_si128(x, 8)));
}
static simde__m512 emulated_cvtepi32_ps(simde__m512i x) {
  const simde__m512 bits = simde_mm512_castsi512_ps(x);
  return joined(simde_mm256_cvtepi32_ps(simde_mm256_castps_si256(half(bits, 0))),
                simde_mm256_cvtepi32_ps(simde_mm256_castps_si256(half(bits, 1))));
}
static simde__m256i emulated_cvtepi32_epi16(simde__m512i x) {
  alignas(64) int32_t in[16];
  alignas(32) int16_t out[16];
  simde_mm512_store_si512(in, x);
  for (int i = 0; i < 16; ++i) out[i] = static_cast<int16_t>(in[i]);
  return simde_mm256_load_si256(reinterpret_cast<const simde__m256i*>(out));
}
#undef _mm512_cvtepi32_epi16
#define _mm512_cvtepi32_epi16 emulated_cvtepi32_epi16
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#undef _mm512_cvtps_epi32
#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepu8_epi32
#define _mm512_cvtps_epi32 emulated_cvtps_epi32
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_cvtps_ph(x, mode) emulated_cvtps_ph(x)
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
#define _mm512_cvtepu8_epi32 emulated_cvtepu8_epi32
#undef _mm512_madd_epi16  // SIMDe's name calls nothing
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
