// A piece of the model's graph in the ABI's terms.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/graph.hpp"
#include "motley/backend.h"

namespace motley {

// Owns the arrays that `view()` points into; move-only in effect (view() is made anew at each call). Immutable once
// cut.
class Segment {
 public:
  // The nodes of `graph` that belong to the cut: EMBED, STAGE (layers [begin, end)), HEAD or SAMPLE. Values read before
  // they are written inside become inputs; values written inside and needed outside become outputs; a value of both
  // kinds is carried in place.
  static Segment cut(const Graph& graph, motley_cut cut, int32_t layer_begin, int32_t layer_end);
  // Nodes [node_begin, node_end) of `graph`. `kept`: further values that are needed outside.
  static Segment of_nodes(const Graph& graph, motley_cut cut, int32_t layer_begin, int32_t layer_end, size_t node_begin,
                          size_t node_end, std::span<const int32_t> kept);

  motley_segment view() const;
  // Graph value of each local value id, and graph weight of each local weight id.
  const std::vector<int32_t>& graph_values() const { return graph_values_; }
  const std::vector<int32_t>& graph_weights() const { return graph_weights_; }
  const std::vector<int32_t>& inputs() const { return inputs_; }
  const std::vector<int32_t>& outputs() const { return outputs_; }
  bool uses_kv() const { return uses_kv_; }

 private:
  static Segment of_inside(const Graph& graph, motley_cut cut, int32_t layer_begin, int32_t layer_end,
                           const std::vector<bool>& inside, std::span<const int32_t> kept);
  int32_t local_value(const Graph& graph, int32_t graph_value);
  int32_t local_weight(int32_t graph_weight);
  void add(const Graph& graph, const GraphNode& node);
  void find_borders(const Graph& graph, const std::vector<bool>& inside, std::span<const int32_t> kept);

  motley_cut cut_ = MOTLEY_CUT_STAGE;
  int32_t layer_begin_ = 0, layer_end_ = 0;
  std::vector<motley_value> values_;
  std::vector<motley_op> ops_;
  std::vector<int32_t> inputs_, outputs_;
  std::vector<int32_t> graph_values_, graph_weights_;
  bool uses_kv_ = false;
};

}  // namespace motley
