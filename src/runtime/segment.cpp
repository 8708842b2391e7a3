#include "runtime/segment.hpp"

#include <algorithm>
#include <array>

#include "base/hash.hpp"

namespace motley {
namespace {

bool belongs(const GraphNode& node, motley_cut cut, int32_t layer_begin, int32_t layer_end) {
  switch (cut) {
    case MOTLEY_CUT_EMBED: return node.part == Part::kEmbed;
    case MOTLEY_CUT_STAGE:
      return (node.part == Part::kAttention || node.part == Part::kFfn) && node.layer >= layer_begin &&
             node.layer < layer_end;
    case MOTLEY_CUT_HEAD: return node.part == Part::kHead;
    case MOTLEY_CUT_SAMPLE: return node.part == Part::kSample;
    default: return false;
  }
}

// SAMPLE reads and writes its second input, the token slots (motley/types.h).
bool also_writes(const motley_op& op, int input) { return op.kind == MOTLEY_OP_SAMPLE && input == 1; }

template <typename T>
uint64_t hash_vector(uint64_t hash, const std::vector<T>& items) {
  return hash_bytes(hash, items.data(), items.size() * sizeof(T));
}

}  // namespace

int32_t Segment::local_value(const Graph& graph, int32_t graph_value) {
  if (graph_value < 0) return MOTLEY_NONE;
  const auto found = std::find(graph_values_.begin(), graph_values_.end(), graph_value);
  if (found != graph_values_.end()) return static_cast<int32_t>(found - graph_values_.begin());
  graph_values_.push_back(graph_value);
  values_.push_back(graph.values[static_cast<size_t>(graph_value)].shape);
  return static_cast<int32_t>(values_.size() - 1);
}

int32_t Segment::local_weight(int32_t graph_weight) {
  if (graph_weight < 0) return MOTLEY_NONE;
  const auto found = std::find(graph_weights_.begin(), graph_weights_.end(), graph_weight);
  if (found != graph_weights_.end()) return static_cast<int32_t>(found - graph_weights_.begin());
  graph_weights_.push_back(graph_weight);
  return static_cast<int32_t>(graph_weights_.size() - 1);
}

void Segment::add(const Graph& graph, const GraphNode& node) {
  motley_op op = node.op;
  for (auto& id : op.in) id = local_value(graph, id);
  for (auto& id : op.out) id = local_value(graph, id);
  for (auto& id : op.weight) id = local_weight(id);
  uses_kv_ = uses_kv_ || op.kind == MOTLEY_OP_KV_WRITE || op.kind == MOTLEY_OP_PAGED_ATTENTION;
  ops_.push_back(op);
}

void Segment::find_borders(const Graph& graph, const std::vector<bool>& inside, std::span<const int32_t> kept) {
  std::vector<bool> written(values_.size(), false), input(values_.size(), false);
  for (const motley_op& op : ops_) {
    for (int i = 0; i < MOTLEY_OP_INPUTS_MAX; ++i) {
      if (op.in[i] < 0) continue;
      const auto id = static_cast<size_t>(op.in[i]);
      if (!written[id]) input[id] = true;
      if (also_writes(op, i)) written[id] = true;
    }
    for (const int32_t id : op.out) {
      if (id >= 0) written[static_cast<size_t>(id)] = true;
    }
  }
  std::vector<bool> needed(graph.values.size(), false);
  for (const int32_t id : {graph.token_slots, graph.residual, graph.logits, graph.sampled_ids, graph.sampled_logprobs,
                           graph.top_ids, graph.top_logprobs}) {
    if (id >= 0) needed[static_cast<size_t>(id)] = true;
  }
  for (const int32_t id : kept) needed[static_cast<size_t>(id)] = true;
  for (size_t n = 0; n < graph.nodes.size(); ++n) {
    if (inside[n]) continue;
    for (const int32_t id : graph.nodes[n].op.in) {
      if (id >= 0) needed[static_cast<size_t>(id)] = true;
    }
  }
  for (size_t id = 0; id < values_.size(); ++id) {
    if (input[id]) inputs_.push_back(static_cast<int32_t>(id));
    if (written[id] && needed[static_cast<size_t>(graph_values_[id])]) outputs_.push_back(static_cast<int32_t>(id));
  }
}

Segment Segment::cut(const Graph& graph, motley_cut cut, int32_t layer_begin, int32_t layer_end) {
  std::vector<bool> inside(graph.nodes.size(), false);
  for (size_t n = 0; n < graph.nodes.size(); ++n) inside[n] = belongs(graph.nodes[n], cut, layer_begin, layer_end);
  return of_inside(graph, cut, layer_begin, layer_end, inside, {});
}

Segment Segment::of_nodes(const Graph& graph, motley_cut cut, int32_t layer_begin, int32_t layer_end, size_t node_begin,
                          size_t node_end, std::span<const int32_t> kept) {
  std::vector<bool> inside(graph.nodes.size(), false);
  for (size_t n = node_begin; n < node_end; ++n) inside[n] = true;
  return of_inside(graph, cut, layer_begin, layer_end, inside, kept);
}

Segment Segment::of_inside(const Graph& graph, motley_cut cut, int32_t layer_begin, int32_t layer_end,
                           const std::vector<bool>& inside, std::span<const int32_t> kept) {
  Segment segment;
  segment.cut_ = cut;
  segment.layer_begin_ = layer_begin;
  segment.layer_end_ = layer_end;
  for (size_t n = 0; n < graph.nodes.size(); ++n) {
    if (inside[n]) segment.add(graph, graph.nodes[n]);
  }
  segment.find_borders(graph, inside, kept);
  return segment;
}

motley_segment Segment::view() const {
  motley_segment view{};
  view.struct_size = sizeof view;
  view.cut = cut_;
  view.layer_begin = layer_begin_;
  view.layer_end = layer_end_;
  view.values = values_.data();
  view.value_count = static_cast<uint32_t>(values_.size());
  view.ops = ops_.data();
  view.op_count = static_cast<uint32_t>(ops_.size());
  view.inputs = inputs_.data();
  view.input_count = static_cast<uint32_t>(inputs_.size());
  view.outputs = outputs_.data();
  view.output_count = static_cast<uint32_t>(outputs_.size());
  view.weight_count = static_cast<uint32_t>(graph_weights_.size());
  uint64_t hash = kHashStart;
  const std::array<int32_t, 3> head = {cut_, layer_begin_, layer_end_};
  hash = hash_bytes(hash, head.data(), sizeof head);
  hash = hash_vector(hash, values_);
  hash = hash_vector(hash, ops_);
  hash = hash_vector(hash, inputs_);
  view.hash = hash_vector(hash, outputs_);
  return view;
}

}  // namespace motley
