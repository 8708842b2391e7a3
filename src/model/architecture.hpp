// The registry of architectures: a name in a model file -> how its graph is built.
//
// A new architecture is one file in architectures/ and two lines in architecture.cpp: docs/new-architecture.md.
#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>

#include "model/graph_builder.hpp"
#include "model/hyper_parameters.hpp"

namespace motley {

// What Hugging Face's files of an architecture do otherwise than most.
struct HuggingFaceTraits {
  // A JSON object: what the model's class in transformers takes for keys that a config.json leaves out.
  std::string_view defaults = "{}";
  std::string_view activation = "silu";               // of the gate, as config.json spells it
  std::string_view post_attention_norm = "ffn_norm";  // GGUF's name of post_attention_layernorm
  float norm_offset = 0;                              // that the model adds to the norms' weights; GGUF's hold the sum
  bool interleaved_experts = false;                   // one tensor of all experts, rows of gate and up alternating
};

struct Architecture {
  std::string_view name;  // general.architecture of a GGUF file
  void (*build)(GraphBuilder& model);
  // Sets what files of this architecture leave unsaid, or null. Called once config's sizes and the experts are known;
  // what the files do say comes after it and wins. Rope style: that of GGUF files.
  void (*imply)(HyperParameters& parameters) = nullptr;
  bool needs_experts = false;  // a model without them is refused
  // Hugging Face's names ("architectures" of config.json) of models that have this graph.
  std::array<std::string_view, 3> hugging_face_names = {};
  HuggingFaceTraits hugging_face = {};
};

std::span<const Architecture* const> architectures();
// Null for a name that is not built.
const Architecture* find_architecture(std::string_view name);
const Architecture* find_hugging_face_architecture(std::string_view name);
// "a, b, ...": those that are built.
std::string architecture_names();

}  // namespace motley
