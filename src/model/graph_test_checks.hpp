// Checks that hold for the graph of every architecture, for the architectures' tests.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "model/gguf_model.hpp"
#include "model/model.hpp"

namespace motley::testing_files {

inline const GraphWeight& weight_of(const Graph& graph, const GraphNode& node) {
  return graph.weights.at(static_cast<size_t>(node.op.weight[0]));
}

inline const GraphWeight& find_weight(const Graph& graph, const std::string& name) {
  for (const GraphWeight& weight : graph.weights) {
    if (weight.name == name) return weight;
  }
  ADD_FAILURE() << name;
  return graph.weights.front();
}

// Values are written once before they are read, but for the residual; ids are in range; layers and parts ascend.
inline void expect_well_formed(const Model& model) {
  const Graph& graph = model.graph();
  std::set<int32_t> written = {graph.token_slots};
  std::set<std::string> names;
  for (const GraphWeight& weight : graph.weights) EXPECT_TRUE(names.insert(weight.name).second) << weight.name;
  int32_t layer = -1;
  for (const GraphNode& node : graph.nodes) {
    for (const int32_t in : node.op.in) {
      EXPECT_TRUE(in == MOTLEY_NONE || written.contains(in)) << in;
    }
    for (const int32_t out : node.op.out) {
      if (out == MOTLEY_NONE) continue;
      ASSERT_LT(static_cast<size_t>(out), graph.values.size());
      const bool in_place = node.op.kind == MOTLEY_OP_ADD && out == graph.residual && node.op.in[0] == out;
      EXPECT_TRUE(written.insert(out).second || in_place) << graph.values[static_cast<size_t>(out)].name;
    }
    for (const int32_t weight : node.op.weight) {
      ASSERT_LT(weight, static_cast<int32_t>(graph.weights.size()));
    }
    const bool of_layer = node.part == Part::kAttention || node.part == Part::kFfn;
    EXPECT_EQ(of_layer, node.layer >= 0);
    EXPECT_TRUE(!of_layer || node.layer == layer || node.layer == layer + 1);
    if (of_layer) layer = node.layer;
  }
  EXPECT_EQ(layer + 1, static_cast<int32_t>(model.config().layers));
  EXPECT_EQ(written.size(), graph.values.size()) << "every value is written";
}

inline void expect_shape(const Graph& graph, int32_t id, int32_t dtype, std::vector<int64_t> dims) {
  ASSERT_GE(id, 0);
  const motley_value& shape = graph.values.at(static_cast<size_t>(id)).shape;
  EXPECT_EQ(shape.dtype, dtype);
  ASSERT_EQ(static_cast<size_t>(shape.rank), dims.size());
  for (size_t i = 0; i < dims.size(); ++i) EXPECT_EQ(shape.dims[i], dims[i]);
}

inline std::vector<int32_t> kinds(const Graph& graph) {
  std::vector<int32_t> list;
  for (const GraphNode& node : graph.nodes) list.push_back(node.op.kind);
  return list;
}

// Of one half of layer 0.
inline std::vector<int32_t> kinds(const Graph& graph, Part part) {
  std::vector<int32_t> list;
  for (const GraphNode& node : graph.nodes) {
    if (node.part == part && node.layer <= 0) list.push_back(node.op.kind);
  }
  return list;
}

// The nodes of one kind, in order.
inline std::vector<const GraphNode*> nodes_of(const Graph& graph, int32_t kind) {
  std::vector<const GraphNode*> nodes;
  for (const GraphNode& node : graph.nodes) {
    if (node.op.kind == kind) nodes.push_back(&node);
  }
  return nodes;
}

inline std::string weight_name(const Graph& graph, const GraphNode& node, size_t index = 0) {
  const int32_t id = node.op.weight[index];
  return id == MOTLEY_NONE ? "" : graph.weights.at(static_cast<size_t>(id)).name;
}

// The model of `bytes`, which outlive it; it must load and be well formed.
inline std::unique_ptr<Model> load_well_formed(const std::string& bytes, const LoadOptions& options = {}) {
  auto model = load_model_from_bytes(std::as_bytes(std::span(bytes)), "stem", options);
  EXPECT_TRUE(model.ok()) << model.error().to_string();
  if (!model.ok()) return nullptr;
  expect_well_formed(**model);
  return *std::move(model);
}

inline std::string refusal(const std::string& bytes, const LoadOptions& options = {}) {
  const auto model = load_model_from_bytes(std::as_bytes(std::span(bytes)), "stem", options);
  return model.ok() ? "" : model.error().to_string();
}

}  // namespace motley::testing_files
