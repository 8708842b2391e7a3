#include "comm/sum.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace motley {
namespace {

constexpr size_t kBlock = 1024;  // floats of a sum that stay in the first cache while the ranks are added
constexpr size_t kLanes = 16;    // a whole number of any vector: loops of this length become vector instructions

void add(float* __restrict out, const float* __restrict from, size_t count) {
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) out[i + lane] += from[i + lane];
  for (; i < count; ++i) out[i] += from[i];
}

}  // namespace

void sum(std::span<const float* const> from, std::span<float> out) {
  if (from.empty()) {
    std::fill(out.begin(), out.end(), 0.0f);
    return;
  }
  for (size_t begin = 0; begin < out.size(); begin += kBlock) {
    const size_t count = std::min(kBlock, out.size() - begin);
    std::memcpy(out.data() + begin, from[0] + begin, count * sizeof(float));
    for (size_t r = 1; r < from.size(); ++r) add(out.data() + begin, from[r] + begin, count);
  }
}

}  // namespace motley
