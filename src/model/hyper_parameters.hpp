// HyperParameters: everything a file of architectures/ needs to know of a model to write its graph. A plain value;
// who reads a model's files (GGUF keys, a config.json) fills it in, and every default asks for nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/model.hpp"
#include "motley/types.h"

namespace motley {

// Rotary position embedding. The angle of pair j at a position is position / linear_factor * base^(-2j / rope_dims),
// divided by the j-th divisor, and stretched by YaRN (arXiv:2309.00071) where yarn_factor is above 1.
struct Rope {
  int32_t style = MOTLEY_ROPE_NEOX;  // how the rows of the query and key matrices lie in this source
  float linear_factor = 1;           // positions are divided by it
  float magnitude = 1;               // multiplies cosine and sine
  float yarn_factor = 1;             // context / original context; 1 = no YaRN
  float yarn_beta_fast = 32;         // turns within the original context above which a pair keeps its angle
  float yarn_beta_slow = 1;          // and below which its angle is divided by the factor
  bool yarn_whole_bounds = true;     // the bounds of the ramp between are rounded outwards to whole dimensions
  uint32_t original_context = 0;     // positions the model was first trained on; YaRN needs it
  float window_base = 0;             // base of layers with a window, which then have no scaling; 0: as the others
  std::string divisors;              // name of the weight [rope_dims / 2] that holds them; empty = none
};

struct Experts {
  uint32_t count = 0;       // 0: the FFN is dense
  uint32_t used = 0;        // experts a token is sent to
  uint32_t ffn = 0;         // inner width of one expert
  uint32_t shared_ffn = 0;  // inner width of the expert that every token is sent to; 0 = none
  int32_t gating = 1;       // attr.router.gating of motley/types.h: 1 softmax over all, 2 sigmoid, 3 over the chosen
  bool normalise = true;    // the chosen ones' weights are divided by their sum
  float scale = 1;          // and then multiplied by it
};

struct HyperParameters {
  ModelConfig config;  // sizes, norm_eps, rope_base, rope_dims
  Rope rope;
  Experts experts;
  uint32_t window = 0;            // positions a layer with a window sees; 0 = no layer has one
  uint32_t window_period = 1;     // the last of each run of so many layers sees everything; 1: all have the window
  std::vector<uint32_t> windows;  // by layer, 0 = sees everything; empty: as window and window_period say
  float attention_scale = 0;      // multiplies q.k; 0 = 1 / sqrt(head_dim)
  float attention_softcap = 0;    // of q.k, 0 = none
  float logit_softcap = 0;        // 0 = none
  float embedding_scale = 1;      // multiplies the embedded tokens
  float glu_alpha = 1.702f, glu_limit = 7;  // of clamped gated units
};

// Positions that `layer` sees; 0 = all.
uint32_t window_of_layer(const HyperParameters& parameters, uint32_t layer);

}  // namespace motley
