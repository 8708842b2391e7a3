#include "model/requantise.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "motley/types.h"

namespace motley {
namespace {

std::vector<std::byte> bytes_of(const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::vector<float> normal(size_t count) {
  std::mt19937 random(3);
  std::normal_distribution<float> draw(0, 0.02f);
  std::vector<float> values(count);
  for (float& each : values) each = draw(random);
  return values;
}

int8_t q8(const Requantised& made, size_t block, size_t i) {
  return static_cast<int8_t>(made.bytes[block * 34 + 2 + i]);
}

TEST(Requantise, Q8_0_IsExactOnWholeMultiplesOfItsScale) {
  std::vector<float> values(64, 0);
  for (size_t i = 0; i < 32; ++i) values[i] = static_cast<float>(static_cast<int>(i) * 8 - 127) / 8;  // -127/8 to 121/8
  const auto made = requantise(bytes_of(values), MOTLEY_F32, MOTLEY_Q8_0, 32);
  ASSERT_TRUE(made.ok()) << made.error().message();
  ASSERT_EQ(made->bytes.size(), 2 * 34u);
  EXPECT_EQ(made->bytes[0], std::byte{0x00});  // 1/8 as F16: 0x3000
  EXPECT_EQ(made->bytes[1], std::byte{0x30});
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(q8(*made, 0, i), static_cast<int>(i) * 8 - 127);
  for (size_t i = 0; i < 34; ++i) EXPECT_EQ(made->bytes[34 + i], std::byte{0});  // zeros stay zeros
  EXPECT_EQ(made->error.relative(), 0);
}

TEST(Requantise, Q4_0_PutsTheFirstHalfInTheLowNibbles) {
  std::vector<float> values(32, 0);
  values[0] = -8, values[1] = 7, values[16] = 3;
  const auto made = requantise(bytes_of(values), MOTLEY_F32, MOTLEY_Q4_0, 32);
  ASSERT_TRUE(made.ok()) << made.error().message();
  ASSERT_EQ(made->bytes.size(), 18u);
  EXPECT_EQ(made->bytes[2], std::byte{0xb0});  // 3 + 8 over -8 + 8
  EXPECT_EQ(made->bytes[3], std::byte{0x8f});  // 0 + 8 over 7 + 8
  EXPECT_EQ(made->error.relative(), 0);
}

TEST(Requantise, ErrorsAreThoseOfTheirBits) {
  const std::vector<float> values = normal(1 << 14);
  const auto eight = requantise(bytes_of(values), MOTLEY_F32, MOTLEY_Q8_0, 128);
  const auto four = requantise(bytes_of(values), MOTLEY_F32, MOTLEY_Q4_0, 128);
  ASSERT_TRUE(eight.ok() && four.ok());
  EXPECT_NEAR(eight->error.relative(), 0.0055, 0.001);
  EXPECT_NEAR(four->error.relative(), 0.088, 0.02);
  std::vector<std::byte> halves(values.size() * 2);
  for (size_t i = 0; i < values.size(); ++i)
    std::memcpy(&halves[2 * i], reinterpret_cast<const char*>(&values[i]) + 2, 2);
  const auto of_bf16 = requantise(halves, MOTLEY_BF16, MOTLEY_Q8_0, 128);
  ASSERT_TRUE(of_bf16.ok());
  EXPECT_NEAR(of_bf16->error.relative(), 0.0055, 0.001);
}

TEST(Requantise, F16_IsToNearest) {
  std::vector<float> values(32, 1);
  values[1] = 1 + 1.0f / 1024 + 1.0f / 4096;
  const auto made = requantise(bytes_of(values), MOTLEY_F32, MOTLEY_F16, 32);
  ASSERT_TRUE(made.ok()) << made.error().message();
  EXPECT_EQ(made->bytes.size(), 64u);
  EXPECT_EQ(made->bytes[2], std::byte{0x01});  // 1 + 1/1024: 0x3c01
  EXPECT_EQ(made->bytes[3], std::byte{0x3c});
  EXPECT_NEAR(made->error.relative(), 1.0 / 4096 / std::sqrt(32.0), 1e-6);
  values[0] = 70'000;
  EXPECT_EQ(requantise(bytes_of(values), MOTLEY_F32, MOTLEY_F16, 32).error().code(), MOTLEY_INVALID_ARGUMENT);
}

TEST(Requantise, F16_TakesRowsOfAnyLength) {
  const auto made = requantise(bytes_of(std::vector<float>(3 * 33, 0.5f)), MOTLEY_F32, MOTLEY_F16, 33);
  ASSERT_TRUE(made.ok()) << made.error().message();
  ASSERT_EQ(made->bytes.size(), 3 * 33 * 2u);
  EXPECT_EQ(made->bytes[made->bytes.size() - 1], std::byte{0x38});
  EXPECT_EQ(made->error.relative(), 0);
}

// Of what is quantised already the error is against what the blocks say.
TEST(Requantise, QuantisedFormats_AreReadAsTheirBlocksSay) {
  const auto eight = requantise(bytes_of(normal(1 << 12)), MOTLEY_F32, MOTLEY_Q8_0, 128);
  ASSERT_TRUE(eight.ok());
  const auto half = requantise(eight->bytes, MOTLEY_Q8_0, MOTLEY_F16, 128);
  const auto four = requantise(eight->bytes, MOTLEY_Q8_0, MOTLEY_Q4_0, 128);
  ASSERT_TRUE(half.ok() && four.ok());
  EXPECT_GT(half->error.relative(), 1e-5);
  EXPECT_LT(half->error.relative(), 3e-4) << "half a unit in eleven digits";
  EXPECT_NEAR(four->error.relative(), 0.088, 0.02);
  const auto again = requantise(half->bytes, MOTLEY_F16, MOTLEY_Q8_0, 128);
  ASSERT_TRUE(again.ok());
  size_t moved = 0;
  for (size_t i = 0; i < again->bytes.size(); ++i) moved += again->bytes[i] != eight->bytes[i];
  EXPECT_LT(moved, again->bytes.size() / 50) << "there and back";
  // d = 1, dmin = 2 and its second sub-block's scale 5 and minimum 3: 5 * 9 - 6 of element 0, as in kit's test.
  std::vector<std::byte> super(144);
  for (const auto& [at, value] : {std::pair{1, 0x3c}, {3, 0x40}, {4, 5 | 1 << 6}, {8, 3 | 1 << 6}, {16, 0x09}})
    super[static_cast<size_t>(at)] = static_cast<std::byte>(value);
  const auto of_super = requantise(super, MOTLEY_Q4_K, MOTLEY_F16, 256);
  ASSERT_TRUE(of_super.ok()) << of_super.error().message();
  EXPECT_EQ(of_super->bytes[0], std::byte{0xe0});  // 39: 0x50e0
  EXPECT_EQ(of_super->bytes[1], std::byte{0x50});
}

// A scale that F16 cannot hold, and numbers that it cannot.
TEST(Requantise, Bf16_TakesTheRangeOfFp8sScales) {
  std::vector<std::byte> blocks(2 * 68);
  for (const auto& [at, scale] : {std::pair{size_t{0}, 4096.0f}, {size_t{68}, 0x1p-60f}})
    std::memcpy(blocks.data() + at, &scale, sizeof scale);
  blocks[4] = std::byte{0x7e}, blocks[67] = std::byte{0x81}, blocks[68 + 4] = std::byte{0x3f};
  const auto made = requantise(blocks, MOTLEY_F8_E4M3_S64, MOTLEY_BF16, 128);
  ASSERT_TRUE(made.ok()) << made.error().message();
  EXPECT_EQ(made->error.relative(), 0);
  std::array<uint16_t, 128> bits;
  ASSERT_EQ(made->bytes.size(), sizeof bits);
  std::memcpy(bits.data(), made->bytes.data(), sizeof bits);
  EXPECT_EQ(bits[0], 0x49e0);   // 448 * 4096 = 1.75 * 2^20
  EXPECT_EQ(bits[63], 0xc100);  // -2^-9 * 2^12
  EXPECT_EQ(bits[64], 0x21f0);  // 1.875 * 2^-60
  EXPECT_EQ(bits[65], 0);
  EXPECT_FALSE(requantise(blocks, MOTLEY_F8_E4M3_S64, MOTLEY_F16, 128).ok());
}

TEST(Requantise, WhatDoesNotFit_IsRefused) {
  EXPECT_TRUE(can_requantise(MOTLEY_F16, MOTLEY_Q4_0, 64));
  EXPECT_FALSE(can_requantise(MOTLEY_F16, MOTLEY_Q4_0, 48));
  EXPECT_FALSE(can_requantise(MOTLEY_Q4_K, MOTLEY_F16, 128));
  EXPECT_FALSE(can_requantise(MOTLEY_I8, MOTLEY_F16, 64));
  EXPECT_FALSE(can_requantise(MOTLEY_F32, MOTLEY_Q4_K, 256));
  EXPECT_FALSE(can_requantise(MOTLEY_F16, MOTLEY_F16, 64));
  const std::vector<std::byte> bytes = bytes_of(normal(64));
  EXPECT_EQ(requantise(std::span(bytes).first(100), MOTLEY_F32, MOTLEY_Q8_0, 32).error().code(),
            MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(requantise(bytes, MOTLEY_F32, MOTLEY_Q8_0, 0).error().code(), MOTLEY_INVALID_ARGUMENT);
  std::vector<float> values = normal(32);
  for (const float bad : {std::nanf(""), INFINITY, 1e30f}) {
    values[5] = bad;
    EXPECT_EQ(requantise(bytes_of(values), MOTLEY_F32, MOTLEY_Q8_0, 32).error().code(), MOTLEY_INVALID_ARGUMENT) << bad;
  }
}

}  // namespace
}  // namespace motley
