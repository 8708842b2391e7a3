#include "model/graph_builder.hpp"

#include <algorithm>
#include <cmath>

namespace motley {
namespace {
// GraphWeight::uses
constexpr uint32_t kUseMatmul = 1;
constexpr uint32_t kUseGather = 2;
constexpr uint32_t kUseVector = 4;

constexpr std::string_view kEmbeddingName = "token_embd.weight";
}  // namespace

GraphBuilder::GraphBuilder(const GgufFile& file, const HyperParameters& parameters)
    : file_(file), parameters_(parameters) {}

void GraphBuilder::embed(float scale) {
  part_ = Part::kEmbed;
  graph_.token_slots = static_cast<int32_t>(graph_.values.size());
  GraphValue slots{.name = "token_slots", .shape = {.dtype = MOTLEY_I32, .rank = 1, .dims = {MOTLEY_DIM_SLOTS}}};
  graph_.values.push_back(std::move(slots));
  residual_ = new_value("residual", MOTLEY_F32, MOTLEY_DIM_ROWS, hidden());
  graph_.residual = residual_.id;
  motley_op& op = add_node(MOTLEY_OP_EMBED);
  op.in[0] = graph_.token_slots;
  op.out[0] = residual_.id;
  op.weight[0] = matrix(std::string(kEmbeddingName), vocabulary(), hidden(), kUseGather);
  op.attr.embed.scale = scale;
}

void GraphBuilder::each_layer(const std::function<void()>& layer) {
  for (layer_ = 0; layer_ < static_cast<int32_t>(config().layers); ++layer_) layer();
  layer_ = -1;
}

void GraphBuilder::add_to_residual(Value x) {
  CHECK(width_of(x).size == width_of(residual_).size);
  motley_op& op = add_node(MOTLEY_OP_ADD);
  op.in[0] = residual_.id;
  op.in[1] = x.id;
  op.out[0] = residual_.id;
}

Value GraphBuilder::matmul(Value x, std::string_view weight, Width out) {
  const Value result = like(x, weight, out);
  motley_op& op = add_node(MOTLEY_OP_MATMUL);
  op.in[0] = x.id;
  op.out[0] = result.id;
  op.weight[0] = matrix(layer_weight(weight), out, width_of(x), kUseMatmul);
  return result;
}

Value GraphBuilder::rms_norm(Value x, std::string_view weight) {
  return add_norm(x, layer_weight(weight), width_of(x).size, width_of(x).axis);
}

Value GraphBuilder::head_norm(Value x, std::string_view weight) {
  return add_norm(x, layer_weight(weight), config().head_dim, Axis::kNone);
}

Value GraphBuilder::add_norm(Value x, const std::string& weight, int64_t group, Axis axis) {
  const Value result = like(x, "norm", width_of(x));
  motley_op& op = add_node(MOTLEY_OP_RMSNORM);
  op.in[0] = x.id;
  op.out[0] = result.id;
  op.weight[0] = vector(weight, {group, axis});
  op.attr.norm.eps = config().norm_eps;
  op.attr.norm.group = static_cast<int32_t>(group);
  return result;
}

Value GraphBuilder::rope(Value x, motley_rope_style style, bool frequency_divisors) {
  constexpr std::string_view kDivisors = "rope_freqs.weight";
  const Value result = like(x, "rope", width_of(x));
  motley_op& op = add_node(MOTLEY_OP_ROPE);
  op.in[0] = x.id;
  op.out[0] = result.id;
  if (frequency_divisors && file_.find_tensor(kDivisors) != nullptr) {
    op.weight[0] = vector(std::string(kDivisors), {config().rope_dims / 2, Axis::kNone});
  }
  op.attr.rope = {.style = style,
                  .heads = static_cast<int32_t>(width_of(x).size / config().head_dim),
                  .head_dim = static_cast<int32_t>(config().head_dim),
                  .n_rot = static_cast<int32_t>(config().rope_dims),
                  .base = config().rope_base,
                  .position_scale = parameters_.rope_position_scale,
                  .magnitude = 1,
                  .yarn_factor = 1,
                  .yarn_ext_factor = 0,
                  .yarn_low = 0,
                  .yarn_high = 0};
  return result;
}

void GraphBuilder::kv_write(Value key, Value value) {
  CHECK(width_of(key).size == key_value().size && width_of(value).size == key_value().size);
  motley_op& op = add_node(MOTLEY_OP_KV_WRITE);
  op.in[0] = key.id;
  op.in[1] = value.id;
  op.attr.kv = {.layer = layer_,
                .kv_heads = static_cast<int32_t>(config().kv_heads),
                .head_dim = static_cast<int32_t>(config().head_dim)};
}

Value GraphBuilder::paged_attention(Value queries) {
  CHECK(width_of(queries).size == query().size);
  const Value result = like(queries, "attention", query());
  motley_op& op = add_node(MOTLEY_OP_PAGED_ATTENTION);
  op.in[0] = queries.id;
  op.out[0] = result.id;
  op.attr.attention = {.layer = layer_,
                       .heads = static_cast<int32_t>(config().heads),
                       .kv_heads = static_cast<int32_t>(config().kv_heads),
                       .head_dim = static_cast<int32_t>(config().head_dim),
                       .scale = 1.0f / std::sqrt(static_cast<float>(config().head_dim)),
                       .window = 0,
                       .softcap = 0};
  return result;
}

Value GraphBuilder::silu_mul(Value gate, Value up) {
  CHECK(width_of(gate).size == width_of(up).size);
  const Value result = like(gate, "silu_mul", width_of(gate));
  motley_op& op = add_node(MOTLEY_OP_SILU_MUL);
  op.in[0] = gate.id;
  op.in[1] = up.id;
  op.out[0] = result.id;
  return result;
}

void GraphBuilder::head() {
  part_ = Part::kHead;
  const Value rows = new_value("head_rows", MOTLEY_F32, MOTLEY_DIM_HEAD_ROWS, hidden());
  motley_op& select = add_node(MOTLEY_OP_SELECT_ROWS);
  select.in[0] = residual_.id;
  select.out[0] = rows.id;
  const Value normed = add_norm(rows, "output_norm.weight", hidden().size, Axis::kHidden);
  const Value logits = new_value("logits", MOTLEY_F32, MOTLEY_DIM_HEAD_ROWS, vocabulary());
  graph_.logits = logits.id;
  motley_op& project = add_node(MOTLEY_OP_MATMUL);
  project.in[0] = normed.id;
  project.out[0] = logits.id;
  const std::string_view output = config().tied_head ? kEmbeddingName : "output.weight";
  project.weight[0] = matrix(std::string(output), vocabulary(), hidden(), kUseMatmul);

  part_ = Part::kSample;
  graph_.sampled_ids = new_value("sampled_ids", MOTLEY_I32, MOTLEY_DIM_HEAD_ROWS, {}).id;
  graph_.sampled_logprobs = new_value("sampled_logprobs", MOTLEY_F32, MOTLEY_DIM_HEAD_ROWS, {}).id;
  graph_.top_ids = new_value("top_ids", MOTLEY_I32, MOTLEY_DIM_HEAD_ROWS, {MOTLEY_TOP_MAX, Axis::kNone}).id;
  graph_.top_logprobs = new_value("top_logprobs", MOTLEY_F32, MOTLEY_DIM_HEAD_ROWS, {MOTLEY_TOP_MAX, Axis::kNone}).id;
  motley_op& sample = add_node(MOTLEY_OP_SAMPLE);
  sample.in[0] = logits.id;
  sample.in[1] = graph_.token_slots;
  const int32_t outputs[] = {graph_.sampled_ids, graph_.sampled_logprobs, graph_.top_ids, graph_.top_logprobs};
  std::copy(std::begin(outputs), std::end(outputs), std::begin(sample.out));
}

// A width of size 0 makes a value of rank 1: [rows].
Value GraphBuilder::new_value(std::string name, int32_t dtype, int64_t rows, Width width) {
  GraphValue value{.name = std::move(name), .last_axis = width.axis};
  value.shape.dtype = dtype;
  value.shape.rank = width.size > 0 ? 2 : 1;
  value.shape.dims[0] = rows;
  value.shape.dims[1] = width.size;
  graph_.values.push_back(std::move(value));
  return {static_cast<int32_t>(graph_.values.size()) - 1};
}

Value GraphBuilder::like(Value x, std::string_view name, Width width) {
  const motley_value shape = graph_.values[static_cast<size_t>(x.id)].shape;
  return new_value(label(name), shape.dtype, shape.dims[0], width);
}

int32_t GraphBuilder::matrix(const std::string& name, Width rows, Width cols, uint32_t use) {
  return find_or_add({.name = name,
                      .rows = rows.size,
                      .cols = cols.size,
                      .row_axis = rows.axis,
                      .col_axis = cols.axis,
                      .uses = use,
                      .layer = layer_});
}

int32_t GraphBuilder::vector(const std::string& name, Width width) {
  const bool of_layer = name.starts_with("blk.");
  return find_or_add(
      {.name = name, .cols = width.size, .col_axis = width.axis, .uses = kUseVector, .layer = of_layer ? layer_ : -1});
}

int32_t GraphBuilder::find_or_add(GraphWeight weight) {
  // Only weights outside the layers are shared between nodes.
  if (weight.layer == -1) {
    for (size_t i = 0; i < graph_.weights.size(); ++i) {
      GraphWeight& known = graph_.weights[i];
      if (known.layer != -1 || known.name != weight.name) continue;
      CHECK(known.rows == weight.rows && known.cols == weight.cols);
      known.uses |= weight.uses;
      return static_cast<int32_t>(i);
    }
  }
  graph_.weights.push_back(std::move(weight));
  return static_cast<int32_t>(graph_.weights.size()) - 1;
}

std::string GraphBuilder::layer_weight(std::string_view name) const {
  CHECK(layer_ >= 0, "{} outside a layer", name);
  return fmt::format("blk.{}.{}.weight", layer_, name);
}

std::string GraphBuilder::label(std::string_view what) const {
  return layer_ < 0 ? std::string(what) : fmt::format("blk.{}.{}.{}", layer_, what, graph_.values.size());
}

Width GraphBuilder::width_of(Value x) const {
  const GraphValue& value = graph_.values[static_cast<size_t>(x.id)];
  return {value.shape.dims[1], value.last_axis};
}

motley_op& GraphBuilder::add_node(motley_op_kind kind) {
  GraphNode node;
  node.part = part_;
  node.layer = layer_;
  node.op.kind = kind;
  std::fill(std::begin(node.op.in), std::end(node.op.in), MOTLEY_NONE);
  std::fill(std::begin(node.op.out), std::end(node.op.out), MOTLEY_NONE);
  std::fill(std::begin(node.op.weight), std::end(node.op.weight), MOTLEY_NONE);
  graph_.nodes.push_back(node);
  return graph_.nodes.back().op;
}

}  // namespace motley
