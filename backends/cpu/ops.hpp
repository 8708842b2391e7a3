// Kit kernels on top of a KernelSet, and the rewrite of a plan that joins ops (fuse.cpp).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "cpu/kernels.hpp"
#include "kit/kit.hpp"

namespace motley::cpu {

// PlanOp::data of every op this backend runs itself.
struct OpData {
  const KernelSet* set = nullptr;
};

// A group of matrix products of the same rows, with what stands before and after them.
//   in   [0] x; [1] residual or none
//   out  [0] quantised rows or none, [1] normed rows or none (arena), [2 + i] result of product i;
//        with an activation: [4] is the result, [2] and [3] are gate and up (arena)
//   weight [2 i] matrix, [2 i + 1] bias or none; last: norm weight or none
struct MatmulData : OpData {
  enum class After { kNothing, kSilu, kGelu };
  int32_t count = 1;
  bool quantised = false, floats = false;  // which inputs the matrices read
  bool fine = false;  // int8 activations plus their rest: for what int8 alone would blur (logits, queries, keys)
  bool norm = false;
  float eps = 0;
  After after = After::kNothing;
};

// The rotation of keys and queries and the KV write, in one step.
//   in [0] q or none, [1] k, [2] v or none, [3] table; out [0] rotated q, [1] rotated k or none
struct RotateData : OpData {
  bool write = false;  // store k and v at op.attr.kv
  motley_attr q{}, k{};
};

void run_matmuls(const kit::OpCall& call);
int64_t matmul_scratch_bytes(int64_t width);
// Of one row: its blocks, and with `fine` as many for the rest.
inline int64_t prepared_blocks(int64_t width, bool fine) { return act_blocks(width) * (fine ? 2 : 1); }
void run_attention(const kit::OpCall& call);
int64_t attention_scratch_bytes(int64_t head_dim);
inline constexpr int64_t kPartialFloats = 1 << 18;  // width of the attention's room for partial results
void run_rope_table(const kit::OpCall& call);
void run_rotate(const kit::OpCall& call);

// Kit's reference table with this backend's kernels in it. They need plans that went through fuse().
const kit::KernelTable& kernel_table();

// Rewrites a checked plan for `set`: every op of the table gets its data, neighbours are joined.
void fuse(kit::Plan& plan, const KernelSet& set);

}  // namespace motley::cpu
