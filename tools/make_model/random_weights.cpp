#include "make_model/random_weights.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.hpp"
#include "model/dtype.hpp"
#include "motley/types.h"

namespace motley::make_model {
namespace {

// A counter turned into noise by 64-bit mixing (the finaliser of SplitMix64); the state is the tensor's own.
class Noise {
 public:
  Noise(uint64_t seed, std::string_view name) : state_(mix(seed + 1)) {
    for (const char c : name) state_ = mix(state_ ^ static_cast<unsigned char>(c));
  }

  uint64_t bits() { return mix(state_ += 0x9E3779B97F4A7C15u); }

  // In [low, high].
  int range(int low, int high) {
    const auto span = static_cast<uint64_t>(high - low + 1);
    return low + static_cast<int>(((bits() >> 32) * span) >> 32);
  }
  // Near-normal, mean 0, deviation 1: the sum of four uniform 16-bit numbers. Whole-number arithmetic up to the last
  // step, so that every machine draws the same.
  float normal() {
    const uint64_t x = bits();
    const auto sum = static_cast<int64_t>((x & 0xFFFF) + ((x >> 16) & 0xFFFF) + ((x >> 32) & 0xFFFF) + (x >> 48));
    constexpr float kDeviation = 37837.2278f;  // of the sum: 65536 / sqrt(3)
    return static_cast<float>(sum - 131070) / kDeviation;
  }
  // A block's scale varies by a factor of 0.75 to 1.25.
  float around_one() { return 0.75f + static_cast<float>(range(0, 1024)) / 2048.0f; }

 private:
  static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  uint64_t state_;
};

// Deviations of uniform whole numbers: sqrt((n^2 - 1) / 12) for n equally likely ones.
constexpr float kDeviationOf4 = 1.11803f;
constexpr float kDeviationOf8 = 2.29129f;
constexpr float kDeviationOf16 = 4.60977f;
constexpr float kDeviationOf32 = 9.23309f;
constexpr float kDeviationOf64 = 18.47295f;
constexpr float kDeviationOf255 = 73.61159f;
// Root mean squares of the values of a 4-bit table: IQ4's, and E2M1 doubled.
constexpr float kSizeOfIq4 = 67.43886f;
constexpr float kSizeOfFp4 = 5.85235f;

template <typename T>
void store(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}

void fill_bytes(Noise* noise, std::byte* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = static_cast<std::byte>(noise->range(0, 255));
}

void fill_f32(Noise* noise, float deviation, std::byte* block) { store(block, noise->normal() * deviation); }
void fill_f16(Noise* noise, float deviation, std::byte* block) { store(block, to_f16(noise->normal() * deviation)); }
void fill_bf16(Noise* noise, float deviation, std::byte* block) { store(block, to_bf16(noise->normal() * deviation)); }

void fill_q8_0(Noise* noise, float deviation, std::byte* block) {
  store(block, to_f16(deviation / kDeviationOf255 * noise->around_one()));
  for (int i = 0; i < 32; ++i) store(block + 2 + i, static_cast<int8_t>(noise->range(-127, 127)));
}

// A scale of random sign, so that the mean of the elements, which is not 0, evens out.
uint16_t signed_scale(Noise* noise, float size) {
  const float sign = noise->range(0, 1) == 0 ? 1.0f : -1.0f;
  return to_f16(sign * size * noise->around_one());
}
void fill_q4_0(Noise* noise, float deviation, std::byte* block) {
  store(block, signed_scale(noise, deviation / kDeviationOf16));
  fill_bytes(noise, block + 2, 16);
}
void fill_q5_0(Noise* noise, float deviation, std::byte* block) {
  store(block, signed_scale(noise, deviation / kDeviationOf32));
  fill_bytes(noise, block + 2, 20);
}
void fill_iq4_nl(Noise* noise, float deviation, std::byte* block) {
  store(block, signed_scale(noise, deviation / kSizeOfIq4));
  fill_bytes(noise, block + 2, 16);
}

void fill_q4_1(Noise* noise, float deviation, std::byte* block) {
  const float scale = deviation / kDeviationOf16 * noise->around_one();
  store(block, to_f16(scale));
  store(block + 2, to_f16(-7.5f * scale));
  fill_bytes(noise, block + 4, 16);
}
void fill_q5_1(Noise* noise, float deviation, std::byte* block) {
  const float scale = deviation / kDeviationOf32 * noise->around_one();
  store(block, to_f16(scale));
  store(block + 2, to_f16(-15.5f * scale));
  fill_bytes(noise, block + 4, 20);
}

// The scale is a power of two: the two nearest, in the shares that give the wanted mean square.
void fill_mxfp4(Noise* noise, float deviation, std::byte* block) {
  int exponent = 0;
  const float fraction = std::frexp(deviation / kSizeOfFp4, &exponent);  // [0.5, 1) * 2^exponent
  const float share = (4 * fraction * fraction - 1) / 3;
  const int upper = static_cast<float>(noise->range(0, 1023)) < share * 1024 ? 1 : 0;
  store(block, static_cast<uint8_t>(std::clamp(128 + exponent - 1 + upper, 0, 254)));
  fill_bytes(noise, block + 1, 16);
}

// Eight sub-blocks with 6-bit scales and minima; a minimum of `centre` quants' worth centres its sub-block.
void fill_k_header(Noise* noise, float size, float centre, std::byte* block) {
  constexpr float kScaleSize = 48.8f;  // root mean square of 33 to 63
  const float scale = size / kScaleSize * noise->around_one();
  store(block, to_f16(scale));
  store(block + 2, to_f16(centre * scale));
  int scales[8];
  int minima[8];
  for (int j = 0; j < 8; ++j) {
    scales[j] = noise->range(33, 63);
    minima[j] = std::clamp(scales[j] + noise->range(-2, 2), 0, 63);
  }
  for (int j = 0; j < 4; ++j) {
    store(block + 4 + j, static_cast<uint8_t>(scales[j] | ((scales[j + 4] >> 4) << 6)));
    store(block + 8 + j, static_cast<uint8_t>(minima[j] | ((minima[j + 4] >> 4) << 6)));
    store(block + 12 + j, static_cast<uint8_t>((scales[j + 4] & 15) | ((minima[j + 4] & 15) << 4)));
  }
}
void fill_q4_k(Noise* noise, float deviation, std::byte* block) {
  fill_k_header(noise, deviation / kDeviationOf16, 7.5f, block);
  fill_bytes(noise, block + 16, 128);
}
void fill_q5_k(Noise* noise, float deviation, std::byte* block) {
  fill_k_header(noise, deviation / kDeviationOf32, 15.5f, block);
  fill_bytes(noise, block + 16, 160);
}

// As Q4_K, with 4-bit scales and minima of 16 elements.
void fill_q2_k(Noise* noise, float deviation, std::byte* block) {
  constexpr float kScaleSize = 11.73f;  // root mean square of 8 to 15
  for (int j = 0; j < 16; ++j) {
    const int scale = noise->range(8, 15);
    store(block + j, static_cast<uint8_t>(scale | std::min(scale + noise->range(-1, 1), 15) << 4));
  }
  fill_bytes(noise, block + 16, 64);
  const float scale = deviation / (kDeviationOf4 * kScaleSize) * noise->around_one();
  store(block + 80, to_f16(scale));
  store(block + 82, to_f16(1.5f * scale));
}

// A 6-bit scale, stored with 32 added, of random sign.
int signed_six_bits(Noise* noise) {
  const int scale = noise->range(16, 31);
  return 32 + (noise->range(0, 1) == 0 ? scale : -scale);
}
constexpr float kSixBitSize = 23.95f;  // root mean square of 16 to 31

void fill_q3_k(Noise* noise, float deviation, std::byte* block) {
  fill_bytes(noise, block, 32 + 64);
  int scales[16];
  for (int& scale : scales) scale = signed_six_bits(noise);
  for (int k = 0; k < 8; ++k) store(block + 96 + k, static_cast<uint8_t>((scales[k] & 15) | (scales[k + 8] & 15) << 4));
  for (int k = 0; k < 4; ++k) {
    const int high = scales[k] >> 4 | scales[k + 4] >> 4 << 2 | scales[k + 8] >> 4 << 4 | scales[k + 12] >> 4 << 6;
    store(block + 104 + k, static_cast<uint8_t>(high));
  }
  store(block + 108, to_f16(deviation / (kDeviationOf8 * kSixBitSize) * noise->around_one()));
}

void fill_iq4_xs(Noise* noise, float deviation, std::byte* block) {
  int high = 0;
  int low[8];
  for (int j = 0; j < 8; ++j) {
    const int scale = signed_six_bits(noise);
    low[j] = scale & 15;
    high |= scale >> 4 << (2 * j);
  }
  store(block, to_f16(deviation / (kSizeOfIq4 * kSixBitSize) * noise->around_one()));
  store(block + 2, static_cast<uint16_t>(high));
  for (int j = 0; j < 4; ++j) store(block + 4 + j, static_cast<uint8_t>(low[2 * j] | low[2 * j + 1] << 4));
  fill_bytes(noise, block + 8, 128);
}

// The mean of q - 32 is -0.5: sub-block scales have random signs, so that it evens out.
void fill_q6_k(Noise* noise, float deviation, std::byte* block) {
  constexpr float kScaleSize = 84.6f;  // root mean square of 33 to 127
  fill_bytes(noise, block, 128 + 64);
  for (int j = 0; j < 16; ++j) {
    const int scale = noise->range(33, 127);
    store(block + 192 + j, static_cast<int8_t>(noise->range(0, 1) == 0 ? scale : -scale));
  }
  store(block + 208, to_f16(deviation / (kDeviationOf64 * kScaleSize) * noise->around_one()));
}

struct Filler {
  int32_t dtype;
  void (*fill)(Noise* noise, float deviation, std::byte* block);
};
constexpr Filler kFillers[] = {
    {MOTLEY_F32, fill_f32},   {MOTLEY_F16, fill_f16},       {MOTLEY_BF16, fill_bf16},     {MOTLEY_Q8_0, fill_q8_0},
    {MOTLEY_Q4_0, fill_q4_0}, {MOTLEY_Q4_1, fill_q4_1},     {MOTLEY_Q5_0, fill_q5_0},     {MOTLEY_Q5_1, fill_q5_1},
    {MOTLEY_Q2_K, fill_q2_k}, {MOTLEY_Q3_K, fill_q3_k},     {MOTLEY_Q4_K, fill_q4_k},     {MOTLEY_Q5_K, fill_q5_k},
    {MOTLEY_Q6_K, fill_q6_k}, {MOTLEY_IQ4_NL, fill_iq4_nl}, {MOTLEY_IQ4_XS, fill_iq4_xs}, {MOTLEY_MXFP4, fill_mxfp4},
};

}  // namespace

void fill_matrix(int32_t dtype, uint64_t seed, std::string_view name, float deviation, std::span<std::byte> data) {
  const auto* filler = std::find_if(std::begin(kFillers), std::end(kFillers),
                                    [&](const Filler& candidate) { return candidate.dtype == dtype; });
  CHECK(filler != std::end(kFillers), "dtype {}", dtype);
  const size_t block_bytes = find_dtype(dtype)->block_bytes;
  Noise noise(seed, name);
  for (size_t at = 0; at + block_bytes <= data.size(); at += block_bytes) {
    filler->fill(&noise, deviation, data.data() + at);
  }
}

void fill_vector(uint64_t seed, std::string_view name, float mean, float deviation, std::span<std::byte> data) {
  Noise noise(seed, name);
  for (size_t at = 0; at + sizeof(float) <= data.size(); at += sizeof(float)) {
    store(data.data() + at, mean + deviation * noise.normal());
  }
}

uint16_t to_f16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const float magnitude = std::fabs(value);
  if (!(magnitude < 65520.0f)) return static_cast<uint16_t>(sign | (std::isnan(value) ? 0x7E00u : 0x7C00u));
  if (magnitude < 0x1p-14f) {
    // Subnormal: a whole number of 2^-24, rounded to even by nearbyint's default mode; 1024 is the least normal one.
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  const uint32_t shifted = (bits & 0x7FFFFFFFu) - (112u << 23);  // the exponent's bias: 127 -> 15
  const uint32_t rounded = shifted + 0xFFFu + ((shifted >> 13) & 1u);
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace motley::make_model
