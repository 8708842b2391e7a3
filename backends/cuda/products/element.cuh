// One number of a weight that lies as the file has it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/weight.hpp"
#include "motley/blocks.hpp"

namespace motley::cuda {

// Element i of a held row.
template <class Block>
__device__ float element(const WeightView& w, const uint8_t* row, int64_t i) {
  if (w.sub_block_of) i = int64_t{w.sub_block_of[i / Block::kSubBlock]} * Block::kSubBlock + i % Block::kSubBlock;
  if constexpr (Block::kBlock > 1) {
    return Block::at(row + i / Block::kBlock * Block::kBytes, static_cast<int>(i % Block::kBlock));
  } else if constexpr (Block::kBytes == 4) {
    return reinterpret_cast<const float*>(row)[i];
  } else {
    const uint16_t bits = reinterpret_cast<const uint16_t*>(row)[i];
    return Block::kDtype == MOTLEY_F16 ? kit::blocks::f16_value(bits) : kit::blocks::bf16_value(bits);
  }
}

}  // namespace motley::cuda
