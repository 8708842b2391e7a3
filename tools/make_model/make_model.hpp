// A random-weight model file from a description of its shape.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "base/status.hpp"

namespace motley::make_model {

struct ModelSpec {
  std::string architecture = "llama";
  uint32_t layers = 2, hidden = 256, heads = 4, kv_heads = 2, ffn = 512, context = 512;
  uint32_t head_dim = 0;                         // 0: hidden / heads
  uint32_t rope_dims = 0;                        // 0: the head dimension
  uint32_t window = 0;                           // positions; 0: as the architecture has it
  uint32_t experts = 0, experts_used = 0;        // 0: 4 of which 2 are used, where the architecture must have them
  uint32_t expert_ffn = 0;                       // 0: ffn / experts_used
  std::string rope_scaling = {};                 // "", "linear", "yarn" or "longrope"
  uint32_t rope_factor = 4;                      // of rope_scaling: the context / the original context
  std::optional<uint32_t> vocab = std::nullopt;  // default 320, or that of vocab_from
  std::string type = "Q8_0";                     // a weight type's name, or "mix"
  uint64_t seed = 0;
  bool tied = false;
  bool rope_freqs = false;                // write rope frequency divisors
  bool vocabulary = true;                 // write a tokenizer
  std::filesystem::path vocab_from = {};  // empty: the built-in vocabulary
};

// Takes the sizes of a shape that form.hpp names. INVALID_ARGUMENT for another name.
Status apply_shape(const std::string& name, ModelSpec* spec);

// INVALID_ARGUMENT names the option that cannot be and what would do.
Status make_model(ModelSpec spec, const std::filesystem::path& out);

}  // namespace motley::make_model
