// A small random decoder: the segments of a real one in miniature.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "harness.hpp"

namespace motley::conformance {

// The switches are those in which real architectures differ.
struct TinyShape {
  const char* name = "plain";
  int32_t dtype = MOTLEY_F32;
  int64_t hidden = 64, ffn = 96;
  int32_t layers = 2, heads = 4, kv_heads = 2, head_dim = 16;
  int64_t vocab = 97;
  bool head_norms = false;  // per-head q and k norms
  bool neox = false;        // style of the rotation
  bool biases = false;      // of q, k, v and the output
  bool fused = false;       // one matrix for q, k and v, one for gate and up, cut by SPLIT
  bool post_norms = false;  // a norm behind attention and behind the feed-forward part
  bool sinks = false, yarn = false, divisors = false;
  int32_t n_rot = 0;   // 0: head_dim
  int32_t window = 0;  // of every other layer
  float softcap = 0, logit_cap = 0, embed_scale = 1;
  int activation = MOTLEY_OP_SILU_MUL;
  int32_t experts = 0, top_k = 0, gating = 1;  // experts 0: a dense feed-forward part
  bool shared_expert = false;                  // beside the chosen ones, behind a gate
};

// EMBED, layers, final norm, head and SAMPLE in one segment. Ids of what a case binds and reads.
struct TinyModel {
  GraphBuilder graph;
  int32_t slots = 0, logits = 0, ids = 0, logprobs = 0, top_ids = 0, top_logprobs = 0;
};
TinyModel make_tiny(Random& random, const TinyShape& shape);

motley_sample_row greedy_row(int32_t out_slot = MOTLEY_NONE);

}  // namespace motley::conformance
