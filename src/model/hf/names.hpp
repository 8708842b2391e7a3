// Hugging Face's names of a decoder's modules and GGUF's. One table for all model classes: the classes agree.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.hpp"
#include "model/architecture.hpp"
#include "model/hyper_parameters.hpp"

namespace motley::hf {

struct WeightName {
  std::string name;     // GGUF's without ".weight": "blk.3.attn_q"
  int32_t expert = -1;  // whose matrix it is, of those that GGUF stacks under one name
};

// "model.layers.3.mlp.up_proj.weight" -> {"layers.3.mlp.up_proj", "weight"}, without the prefix of the language model.
struct ModulePath {
  std::string_view module, part;
};
ModulePath split_tensor_name(std::string_view tensor);

// Tensors that change no text: vision towers, tables of rope frequencies, scales of activations and caches.
bool is_ignored(const ModulePath& path);

// Nullopt for a module that has no name in GGUF. INVALID_ARGUMENT for layers and experts that the parameters lack.
Result<std::optional<WeightName>> name_module(std::string_view module, const HyperParameters& parameters,
                                              const HuggingFaceTraits& traits);

// The usual spelling of a tensor that GGUF calls "blk.3.attn_q.weight", for messages; GGUF's where there are several.
std::string tensor_name(std::string_view ggufs);

// "layers.3.mlp.experts" -> "blk.3.", where one tensor holds all experts; else nullopt.
Result<std::optional<std::string>> fused_experts_prefix(std::string_view module, const HyperParameters& parameters);

}  // namespace motley::hf
