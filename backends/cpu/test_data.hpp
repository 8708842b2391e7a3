// Kernel sets and weights for tests.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/variants.hpp"
#include "cpu/weight.hpp"
#include "kit/kit.hpp"

namespace motley::cpu {

#ifdef MOTLEY_EMULATED_AVX512
extern const KernelSet kEmulatedAvx512Kernels;  // kernels_emulated.cpp
#endif
#ifdef MOTLEY_EMULATED_AMX
extern const KernelSet kEmulatedAmxKernels;  // kernels_emulated_amx.cpp
#endif

// What the machine runs, and what of the two largest sets it does not, emulated.
inline std::vector<const KernelSet*> tested_sets() {
  std::vector<const KernelSet*> sets = variants();
#ifdef MOTLEY_EMULATED_AVX512
  sets.push_back(&kEmulatedAvx512Kernels);
#endif
#ifdef MOTLEY_EMULATED_AMX
  sets.push_back(&kEmulatedAmxKernels);
#endif
  return sets;
}

struct KernelCase {
  const KernelSet* set;
  int32_t dtype;
};
// Every set with every format that is packed, of those that `wanted` says yes to.
inline std::vector<KernelCase> kernel_cases(bool (*wanted)(const KernelCase&)) {
  std::vector<KernelCase> cases;
  for (const KernelSet* set : tested_sets()) {
    for (int32_t dtype = 0; dtype < MOTLEY_DTYPE_COUNT; ++dtype) {
      const KernelCase one{set, dtype};
      if ((packed_formats() >> dtype & 1) != 0 && wanted(one)) cases.push_back(one);
    }
  }
  return cases;
}
inline std::string name_of(const KernelCase& one) {
  std::string name = std::string(one.set->name) + "_" + kit::find_format(one.dtype)->name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

inline std::vector<float> normals(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(count);
  for (float& x : out) x = normal(random);
  return out;
}

// Puts scales and minima of sensible size into blocks of any bytes.
inline void put_scales(int32_t dtype, std::mt19937& random, std::vector<uint8_t>& blocks) {
  const auto put = [&](uint8_t* at, float value) {
    const uint16_t bits = dtype == MOTLEY_BF16 ? kit::f32_to_bf16(value) : kit::f32_to_f16(value);
    std::memcpy(at, &bits, 2);
  };
  std::normal_distribution<float> normal;
  const auto bytes = static_cast<size_t>(kit::find_format(dtype)->bytes);
  for (size_t b = 0; b < blocks.size(); b += bytes) {
    uint8_t* p = blocks.data() + b;
    const float d = 0.01f + 0.01f * std::fabs(normal(random)), m = 0.1f * normal(random), x = normal(random);
    switch (dtype) {
      case MOTLEY_F32: std::memcpy(p, &x, 4); break;
      case MOTLEY_F16:
      case MOTLEY_BF16: put(p, x); break;
      case MOTLEY_Q4_1:
      case MOTLEY_Q5_1:
      case MOTLEY_Q4_K:
      case MOTLEY_Q5_K: put(p, d), put(p + 2, m); break;
      case MOTLEY_Q2_K: put(p + 80, d), put(p + 82, m); break;
      case MOTLEY_Q3_K: put(p + 108, d); break;
      case MOTLEY_Q6_K: put(p + 208, d); break;
      case MOTLEY_MXFP4: p[0] = static_cast<uint8_t>(118 + p[0] % 8); break;
      default: put(p, d);
    }
  }
}

inline std::vector<uint8_t> random_rows(int32_t dtype, int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> out(static_cast<size_t>(rows * kit::find_format(dtype)->row_bytes(cols)));
  for (uint8_t& x : out) x = static_cast<uint8_t>(random());
  put_scales(dtype, random, out);
  return out;
}

inline motley_weight_desc describe(int32_t dtype, int64_t rows, int64_t cols, const std::vector<uint8_t>& data) {
  motley_weight_desc desc{};
  desc.struct_size = sizeof desc;
  desc.name = "w";
  desc.dtype = desc.format = dtype;
  desc.uses = MOTLEY_WEIGHT_MATMUL | MOTLEY_WEIGHT_GATHER;
  desc.experts = 1;
  desc.rows = rows;
  desc.cols = cols;
  desc.data = data.data();
  desc.bytes = data.size();
  return desc;
}

}  // namespace motley::cpu
