// The sampling noise: a counter-based generator, so that a number depends on its key alone.
//
// Philox-4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11).
// Key: the seed's low and high word. Counter: id / 4, position, choice, purpose. Word id % 4 belongs to the id.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>

namespace motley::kit {

constexpr uint32_t kNoiseToken = 0;  // purpose: choosing a token

class Noise {
 public:
  constexpr Noise(uint64_t seed, uint32_t choice, uint32_t position, uint32_t purpose)
      : seed_(seed), choice_(choice), position_(position), purpose_(purpose) {}

  // The words of ids 4 * quad .. 4 * quad + 3.
  constexpr std::array<uint32_t, 4> words(uint32_t quad) const {
    return philox({quad, position_, choice_, purpose_},
                  {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)});
  }
  constexpr uint32_t word(uint32_t id) const { return words(id / 4)[id % 4]; }

  static constexpr std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, std::array<uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
      const uint64_t a = uint64_t{0xD2511F53u} * c[0], b = uint64_t{0xCD9E8D57u} * c[2];
      c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(b),
           static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(a)};
      key[0] += 0x9E3779B9u;
      key[1] += 0xBB67AE85u;
    }
    return c;
  }

 private:
  uint64_t seed_;
  uint32_t choice_, position_, purpose_;
};

// In (0, 1).
constexpr double noise_uniform(uint32_t word) { return (static_cast<double>(word) + 0.5) * 0x1p-32; }

}  // namespace motley::kit
