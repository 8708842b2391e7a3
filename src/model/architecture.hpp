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

struct Architecture {
  std::string_view name;  // general.architecture of a GGUF file
  void (*build)(GraphBuilder& model);
  // Sets what files of this architecture leave unsaid, or null. Called once config's sizes and the experts are known;
  // what the files do say comes after it and wins. Rope style: that of GGUF files.
  void (*imply)(HyperParameters& parameters) = nullptr;
  bool needs_experts = false;  // a model without them is refused
  // Hugging Face's names ("architectures" of config.json) of models that have this graph.
  std::array<std::string_view, 3> hugging_face_names = {};
};

std::span<const Architecture* const> architectures();
// Null for a name that is not built.
const Architecture* find_architecture(std::string_view name);
const Architecture* find_hugging_face_architecture(std::string_view name);
// "a, b, ...": those that are built.
std::string architecture_names();

}  // namespace motley
