// A small random decoder: the segments of a real one in miniature.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "harness.hpp"

namespace motley::conformance {

struct TinyShape {
  int32_t dtype = MOTLEY_F32;
  int64_t hidden = 64, ffn = 96;
  int32_t layers = 2, heads = 4, kv_heads = 2, head_dim = 16;
  int64_t vocab = 97;
  bool head_norms = false;  // per-head q and k norms, NEOX rope, biases
};

// EMBED, layers, final norm, head and SAMPLE in one segment. Ids of what a case binds and reads.
struct TinyModel {
  GraphBuilder graph;
  int32_t slots = 0, logits = 0, ids = 0, logprobs = 0, top_ids = 0, top_logprobs = 0;
};
TinyModel make_tiny(Random& random, const TinyShape& shape);

motley_sample_row greedy_row(int32_t out_slot = MOTLEY_NONE);

}  // namespace motley::conformance
