// The model as data: a graph over the closed op set (motley/types.h) whose weights carry logical axes.
//
// A graph knows no device, rank or parallel size; the runtime cuts it into segments. Values, immutable once built.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "motley/types.h"

namespace motley {

// The logical axis along which a weight (or value) may be cut into units.
enum class Axis { kNone, kVocab, kHidden, kHeads, kKvHeads, kFfn, kExperts };

struct GraphWeight {
  std::string name;                         // in the model file, e.g. "blk.0.attn_q.weight"
  int64_t experts = 1, rows = 1, cols = 1;  // expected shape; a vector has rows = 1
  Axis row_axis = Axis::kNone, col_axis = Axis::kNone;
  uint32_t uses = 0;   // MOTLEY_WEIGHT_* bits (motley/backend.h): 1 matmul, 2 gather, 4 vector
  int32_t layer = -1;  // -1: not of a layer
};

// Where a node stands on the way through the model; the runtime cuts between parts.
enum class Part { kEmbed, kAttention, kFfn, kHead, kSample };

struct GraphNode {
  motley_op op{};
  Part part = Part::kEmbed;
  int32_t layer = -1;  // of kAttention and kFfn
};

struct GraphValue {
  std::string name;
  motley_value shape{};
  Axis last_axis = Axis::kNone;  // what the last axis means, for sharding
};

struct Graph {
  std::vector<GraphValue> values;
  std::vector<GraphWeight> weights;
  std::vector<GraphNode> nodes;  // in execution order: embed, layers 0 .. n-1 (attention, then FFN), head, sample
  int32_t token_slots = -1;      // value ids: i32 [SLOTS], the only value the host provides
  int32_t residual = -1;         // f32 [ROWS, hidden]: carried in place from stage to stage
  int32_t logits = -1;           // f32 [HEAD_ROWS, vocab]
  int32_t sampled_ids = -1, sampled_logprobs = -1, top_ids = -1, top_logprobs = -1;
};

}  // namespace motley
