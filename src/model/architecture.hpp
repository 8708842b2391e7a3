// The registry of architectures: a name in a model file -> how its graph is built.
//
// A new architecture is one file in architectures/ and one line in architecture.cpp.
#pragma once

#include <span>
#include <string_view>

#include "model/graph_builder.hpp"

namespace motley {

struct Architecture {
  std::string_view name;  // general.architecture
  void (*build)(GraphBuilder& model);
};

std::span<const Architecture> architectures();
// Null for a name that is not built.
const Architecture* find_architecture(std::string_view name);

}  // namespace motley
