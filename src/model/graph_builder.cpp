#include "model/graph_builder.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

namespace motley {
namespace {
// GraphWeight::uses
constexpr uint32_t kUseMatmul = 1;
constexpr uint32_t kUseGather = 2;
constexpr uint32_t kUseVector = 4;

constexpr std::string_view kEmbeddingName = "token_embd.weight";

struct YarnRamp {
  float low = 0, high = 0;  // in dimensions
};

// The dimension whose pair turns `beta` times within the original context: arXiv:2309.00071, section 3.2, solved for
// the dimension as its authors' code does.
YarnRamp yarn_ramp(const Rope& rope, const ModelConfig& config) {
  CHECK(rope.original_context > 0);
  const auto dimension_of = [&](float beta) {
    const double turns = rope.original_context / (2 * std::numbers::pi * static_cast<double>(beta));
    return config.rope_dims * std::log(turns) / (2 * std::log(static_cast<double>(config.rope_base)));
  };
  double low = dimension_of(rope.yarn_beta_fast), high = dimension_of(rope.yarn_beta_slow);
  if (rope.yarn_whole_bounds) low = std::floor(low), high = std::ceil(high);
  const double last = config.rope_dims - 1;
  return {static_cast<float>(std::clamp(low, 0.0, last)), static_cast<float>(std::clamp(high, 0.0, last))};
}
}  // namespace

GraphBuilder::GraphBuilder(const WeightNames& weights, const HyperParameters& parameters)
    : weights_(weights), parameters_(parameters) {}

void GraphBuilder::embed() {
  part_ = Part::kEmbed;
  graph_.token_slots = new_value("token_slots", MOTLEY_I32, {MOTLEY_DIM_SLOTS}, Axis::kNone).id;
  residual_ = new_value("residual", MOTLEY_F32, {MOTLEY_DIM_ROWS, hidden().size}, Axis::kHidden);
  graph_.residual = residual_.id;
  motley_op& op = add_node(MOTLEY_OP_EMBED);
  op.in[0] = graph_.token_slots;
  op.out[0] = residual_.id;
  op.weight[0] = matrix(std::string(kEmbeddingName), vocabulary(), hidden(), kUseGather);
  op.attr.embed.scale = parameters_.embedding_scale;
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

Value GraphBuilder::matmul(Value x, std::string_view weight, Width out, Bias bias) {
  const Value result = like(x, weight, out);
  motley_op& op = add_node(MOTLEY_OP_MATMUL);
  op.in[0] = x.id;
  op.out[0] = result.id;
  op.weight[0] = matrix(layer_weight(weight), out, width_of(x), kUseMatmul);
  use_bias(&op, weight, out, 1, bias);
  return result;
}

Value GraphBuilder::add(Value a, Value b) { return binary(MOTLEY_OP_ADD, a, b, "add"); }

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

Heads GraphBuilder::project_heads(Value x, Bias bias) {
  if (has("attn_qkv")) {
    const Width all{query().size + 2 * key_value().size, Axis::kNone};
    const auto parts = split(matmul(x, "attn_qkv", all, bias), "attn_qkv", {query(), key_value(), key_value()});
    return {parts[0], parts[1], parts[2]};
  }
  const Value query_rows = matmul(x, "attn_q", query(), bias);
  const Value key_rows = matmul(x, "attn_k", key_value(), bias);
  return {query_rows, key_rows, matmul(x, "attn_v", key_value(), bias)};
}

Value GraphBuilder::rope(Value x) {
  const Rope& rope = parameters_.rope;
  const bool of_window = rope.window_base > 0 && window_of_layer(parameters_, static_cast<uint32_t>(layer_)) > 0;
  const Value result = like(x, "rope", width_of(x));
  motley_op& op = add_node(MOTLEY_OP_ROPE);
  op.in[0] = x.id;
  op.out[0] = result.id;
  op.attr.rope = {.style = rope.style,
                  .heads = static_cast<int32_t>(width_of(x).size / config().head_dim),
                  .head_dim = static_cast<int32_t>(config().head_dim),
                  .n_rot = static_cast<int32_t>(config().rope_dims),
                  .base = of_window ? rope.window_base : config().rope_base,
                  .position_scale = 1,
                  .magnitude = 1,
                  .yarn_factor = 1,
                  .yarn_ext_factor = 0,
                  .yarn_low = 0,
                  .yarn_high = 0};
  if (of_window) return result;
  if (!rope.divisors.empty()) op.weight[0] = vector(rope.divisors, {config().rope_dims / 2, Axis::kNone});
  op.attr.rope.position_scale = 1 / rope.linear_factor;
  op.attr.rope.magnitude = rope.magnitude;
  if (rope.yarn_factor > 1) {
    const YarnRamp ramp = yarn_ramp(rope, config());
    op.attr.rope.yarn_factor = rope.yarn_factor;
    op.attr.rope.yarn_ext_factor = 1;
    op.attr.rope.yarn_low = ramp.low;
    op.attr.rope.yarn_high = ramp.high;
  }
  return result;
}

Value GraphBuilder::attend(const Heads& heads, std::string_view sinks) {
  CHECK(width_of(heads.key).size == key_value().size && width_of(heads.value).size == key_value().size);
  CHECK(width_of(heads.query).size == query().size);
  const auto kv_heads = static_cast<int32_t>(config().kv_heads);
  const auto head_dim = static_cast<int32_t>(config().head_dim);
  motley_op& write = add_node(MOTLEY_OP_KV_WRITE);
  write.in[0] = heads.key.id;
  write.in[1] = heads.value.id;
  write.attr.kv = {.layer = layer_, .kv_heads = kv_heads, .head_dim = head_dim};
  const Value result = like(heads.query, "attention", query());
  motley_op& op = add_node(MOTLEY_OP_PAGED_ATTENTION);
  op.in[0] = heads.query.id;
  op.out[0] = result.id;
  if (!sinks.empty()) op.weight[0] = vector(layer_weight(sinks), {config().heads, Axis::kHeads});
  const float scale = parameters_.attention_scale;
  op.attr.attention = {.layer = layer_,
                       .heads = static_cast<int32_t>(config().heads),
                       .kv_heads = kv_heads,
                       .head_dim = head_dim,
                       .scale = scale > 0 ? scale : 1.0f / std::sqrt(static_cast<float>(head_dim)),
                       .window = static_cast<int32_t>(window_of_layer(parameters_, static_cast<uint32_t>(layer_))),
                       .softcap = parameters_.attention_softcap};
  return result;
}

Value GraphBuilder::activate(Gate kind, Value gate, Value up) {
  switch (kind) {
    case Gate::kSilu: return binary(MOTLEY_OP_SILU_MUL, gate, up, "silu_mul");
    case Gate::kGelu: return binary(MOTLEY_OP_GELU_MUL, gate, up, "gelu_mul");
    case Gate::kClampedSwiglu: break;
  }
  const Value result = binary(MOTLEY_OP_CLAMPED_SWIGLU, gate, up, "swiglu");
  graph_.nodes.back().op.attr.glu = {.alpha = parameters_.glu_alpha, .limit = parameters_.glu_limit};
  return result;
}

Value GraphBuilder::gated_ffn(Value x, Gate gate) {
  const Value gate_rows = matmul(x, "ffn_gate", ffn());
  const Value up = matmul(x, "ffn_up", ffn());
  return matmul(activate(gate, gate_rows, up), "ffn_down", hidden());
}

Value GraphBuilder::fused_gated_ffn(Value x, Gate gate) {
  const Value both = matmul(x, "ffn_up", {2 * ffn().size, Axis::kNone});
  const auto halves = split(both, "ffn_up", {ffn(), ffn()});
  return matmul(activate(gate, halves[0], halves[1]), "ffn_down", hidden());
}

GraphBuilder::Choice GraphBuilder::choose_experts(Value x, Bias bias) {
  const Experts& experts = parameters_.experts;
  CHECK(experts.used > 0 && experts.used <= experts.count);
  const Value scores = matmul(x, "ffn_gate_inp", {experts.count, Axis::kExperts}, bias);
  const std::vector<int64_t> choices = {MOTLEY_DIM_ROWS, experts.used};
  const Value ids = new_value(label("expert_ids"), MOTLEY_I32, choices, Axis::kNone);
  const Value weights = new_value(label("expert_weights"), MOTLEY_F32, choices, Axis::kNone);
  motley_op& route = add_node(MOTLEY_OP_TOPK_ROUTER);
  route.in[0] = scores.id;
  route.out[0] = ids.id;
  route.out[1] = weights.id;
  route.attr.router = {.experts = static_cast<int32_t>(experts.count),
                       .top_k = static_cast<int32_t>(experts.used),
                       .gating = experts.gating,
                       .normalise = experts.normalise ? 1 : 0,
                       .scale = experts.scale};
  return {ids, weights};
}

Value GraphBuilder::experts(Value x, Gate gate, Bias bias) {
  const Width width{parameters_.experts.ffn, Axis::kFfn};
  const Choice choice = choose_experts(x, bias);
  Value inner;
  if (has("ffn_gate_up_exps")) {
    const Value both = grouped_matmul(x, choice.ids, "ffn_gate_up_exps", {2 * width.size, Axis::kNone}, bias);
    const auto halves = split(both, "ffn_gate_up_exps", {width, width});
    inner = activate(gate, halves[0], halves[1]);
  } else {
    const Value gate_rows = grouped_matmul(x, choice.ids, "ffn_gate_exps", width, bias);
    const Value up = grouped_matmul(x, choice.ids, "ffn_up_exps", width, bias);
    inner = activate(gate, gate_rows, up);
  }
  const Value outputs = grouped_matmul(inner, choice.ids, "ffn_down_exps", hidden(), bias);
  const Value result = like(x, "experts", hidden());
  motley_op& combine = add_node(MOTLEY_OP_COMBINE_EXPERTS);
  combine.in[0] = outputs.id;
  combine.in[1] = choice.weights.id;
  combine.out[0] = result.id;
  return result;
}

Value GraphBuilder::shared_expert(Value x, Gate gate) {
  const Width width{parameters_.experts.shared_ffn, Axis::kFfn};
  const Value gate_rows = matmul(x, "ffn_gate_shexp", width);
  const Value up = matmul(x, "ffn_up_shexp", width);
  const Value output = matmul(activate(gate, gate_rows, up), "ffn_down_shexp", hidden());
  const Value share = matmul(x, "ffn_gate_inp_shexp", {1, Axis::kNone});
  const Value result = like(x, "shared_expert", hidden());
  motley_op& op = add_node(MOTLEY_OP_SIGMOID_MUL);
  op.in[0] = output.id;
  op.in[1] = share.id;
  op.out[0] = result.id;
  return result;
}

// x: [rows, k], or [rows, choices, k] -> [rows, choices, out]
Value GraphBuilder::grouped_matmul(Value x, Value ids, std::string_view weight, Width out, Bias bias) {
  const auto experts = int64_t{parameters_.experts.count};
  const Value result =
      new_value(label(weight), MOTLEY_F32, {MOTLEY_DIM_ROWS, parameters_.experts.used, out.size}, out.axis);
  motley_op& op = add_node(MOTLEY_OP_GROUPED_MATMUL);
  op.in[0] = x.id;
  op.in[1] = ids.id;
  op.out[0] = result.id;
  op.weight[0] = matrix(layer_weight(weight), out, width_of(x), kUseMatmul, experts);
  use_bias(&op, weight, out, experts, bias);
  return result;
}

void GraphBuilder::head() {
  part_ = Part::kHead;
  const Value rows = new_value("head_rows", MOTLEY_F32, {MOTLEY_DIM_HEAD_ROWS, hidden().size}, Axis::kHidden);
  motley_op& select = add_node(MOTLEY_OP_SELECT_ROWS);
  select.in[0] = residual_.id;
  select.out[0] = rows.id;
  add_logits(add_norm(rows, "output_norm.weight", hidden().size, Axis::kHidden));
  part_ = Part::kSample;
  add_sample();
}

void GraphBuilder::add_logits(Value normed) {
  Value logits = like(normed, "logits", vocabulary());
  motley_op& project = add_node(MOTLEY_OP_MATMUL);
  project.in[0] = normed.id;
  project.out[0] = logits.id;
  const std::string_view output = config().tied_head ? kEmbeddingName : "output.weight";
  project.weight[0] = matrix(std::string(output), vocabulary(), hidden(), kUseMatmul);
  if (parameters_.logit_softcap > 0) {
    const Value capped = like(logits, "capped_logits", vocabulary());
    motley_op& cap = add_node(MOTLEY_OP_SOFTCAP);
    cap.in[0] = logits.id;
    cap.out[0] = capped.id;
    cap.attr.scale.factor = parameters_.logit_softcap;
    logits = capped;
  }
  graph_.logits = logits.id;
}

void GraphBuilder::add_sample() {
  const std::vector<int64_t> one = {MOTLEY_DIM_HEAD_ROWS}, several = {MOTLEY_DIM_HEAD_ROWS, MOTLEY_TOP_MAX};
  graph_.sampled_ids = new_value("sampled_ids", MOTLEY_I32, one, Axis::kNone).id;
  graph_.sampled_logprobs = new_value("sampled_logprobs", MOTLEY_F32, one, Axis::kNone).id;
  graph_.top_ids = new_value("top_ids", MOTLEY_I32, several, Axis::kNone).id;
  graph_.top_logprobs = new_value("top_logprobs", MOTLEY_F32, several, Axis::kNone).id;
  motley_op& sample = add_node(MOTLEY_OP_SAMPLE);
  sample.in[0] = graph_.logits;
  sample.in[1] = graph_.token_slots;
  const int32_t outputs[] = {graph_.sampled_ids, graph_.sampled_logprobs, graph_.top_ids, graph_.top_logprobs};
  std::copy(std::begin(outputs), std::end(outputs), std::begin(sample.out));
}

Value GraphBuilder::binary(motley_op_kind kind, Value a, Value b, std::string_view name) {
  CHECK(width_of(a).size == width_of(b).size);
  const Value result = like(a, name, width_of(a));
  motley_op& op = add_node(kind);
  op.in[0] = a.id;
  op.in[1] = b.id;
  op.out[0] = result.id;
  return result;
}

std::vector<Value> GraphBuilder::split(Value x, std::string_view name, const std::vector<Width>& parts) {
  CHECK(parts.size() <= MOTLEY_OP_OUTPUTS_MAX);
  std::vector<Value> values;
  int64_t total = 0;
  for (const Width& part : parts) {
    values.push_back(like(x, name, part));
    total += part.size;
  }
  CHECK(total == width_of(x).size);
  motley_op& op = add_node(MOTLEY_OP_SPLIT);
  op.in[0] = x.id;
  for (size_t i = 0; i < values.size(); ++i) op.out[i] = values[i].id;
  return values;
}

Value GraphBuilder::new_value(std::string name, int32_t dtype, std::vector<int64_t> dims, Axis axis) {
  CHECK(dims.size() <= MOTLEY_RANK_MAX);
  GraphValue value{.name = std::move(name), .last_axis = axis};
  value.shape.dtype = dtype;
  value.shape.rank = static_cast<int32_t>(dims.size());
  std::copy(dims.begin(), dims.end(), std::begin(value.shape.dims));
  graph_.values.push_back(std::move(value));
  return {static_cast<int32_t>(graph_.values.size()) - 1};
}

// x's shape but for the last axis.
Value GraphBuilder::like(Value x, std::string_view name, Width width) {
  const motley_value& shape = graph_.values[static_cast<size_t>(x.id)].shape;
  std::vector<int64_t> dims(shape.dims, shape.dims + shape.rank);
  dims.back() = width.size;
  return new_value(label(name), shape.dtype, std::move(dims), width.axis);
}

int32_t GraphBuilder::matrix(const std::string& name, Width rows, Width cols, uint32_t use, int64_t experts) {
  return find_or_add({.name = name,
                      .experts = experts,
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

void GraphBuilder::use_bias(motley_op* op, std::string_view weight, Width width, int64_t experts, Bias bias) {
  const std::string name = layer_weight(weight, ".bias");
  if (bias == Bias::kIfPresent && !weights_.has(name)) return;
  op->weight[1] = vector(name, {experts * width.size, width.axis});
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

bool GraphBuilder::has(std::string_view weight) const { return weights_.has(layer_weight(weight)); }

std::string GraphBuilder::layer_weight(std::string_view name, std::string_view suffix) const {
  CHECK(layer_ >= 0, "{} outside a layer", name);
  return fmt::format("blk.{}.{}{}", layer_, name, suffix);
}

std::string GraphBuilder::label(std::string_view what) const {
  return layer_ < 0 ? std::string(what) : fmt::format("blk.{}.{}.{}", layer_, what, graph_.values.size());
}

Width GraphBuilder::width_of(Value x) const {
  const GraphValue& value = graph_.values[static_cast<size_t>(x.id)];
  return {value.shape.dims[value.shape.rank - 1], value.last_axis};
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
