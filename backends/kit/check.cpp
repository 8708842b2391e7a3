// Segments: arity, shapes, order of writing and reading.
// SPDX-License-Identifier: Apache-2.0
#include "kit/check.hpp"

#include <cmath>
#include <cstdio>

namespace motley::kit {

namespace {

struct Arity {
  const char* name;
  int in_min, in_max, out_min, out_max, weight_min, weight_max;
};

// Indexed by motley_op_kind.
constexpr Arity kArity[MOTLEY_OP_KIND_COUNT] = {
    {"EMBED", 0, 1, 1, 1, 1, 1},
    {"MATMUL", 1, 1, 1, 1, 1, 2},
    {"ADD", 2, 2, 1, 1, 0, 0},
    {"MUL", 2, 2, 1, 1, 0, 0},
    {"SCALE", 1, 1, 1, 1, 0, 0},
    {"RMSNORM", 1, 1, 1, 1, 1, 1},
    {"ROPE", 1, 1, 1, 1, 0, 1},
    {"SILU_MUL", 2, 2, 1, 1, 0, 0},
    {"GELU_MUL", 2, 2, 1, 1, 0, 0},
    {"SOFTCAP", 1, 1, 1, 1, 0, 0},
    {"SPLIT", 1, 1, 1, 4, 0, 0},
    {"CONCAT", 1, 4, 1, 1, 0, 0},
    {"CAST", 1, 1, 1, 1, 0, 0},
    {"KV_WRITE", 2, 2, 0, 0, 0, 0},
    {"PAGED_ATTENTION", 1, 1, 1, 2, 0, 1},
    {"ATTN_MERGE", 4, 4, 1, 2, 0, 0},
    {"SELECT_ROWS", 1, 1, 1, 1, 0, 0},
    {"SAMPLE", 1, 2, 1, 4, 0, 0},
    {"TOPK_ROUTER", 1, 1, 2, 2, 0, 0},
    {"GROUPED_MATMUL", 2, 2, 1, 1, 1, 2},
    {"ALL_REDUCE", 1, 1, 1, 1, 0, 0},
    {"COMBINE_EXPERTS", 2, 2, 1, 1, 0, 0},
    {"SIGMOID_MUL", 2, 2, 1, 1, 0, 0},
    {"CLAMPED_SWIGLU", 2, 2, 1, 1, 0, 0},
};

// Checks one op against its values. Member functions throw through require().
class OpCheck {
 public:
  OpCheck(const Plan& plan, const PlanOp& op, size_t index) : plan_(plan), op_(op), index_(index) {}

  void run() const {
    switch (op_.kind) {
      case MOTLEY_OP_EMBED: return embed();
      case MOTLEY_OP_MATMUL: return matmul();
      case MOTLEY_OP_ADD:
      case MOTLEY_OP_MUL:
      case MOTLEY_OP_SILU_MUL:
      case MOTLEY_OP_GELU_MUL: return same_f32({&in(0), &in(1), &out(0)});
      case MOTLEY_OP_SCALE: return same_f32({&in(0), &out(0)});
      case MOTLEY_OP_SOFTCAP:
        require(op_.attr.scale.factor > 0, "the cap is not positive");
        return same_f32({&in(0), &out(0)});
      case MOTLEY_OP_RMSNORM: return norm();
      case MOTLEY_OP_ROPE: return rope();
      case MOTLEY_OP_SPLIT: return split(op_.out, in(0));
      case MOTLEY_OP_CONCAT: return split(op_.in, out(0));
      case MOTLEY_OP_CAST: return cast();
      case MOTLEY_OP_KV_WRITE: return kv_write();
      case MOTLEY_OP_PAGED_ATTENTION: return attention();
      case MOTLEY_OP_ATTN_MERGE: return merge();
      case MOTLEY_OP_SELECT_ROWS: return select_rows();
      case MOTLEY_OP_SAMPLE: return sample();
      case MOTLEY_OP_TOPK_ROUTER: return router();
      case MOTLEY_OP_GROUPED_MATMUL: return grouped();
      case MOTLEY_OP_COMBINE_EXPERTS: return combine();
      case MOTLEY_OP_SIGMOID_MUL: return sigmoid_mul();
      case MOTLEY_OP_CLAMPED_SWIGLU:
        require(std::isfinite(op_.attr.glu.alpha) && op_.attr.glu.limit > 0, "alpha or limit out of range");
        return same_f32({&in(0), &in(1), &out(0)});
      default: require(false, "not for a plugin");
    }
  }

 private:
  void require(bool holds, const char* what) const {
    if (!holds) fail(MOTLEY_INVALID_ARGUMENT, "op %zu (%s): %s", index_, kArity[op_.kind].name, what);
  }
  bool has_in(size_t i) const { return i < op_.in.size() && op_.in[i] != MOTLEY_NONE; }
  bool has_out(size_t i) const { return i < op_.out.size() && op_.out[i] != MOTLEY_NONE; }
  const PlanValue& in(size_t i) const { return plan_.values[static_cast<size_t>(op_.in[i])]; }
  const PlanValue& out(size_t i) const { return plan_.values[static_cast<size_t>(op_.out[i])]; }
  void is(const PlanValue& value, int32_t dtype, int64_t rows, int64_t width, const char* what) const {
    require(value.dtype == dtype && value.rows == rows && value.width == width, what);
  }
  void same_f32(std::initializer_list<const PlanValue*> values) const {
    for (const PlanValue* v : values)
      is(*v, MOTLEY_F32, (*values.begin())->rows, (*values.begin())->width, "operands differ in shape or are not F32");
  }
  void slots(size_t i) const { is(in(i), MOTLEY_I32, MOTLEY_DIM_SLOTS, 1, "the token slots are not I32 [SLOTS]"); }

  void embed() const {
    require(out(0).dtype == MOTLEY_F32 && out(0).rows == MOTLEY_DIM_ROWS, "the output is not F32 [ROWS, n]");
    if (has_in(0)) slots(0);
  }
  void matmul() const {
    require(in(0).dtype == MOTLEY_F32 && out(0).dtype == MOTLEY_F32, "operands are not F32");
    require(in(0).rows == out(0).rows, "operands differ in rows");
  }
  void norm() const {
    same_f32({&in(0), &out(0)});
    require(op_.attr.norm.group > 0 && in(0).width % op_.attr.norm.group == 0, "the group does not divide the width");
    require(std::isfinite(op_.attr.norm.eps) && op_.attr.norm.eps >= 0, "eps is negative");
  }
  void heads(int64_t heads, int64_t dim) const {
    require(heads > 0 && heads <= kHeadsMax && dim > 0 && dim <= kHeadDimMax, "heads or head_dim out of range");
  }
  void rope() const {
    const auto& a = op_.attr.rope;
    same_f32({&in(0), &out(0)});
    heads(a.heads, a.head_dim);
    require(in(0).rows == MOTLEY_DIM_ROWS && in(0).width == int64_t{a.heads} * a.head_dim,
            "the input is not [ROWS, heads * head_dim]");
    require(a.style == MOTLEY_ROPE_NORM || a.style == MOTLEY_ROPE_NEOX, "unknown style");
    require(a.n_rot > 0 && a.n_rot <= a.head_dim && a.n_rot % 2 == 0, "n_rot is not even or beyond head_dim");
    require(a.base > 0 && std::isfinite(a.base), "base is not positive");
    require(a.yarn_ext_factor == 0 || a.yarn_factor > 0, "the YaRN factor is not positive");
  }
  void split(const std::vector<int32_t>& parts, const PlanValue& whole) const {
    int64_t last = 0;
    for (const int32_t id : parts) {
      if (id == MOTLEY_NONE) continue;
      const PlanValue& part = plan_.values[static_cast<size_t>(id)];
      require(part.dtype == whole.dtype && part.rows == whole.rows, "the parts differ from the whole in dtype or rows");
      require(part.width / part.last == whole.width / whole.last, "the parts differ from the whole in an inner axis");
      last += part.last;
    }
    require(last == whole.last, "the widths of the parts do not add up");
  }
  void cast() const {
    const auto is_float = [](int32_t t) { return t == MOTLEY_F32 || t == MOTLEY_F16 || t == MOTLEY_BF16; };
    require(is_float(in(0).dtype) && is_float(out(0).dtype), "only between F32, F16 and BF16");
    require(in(0).rows == out(0).rows && in(0).width == out(0).width, "operands differ in shape");
  }
  void layer(int32_t l) const { require(l >= 0 && static_cast<uint32_t>(l) < kLayersMax, "layer out of range"); }
  void kv_write() const {
    const auto& a = op_.attr.kv;
    heads(a.kv_heads, a.head_dim);
    layer(a.layer);
    for (size_t i = 0; i < 2; ++i)
      is(in(i), MOTLEY_F32, MOTLEY_DIM_ROWS, int64_t{a.kv_heads} * a.head_dim,
         "k and v are not F32 [ROWS, kv_heads * head_dim]");
  }
  void attention() const {
    const auto& a = op_.attr.attention;
    heads(a.heads, a.head_dim);
    layer(a.layer);
    require(a.kv_heads > 0 && a.heads % a.kv_heads == 0, "kv_heads does not divide heads");
    require(a.window >= 0 && a.softcap >= 0 && std::isfinite(a.scale), "window, softcap or scale out of range");
    for (const PlanValue* v : {&in(0), &out(0)})
      is(*v, MOTLEY_F32, MOTLEY_DIM_ROWS, int64_t{a.heads} * a.head_dim,
         "q or out is not F32 [ROWS, heads * head_dim]");
    if (has_out(1)) is(out(1), MOTLEY_F32, MOTLEY_DIM_ROWS, a.heads, "the log-sum-exp is not F32 [ROWS, heads]");
  }
  void merge() const {
    same_f32({&in(0), &in(1), &out(0)});
    same_f32({&in(2), &in(3)});
    require(in(2).rows == in(0).rows && in(0).width % in(2).width == 0, "the heads do not divide the width");
    if (has_out(1)) same_f32({&in(2), &out(1)});
  }
  void select_rows() const {
    require(in(0).rows == MOTLEY_DIM_ROWS && out(0).rows == MOTLEY_DIM_HEAD_ROWS && in(0).width == out(0).width &&
                in(0).dtype == out(0).dtype,
            "not [ROWS, n] -> [HEAD_ROWS, n] of one dtype");
  }
  void sample() const {
    require(in(0).dtype == MOTLEY_F32 && in(0).rows == MOTLEY_DIM_HEAD_ROWS,
            "the logits are not F32 [HEAD_ROWS, vocab]");
    if (has_in(1)) slots(1);
    is(out(0), MOTLEY_I32, MOTLEY_DIM_HEAD_ROWS, 1, "the ids are not I32 [HEAD_ROWS]");
    if (has_out(1)) is(out(1), MOTLEY_F32, MOTLEY_DIM_HEAD_ROWS, 1, "the log-probabilities are not F32 [HEAD_ROWS]");
    if (has_out(2))
      is(out(2), MOTLEY_I32, MOTLEY_DIM_HEAD_ROWS, MOTLEY_TOP_MAX, "the top ids are not I32 [HEAD_ROWS, 20]");
    if (has_out(3))
      is(out(3), MOTLEY_F32, MOTLEY_DIM_HEAD_ROWS, MOTLEY_TOP_MAX,
         "the top log-probabilities are not F32 [HEAD_ROWS, 20]");
  }
  void router() const {
    const auto& a = op_.attr.router;
    require(a.top_k > 0 && a.top_k <= a.experts, "top_k is not 1 .. experts");
    choices(a.top_k);
    require(a.gating >= 1 && a.gating <= 3, "unknown gating");
    is(in(0), MOTLEY_F32, in(0).rows, a.experts, "the logits are not F32 [R, experts]");
    is(out(0), MOTLEY_I32, in(0).rows, a.top_k, "the ids are not I32 [R, top_k]");
    is(out(1), MOTLEY_F32, in(0).rows, a.top_k, "the weights are not F32 [R, top_k]");
  }
  void choices(int64_t top_k) const { require(top_k <= kChoicesMax, "a row chooses more than 1024 experts"); }
  void grouped() const {
    const int64_t rows = in(0).rows, top_k = in(1).width;
    choices(top_k);
    require(rows == MOTLEY_DIM_ROWS || rows == MOTLEY_DIM_HEAD_ROWS, "the first dimension is not that of the rows");
    require(in(0).width == in(0).last || in(0).width == top_k * in(0).last, "the input is not [R, k] or [R, top_k, k]");
    is(in(0), MOTLEY_F32, rows, in(0).width, "the input is not F32");
    is(in(1), MOTLEY_I32, rows, top_k, "the ids are not I32 [R, top_k]");
    is(out(0), MOTLEY_F32, rows, top_k * out(0).last, "the output is not F32 [R, top_k, n]");
  }
  void combine() const {
    const int64_t top_k = in(1).width;
    choices(top_k);
    is(in(0), MOTLEY_F32, in(0).rows, top_k * in(0).last, "the input is not F32 [R, top_k, n]");
    is(in(1), MOTLEY_F32, in(0).rows, top_k, "the weights are not F32 [R, top_k]");
    is(out(0), MOTLEY_F32, in(0).rows, in(0).last, "the output is not F32 [R, n]");
  }
  void sigmoid_mul() const {
    same_f32({&in(0), &out(0)});
    is(in(1), MOTLEY_F32, in(0).rows, in(1).width == 1 ? 1 : in(0).width, "the gate is not F32 [R, n] or [R, 1]");
  }

  const Plan& plan_;
  const PlanOp& op_;
  size_t index_;
};

PlanValue check_value(const motley_value& from, uint32_t index) {
  PlanValue value;
  value.dtype = from.dtype;
  const int64_t size = element_bytes(from.dtype);
  if (size == 0) fail(MOTLEY_INVALID_ARGUMENT, "value %u: dtype %d", index, from.dtype);
  if (from.rank < 1 || from.rank > MOTLEY_RANK_MAX)
    fail(MOTLEY_INVALID_ARGUMENT, "value %u: rank %d", index, from.rank);
  value.rows = from.dims[0];
  if (value.rows < MOTLEY_DIM_SLOTS || value.rows == 0 || value.rows > kExtentMax)
    fail(MOTLEY_INVALID_ARGUMENT, "value %u: first dimension %lld", index, static_cast<long long>(value.rows));
  for (int32_t i = 1; i < from.rank; ++i) {
    if (from.dims[i] < 1 || from.dims[i] > kExtentMax || value.width > kExtentMax / from.dims[i])
      fail(MOTLEY_INVALID_ARGUMENT, "value %u: dimension %d is %lld", index, i, static_cast<long long>(from.dims[i]));
    value.width *= from.dims[i];
    value.last = from.dims[i];
  }
  value.row_bytes = value.width * size;
  return value;
}

// Copies ids[0, max) up to the last one present; checks range and arity.
std::vector<int32_t> take_ids(const int32_t* ids, int slots, int min, int max, uint32_t count, const char* what,
                              size_t op, const char* name) {
  int used = 0;
  for (int i = 0; i < slots; ++i) {
    if (ids[i] == MOTLEY_NONE) continue;
    if (ids[i] < 0 || static_cast<uint32_t>(ids[i]) >= count)
      fail(MOTLEY_INVALID_ARGUMENT, "op %zu (%s): %s %d is id %d of %u", op, name, what, i, ids[i], count);
    used = i + 1;
  }
  bool complete = used >= min && used <= max;
  for (int i = 0; i < min && complete; ++i) complete = ids[i] != MOTLEY_NONE;
  if (!complete) fail(MOTLEY_INVALID_ARGUMENT, "op %zu (%s): takes %d to %d %ss", op, name, min, max, what);
  return {ids, ids + used};
}

PlanOp take_op(const motley_op& from, const motley_segment& segment, size_t index) {
  if (from.kind < 0 || from.kind >= MOTLEY_OP_KIND_COUNT)
    fail(MOTLEY_INVALID_ARGUMENT, "op %zu: unknown kind %d", index, from.kind);
  const Arity& arity = kArity[from.kind];
  PlanOp op;
  op.kind = from.kind;
  op.attr = from.attr;
  op.in = take_ids(from.in, MOTLEY_OP_INPUTS_MAX, arity.in_min, arity.in_max, segment.value_count, "input", index,
                   arity.name);
  op.out = take_ids(from.out, MOTLEY_OP_OUTPUTS_MAX, arity.out_min, arity.out_max, segment.value_count, "output", index,
                    arity.name);
  op.weight = take_ids(from.weight, MOTLEY_OP_WEIGHTS_MAX, arity.weight_min, arity.weight_max, segment.weight_count,
                       "weight", index, arity.name);
  // Absent trailing entries are MOTLEY_NONE, so that kernels may index up to the op's arity.
  op.in.resize(static_cast<size_t>(arity.in_max), MOTLEY_NONE);
  op.out.resize(static_cast<size_t>(arity.out_max), MOTLEY_NONE);
  op.weight.resize(static_cast<size_t>(arity.weight_max), MOTLEY_NONE);
  if (op.kind == MOTLEY_OP_SAMPLE) op.writes_in = 2;
  if (op.kind == MOTLEY_OP_KV_WRITE) op.kv_write = op.attr.kv.layer;
  if (op.kind == MOTLEY_OP_PAGED_ATTENTION) op.kv_read = op.attr.attention.layer;
  return op;
}

// Follows values through the ops: written before read, written once (but for what is updated in place).
class Order {
 public:
  explicit Order(const CheckedSegment& segment) : state_(segment.plan.values.size()) {
    for (const int32_t id : segment.inputs) at(id).known = at(id).input = true;
    for (const int32_t id : segment.outputs) at(id).output = true;
  }
  void op(const PlanOp& op, size_t index) {
    for (const int32_t id : op.in)
      if (id != MOTLEY_NONE && !at(id).known)
        fail(MOTLEY_INVALID_ARGUMENT, "op %zu (%s): reads value %d before it is written", index, kArity[op.kind].name,
             id);
    for (size_t i = 0; i < op.out.size(); ++i)
      if (op.out[i] != MOTLEY_NONE) write(op, index, i);
    for (size_t i = 0; i < op.in.size(); ++i)
      if ((op.writes_in >> i & 1) && op.in[i] != MOTLEY_NONE && at(op.in[i]).input && !at(op.in[i]).output)
        fail(MOTLEY_INVALID_ARGUMENT, "op %zu (%s): writes value %d, which is an input but no output", index,
             kArity[op.kind].name, op.in[i]);
  }
  void end(const CheckedSegment& segment) {
    for (const int32_t id : segment.outputs)
      if (!at(id).known) fail(MOTLEY_INVALID_ARGUMENT, "output value %d is never written", id);
  }

 private:
  struct State {
    bool known = false, input = false, output = false;
  };
  State& at(int32_t id) { return state_[static_cast<size_t>(id)]; }
  void write(const PlanOp& op, size_t index, size_t i) {
    const int32_t id = op.out[i];
    const bool reads_it = std::find(op.in.begin(), op.in.end(), id) != op.in.end();
    const bool twice =
        std::find(op.out.begin(), op.out.begin() + static_cast<long>(i), id) != op.out.begin() + static_cast<long>(i);
    const bool in_place = op.kind == MOTLEY_OP_ADD && op.in[0] == id;
    State& s = at(id);
    const bool allowed = !twice && (reads_it ? in_place && (!s.input || s.output) : !s.known || (s.input && s.output));
    if (!allowed)
      fail(MOTLEY_INVALID_ARGUMENT, "op %zu (%s): value %d may not be written here", index, kArity[op.kind].name, id);
    s.known = true;
  }
  std::vector<State> state_;
};

std::vector<int32_t> take_bound(const int32_t* ids, uint32_t count, uint32_t values, const char* what) {
  if (count > values || (count > 0 && !ids))
    fail(MOTLEY_INVALID_ARGUMENT, "%u %s ids of %u values", count, what, values);
  std::vector<bool> seen(values);
  for (uint32_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || static_cast<uint32_t>(ids[i]) >= values || seen[static_cast<size_t>(ids[i])])
      fail(MOTLEY_INVALID_ARGUMENT, "%s %u is value %d: unknown or named twice", what, i, ids[i]);
    seen[static_cast<size_t>(ids[i])] = true;
  }
  return {ids, ids + count};
}

void note_needs(CheckedSegment& s, const PlanOp& op) {
  const auto value = [&](int32_t id) -> const PlanValue& { return s.plan.values[static_cast<size_t>(id)]; };
  s.needs_tokens |= op.kind == MOTLEY_OP_EMBED;
  s.needs_positions |= op.kind == MOTLEY_OP_ROPE || op.kind == MOTLEY_OP_PAGED_ATTENTION;
  s.needs_sequences |= op.kind == MOTLEY_OP_PAGED_ATTENTION;
  s.only_partial &= op.kind != MOTLEY_OP_PAGED_ATTENTION || (op.out.size() > 1 && op.out[1] != MOTLEY_NONE);
  s.needs_kv_slots |= op.kind == MOTLEY_OP_KV_WRITE;
  s.needs_head_rows |= op.kind == MOTLEY_OP_SELECT_ROWS;
  if (op.kind == MOTLEY_OP_SAMPLE) {
    s.needs_samples = true;
    const int64_t vocab = value(op.in[0]).width;
    s.sample_vocab = s.sample_vocab ? std::min(s.sample_vocab, vocab) : vocab;
  }
  if (op.kind == MOTLEY_OP_KV_WRITE)
    s.kv_uses.push_back({op.attr.kv.layer, op.attr.kv.kv_heads, op.attr.kv.head_dim, false, 0});
  if (op.kind == MOTLEY_OP_PAGED_ATTENTION)
    s.kv_uses.push_back({op.attr.attention.layer, op.attr.attention.kv_heads, op.attr.attention.head_dim, true,
                         op.attr.attention.window});
}

}  // namespace

const char* op_name(int32_t kind) { return kArity[kind].name; }

CheckedSegment check_segment(const motley_segment& segment, uint32_t* bad_op) {
  *bad_op = segment.op_count;
  if (segment.struct_size < sizeof segment)
    fail(MOTLEY_INVALID_ARGUMENT, "segment: struct_size %u", segment.struct_size);
  if (segment.value_count > kValuesMax || segment.op_count > kOpsMax || segment.weight_count > kWeightsMax ||
      (segment.value_count && !segment.values) || (segment.op_count && !segment.ops))
    fail(MOTLEY_INVALID_ARGUMENT, "segment: %u values, %u ops, %u weights", segment.value_count, segment.op_count,
         segment.weight_count);
  CheckedSegment s;
  s.plan.cut = segment.cut;
  for (uint32_t i = 0; i < segment.value_count; ++i) s.plan.values.push_back(check_value(segment.values[i], i));
  s.inputs = take_bound(segment.inputs, segment.input_count, segment.value_count, "input");
  s.outputs = take_bound(segment.outputs, segment.output_count, segment.value_count, "output");
  for (const auto* ids : {&s.inputs, &s.outputs})
    for (const int32_t id : *ids) s.plan.values[static_cast<size_t>(id)].bound = true;
  s.plan.weights.resize(segment.weight_count);
  Order order(s);
  for (uint32_t i = 0; i < segment.op_count; ++i) {
    *bad_op = i;
    const PlanOp& op = s.plan.ops.emplace_back(take_op(segment.ops[i], segment, i));
    OpCheck(s.plan, op, i).run();
    order.op(op, i);
    note_needs(s, op);
  }
  *bad_op = segment.op_count;
  order.end(s);
  return s;
}

void check_weights(const Plan& plan) {
  for (size_t i = 0; i < plan.ops.size(); ++i) {
    const PlanOp& op = plan.ops[i];
    const auto weight = [&](size_t at) -> const Weight* {
      return op.weight[at] == MOTLEY_NONE ? nullptr : plan.weights[static_cast<size_t>(op.weight[at])];
    };
    const auto require = [&](const Weight* w, bool fits) {
      if (!w || !fits)
        fail(MOTLEY_INVALID_ARGUMENT, "op %zu (%s): a weight is missing or of another shape or use", i,
             kArity[op.kind].name);
    };
    const auto vector = [&](size_t at, int64_t cols) {
      if (op.weight[at] != MOTLEY_NONE)
        require(weight(at), weight(at) && weight(at)->vector() && weight(at)->cols == cols);
    };
    const auto width = [&](int32_t id) { return plan.values[static_cast<size_t>(id)].width; };
    const auto last = [&](int32_t id) { return plan.values[static_cast<size_t>(id)].last; };
    const auto matrix = [&](uint32_t use, int64_t experts, int64_t rows, int64_t cols) {
      const Weight* w = weight(0);
      require(w, w && (w->uses & use) && (experts == 0 || w->experts == experts) && (rows == 0 || w->rows == rows) &&
                     w->cols == cols);
    };
    switch (op.kind) {
      case MOTLEY_OP_EMBED: matrix(MOTLEY_WEIGHT_GATHER, 1, 0, width(op.out[0])); break;
      case MOTLEY_OP_MATMUL:
        matrix(MOTLEY_WEIGHT_MATMUL, 1, width(op.out[0]), width(op.in[0]));
        vector(1, width(op.out[0]));
        break;
      case MOTLEY_OP_GROUPED_MATMUL:
        matrix(MOTLEY_WEIGHT_MATMUL, 0, last(op.out[0]), last(op.in[0]));
        vector(1, weight(0)->experts * last(op.out[0]));
        break;
      case MOTLEY_OP_RMSNORM: vector(0, op.attr.norm.group); break;
      case MOTLEY_OP_ROPE: vector(0, op.attr.rope.n_rot / 2); break;
      case MOTLEY_OP_PAGED_ATTENTION: vector(0, op.attr.attention.heads); break;
      default: break;
    }
  }
}

int64_t embed_rows(const Plan& plan) {
  int64_t rows = 0;
  for (const PlanOp& op : plan.ops)
    if (op.kind == MOTLEY_OP_EMBED) {
      const int64_t here = plan.weights[static_cast<size_t>(op.weight[0])]->kept_rows.source_count();
      rows = rows ? std::min(rows, here) : here;
    }
  return rows;
}

}  // namespace motley::kit
