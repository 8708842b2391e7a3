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

TEST(Requantise, WhatDoesNotFit_IsRefused) {
  EXPECT_TRUE(can_requantise(MOTLEY_F16, MOTLEY_Q4_0, 64));
  EXPECT_FALSE(can_requantise(MOTLEY_F16, MOTLEY_Q4_0, 48));
  EXPECT_FALSE(can_requantise(MOTLEY_Q8_0, MOTLEY_Q4_0, 64));
  EXPECT_FALSE(can_requantise(MOTLEY_F32, MOTLEY_Q4_K, 256));
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
