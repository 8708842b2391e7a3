// Checks of what the host hands over: segments, weights of a segment, batches. Counts and ids are never trusted.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kit/internal.hpp"

namespace motley::kit {

// A segment that passed: a plan without weights and kernels, and what a batch must provide for it.
struct CheckedSegment {
  Plan plan;
  std::vector<int32_t> inputs, outputs;
  struct KvUse {
    int32_t layer, kv_heads, head_dim;
    bool reads;
    int32_t window;  // of a read: positions looked back on, 0 = all
  };
  std::vector<KvUse> kv_uses;
  bool needs_tokens = false, needs_positions = false, needs_kv_slots = false, needs_sequences = false;
  bool needs_head_rows = false, needs_samples = false;
  bool only_partial = true;  // every PAGED_ATTENTION gives its log-sum-exp
  int64_t sample_vocab = 0;  // of SAMPLE's logits
};

const char* op_name(int32_t kind);  // "MATMUL"; of a motley_op_kind

// Throws Error; the text names the op. `bad_op` receives the index of the op at fault (or op_count).
CheckedSegment check_segment(const motley_segment& segment, uint32_t* bad_op);

// Do the plan's weights fit its ops? Throws Error.
void check_weights(const Plan& plan);

// Embeds look up ids below this; 0 if the plan has no EMBED. Needs weights.
int64_t embed_rows(const Plan& plan);

// What a batch must keep to.
struct BatchLimits {
  int64_t rows = 0, vocab = 0;
  bool holes = false;  // blocks may lie elsewhere, where the segment can do without
};

// What was found of a batch, if the segment attends.
struct CheckedBatch {
  std::vector<int32_t> row_sequence;  // [rows] the sequence of each row
  bool holes = false;                 // some blocks lie elsewhere
};

// Throws Error unless the batch provides what the segment needs, with every index in range. `kv` may be null.
CheckedBatch check_batch(const CheckedSegment& segment, const motley_batch& batch, const BatchLimits& limits,
                         const KvPool* kv);

}  // namespace motley::kit
