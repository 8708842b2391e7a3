// What a program computes, as a count: products with weights, and attention.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <vector>

#include "kit/kit.hpp"

namespace motley::kit {

// What attention with a window (0: none) sees of a checked batch; blocks that lie elsewhere are not seen.
struct Attended {
  double pairs = 0;      // (row, visible position)
  double positions = 0;  // KV positions read: those of a sequence once
};
Attended attended(const motley_batch& batch, int64_t window, uint32_t block_size);

// Floating-point operations of a plan, as motley_device_stats counts them. Immutable; any thread.
class Arithmetic {
 public:
  Arithmetic() = default;
  // `kept`: of each of the plan's weights the part of its experts that is here.
  Arithmetic(const Plan& plan, std::span<const double> kept);
  // `block_size` is the KV pool's.
  double of(const motley_batch& batch, uint32_t block_size) const;

 private:
  struct Attention {
    int64_t window;
    double flops;  // a pair
  };
  double fixed_ = 0, per_row_ = 0, per_head_row_ = 0;
  std::vector<Attention> attentions_;  // one a window
};

}  // namespace motley::kit
