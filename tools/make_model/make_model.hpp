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
  std::optional<uint32_t> vocab = std::nullopt;  // default 320, or that of vocab_from
  std::string type = "Q8_0";                     // a weight type's name, or "mix"
  uint64_t seed = 0;
  bool tied = false;
  bool rope_freqs = false;                // write rope frequency divisors
  std::filesystem::path vocab_from = {};  // empty: the built-in vocabulary
};

// INVALID_ARGUMENT names the option that cannot be and what would do.
Status make_model(const ModelSpec& spec, const std::filesystem::path& out);

}  // namespace motley::make_model
