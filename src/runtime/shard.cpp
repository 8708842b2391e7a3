#include "runtime/shard.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <utility>

#include "model/axes.hpp"
#include "runtime/shard_check.hpp"

namespace motley {
namespace {

using Ranges = std::vector<motley_range>;

int64_t count_of(const Ranges& ranges) {
  int64_t count = 0;
  for (const motley_range& range : ranges) count += range.end - range.begin;
  return count;
}

Ranges scaled(const std::vector<UnitRange>& units, int64_t by) {
  Ranges out;
  for (const UnitRange& unit : units) {
    if (unit.begin < unit.end) out.push_back({unit.begin * by, unit.end * by});
  }
  return out;
}

// Whether the shard has units of the stage's layers.
bool in_layers(const Shard& shard) {
  return !shard.kv_heads.empty() || !shard.ffn_columns.empty() || !shard.experts.empty();
}

bool is_attention(const motley_op& op) { return op.kind == MOTLEY_OP_KV_WRITE || op.kind == MOTLEY_OP_PAGED_ATTENTION; }

class Cutter {
 public:
  Cutter(const Model& model, const Lane& lane, size_t stage, size_t shard, ShardRole role, LayerPrograms programs,
         uint32_t section)
      : role_(role),
        programs_(programs),
        sections_(lane.sections.size() + 1),
        model_(model),
        from_(model.graph()),
        stage_(lane.stages[stage]),
        shard_(stage_.shards[shard]),
        index_(shard),
        shared_(stage_.shards.size() > 1),
        parts_(programs == LayerPrograms::kParts ||
               std::count_if(stage_.shards.begin(), stage_.shards.end(), in_layers) > 1),
        first_(stage == 0),
        last_(stage + 1 == lane.stages.size()),
        layouts_(from_.values.size()),
        mapped_(from_.values.size(), MOTLEY_NONE),
        weights_(from_.weights.size(), MOTLEY_NONE) {
    to_.role = role;
    to_.section = section;
    if (role == ShardRole::kAttention) return;
    if (role == ShardRole::kDense) to_.others.push_back(0);
    for (uint32_t s = 1; s < sections_ && !shard_.kv_heads.empty(); ++s) to_.others.push_back(s);
  }

  Result<ShardGraph> cut();

 private:
  // What this shard has of a value. `kept`: of the last axis, where cut.
  struct Layout {
    enum class State {
      kWhole,
      kCut,
      kPartial,
      kByExpert  // zeros where another shard's expert was chosen; every op up to COMBINE_EXPERTS keeps zeros
    };
    State state = State::kWhole;
    Ranges kept;
    bool absent = false;  // no unit of it is here; cut, partial or by expert elsewhere
  };
  using State = Layout::State;

  Status add(const GraphNode& node);
  Status add_matmul(const GraphNode& node);
  Status add_grouped(const GraphNode& node);
  Status add_split(const GraphNode& node);
  Status add_sum(const GraphNode& node);
  Status add_embed(const GraphNode& node);
  Status add_sample(const GraphNode& node);
  Status add_alike(const GraphNode& node);

  std::vector<UnitRange> query_heads() const {
    return query_heads_of(shard_, int64_t{model_.config().heads} / model_.config().kv_heads);
  }
  Ranges kept_of(Axis axis) const;
  std::optional<Ranges> kept_rows(const GraphNode& node) const;
  const Layout& layout(int32_t value) const { return layouts_[static_cast<size_t>(value)]; }
  bool first_with(bool (*has)(const Shard&)) const;
  int32_t value(int32_t source);
  int32_t weight(int32_t source, const Ranges& rows, const Ranges& cols, const Ranges& experts);
  int32_t vector(int32_t source, const Ranges& cols) { return weight(source, {}, cols, {}); }
  void emit(const GraphNode& node, const motley_op& op, const Layout& out);
  void append(const GraphNode& node, motley_op op);
  void append_here(const GraphNode& node, motley_op op);
  struct Attended {
    int32_t result = MOTLEY_NONE, log_sum_exp = MOTLEY_NONE;  // values of the shard's graph
  };
  void attend_in_parts(const GraphNode& node);
  void attend_here(std::vector<GraphNode> nodes, const Attended& makes);
  std::vector<Attended> attended_values(const GraphNode& attention);
  void merge(const GraphNode& attention, const std::vector<Attended>& parts);
  int32_t new_value(const GraphNode& node, std::string name, int64_t width);
  void add_node(const GraphNode& node, const motley_op& op);
  void hand_over();
  void name_cuts();
  void reduce(int32_t source);
  void make_whole(const motley_op& op);
  void begin_program(const GraphNode& node);
  void finish();
  void drop_dead_nodes();
  void drop_unused_weights();
  bool takes_part(const GraphNode& node) const;
  Status unbuilt(const GraphNode& node) const;

  const ShardRole role_;
  const LayerPrograms programs_;
  const size_t sections_;  // of the pool
  const Model& model_;
  const Graph& from_;
  const Stage& stage_;
  const Shard& shard_;
  const size_t index_;
  const bool shared_;  // the stage has several shards
  const bool parts_;   // and several of them have units of its layers
  const bool first_, last_;
  std::vector<Layout> layouts_;   // by source value
  std::vector<int32_t> mapped_;   // source value -> value
  std::vector<int32_t> weights_;  // source weight -> weight
  ShardGraph to_;
  std::vector<size_t> piece_of_node_;
  std::vector<GraphNode> stores_;  // KV_WRITEs whose attention has not come yet; they name source values
};

// ---- values and weights

Ranges Cutter::kept_of(Axis axis) const {
  const ModelConfig& config = model_.config();
  switch (axis) {
    case Axis::kHeads: return scaled(query_heads(), config.head_dim);
    case Axis::kKvHeads: return scaled(shard_.kv_heads, config.head_dim);
    case Axis::kFfn: return scaled(shard_.ffn_columns, 1);
    case Axis::kVocab: return scaled(shard_.vocab_rows, 1);
    default: return {};
  }
}

bool is_unit_axis(Axis axis) {
  return axis == Axis::kHeads || axis == Axis::kKvHeads || axis == Axis::kFfn || axis == Axis::kVocab;
}

int64_t width_of(const GraphValue& value) { return value.shape.dims[value.shape.rank - 1]; }

// What this shard keeps of a product's results; nullopt: all of it. A product that is split afterwards keeps the parts
// of each piece.
std::optional<Ranges> Cutter::kept_rows(const GraphNode& node) const {
  const int32_t out = node.op.out[0];
  const GraphValue& result = from_.values[static_cast<size_t>(out)];
  if (is_unit_axis(result.last_axis)) return kept_of(result.last_axis);
  for (const GraphNode& reader : from_.nodes) {
    if (reader.op.kind != MOTLEY_OP_SPLIT || reader.op.in[0] != out) continue;
    Ranges joined;
    int64_t base = 0;
    bool units = false;
    for (const int32_t piece : reader.op.out) {
      if (piece < 0) continue;
      const GraphValue& part = from_.values[static_cast<size_t>(piece)];
      units = units || is_unit_axis(part.last_axis);
      for (const motley_range& range : kept_of(part.last_axis))
        joined.push_back({base + range.begin, base + range.end});
      base += width_of(part);
    }
    if (units) return joined;
  }
  return std::nullopt;
}

int32_t Cutter::value(int32_t source) {
  if (source < 0) return MOTLEY_NONE;
  int32_t& id = mapped_[static_cast<size_t>(source)];
  if (id >= 0) return id;
  GraphValue made = from_.values[static_cast<size_t>(source)];
  const Layout& here = layout(source);
  if (here.state == State::kCut) made.shape.dims[made.shape.rank - 1] = count_of(here.kept);
  id = static_cast<int32_t>(to_.graph.values.size());
  to_.graph.values.push_back(std::move(made));
  return id;
}

// Rows, columns and experts kept of a weight; empty = all.
int32_t Cutter::weight(int32_t source, const Ranges& rows, const Ranges& cols, const Ranges& experts) {
  if (source < 0) return MOTLEY_NONE;
  int32_t& id = weights_[static_cast<size_t>(source)];
  if (id >= 0) return id;
  GraphWeight made = from_.weights[static_cast<size_t>(source)];
  if (!rows.empty()) made.rows = count_of(rows);
  if (!cols.empty()) made.cols = count_of(cols);
  if (!experts.empty()) made.experts = count_of(experts);
  id = static_cast<int32_t>(to_.weights.size());
  to_.graph.weights.push_back(std::move(made));
  to_.weights.push_back({static_cast<size_t>(source), rows, cols, experts});
  return id;
}

// ---- pieces

void Cutter::begin_program(const GraphNode& node) {
  static constexpr auto cut_of = [](Part part, bool parts) {
    switch (part) {
      case Part::kEmbed: return MOTLEY_CUT_EMBED;
      case Part::kAttention: return parts ? MOTLEY_CUT_ATTN_PART : MOTLEY_CUT_STAGE;
      case Part::kFfn: return parts ? MOTLEY_CUT_FFN_PART : MOTLEY_CUT_STAGE;
      case Part::kHead: return MOTLEY_CUT_HEAD;
      case Part::kSample: return MOTLEY_CUT_SAMPLE;
    }
    return MOTLEY_CUT_STAGE;
  };
  const bool apart = role_ == ShardRole::kAttention || (!to_.others.empty() && is_attention(node.op));
  const motley_cut cut = cut_of(node.part, parts_ || apart);
  const bool layers = node.part == Part::kAttention || node.part == Part::kFfn;
  if (!to_.pieces.empty() && to_.pieces.back().kind == ShardPiece::Kind::kProgram) {
    ShardPiece& open = to_.pieces.back();
    const bool open_layers =
        open.cut != MOTLEY_CUT_EMBED && open.cut != MOTLEY_CUT_HEAD && open.cut != MOTLEY_CUT_SAMPLE;
    // Where a partner attends, it is met within each layer: what lies between two meetings is short.
    const bool each = programs_ == LayerPrograms::kEach && role_ != ShardRole::kDense;
    const bool goes_on = !each || node.layer < open.layer_end;
    if (layers ? open_layers && goes_on : open.cut == cut) {
      if (layers) open.layer_end = node.layer + 1, open.cut = cut;
      return;
    }
  }
  ShardPiece piece;
  piece.cut = cut;
  piece.layer_begin = layers ? node.layer : static_cast<int32_t>(stage_.layer_begin);
  piece.layer_end = layers ? node.layer + 1 : static_cast<int32_t>(stage_.layer_end);
  to_.pieces.push_back(piece);
}

// Appends the op, whose inputs and outputs name source values, with what it makes laid out as `out`.
void Cutter::emit(const GraphNode& node, const motley_op& op, const Layout& out) {
  for (const int32_t id : op.out) {
    if (id >= 0 && id != from_.residual) layouts_[static_cast<size_t>(id)] = out;
  }
  if (!out.absent) append(node, op);
}

void Cutter::append(const GraphNode& node, motley_op op) {
  const bool in_parts = role_ != ShardRole::kWhole || !to_.others.empty();
  if (in_parts && is_attention(op)) {
    stores_.push_back(node);
    stores_.back().op = op;
    if (op.kind == MOTLEY_OP_PAGED_ATTENTION) attend_in_parts(stores_.back());
  } else if (role_ != ShardRole::kAttention) {
    append_here(node, op);
  }
}

// A layer's attention with what it stores first, of which others have parts: on the one side or the other.
void Cutter::attend_in_parts(const GraphNode& attention) {
  const GraphNode node = attention;  // of stores_
  std::vector<GraphNode> nodes = std::exchange(stores_, {});
  ShardPiece over, back;
  over.kind = back.kind = ShardPiece::Kind::kPartner;
  over.layer_begin = back.layer_begin = node.layer;
  over.layer_end = back.layer_end = node.layer + 1;
  for (const GraphNode& each : nodes) {
    for (const int32_t id : each.op.in) {
      if (id >= 0) over.gives.push_back(value(id));
    }
  }
  const std::vector<Attended> parts = attended_values(node);
  const auto add_values = [](const Attended& part, std::vector<int32_t>* to) {
    to->push_back(part.result);
    if (part.log_sum_exp >= 0) to->push_back(part.log_sum_exp);
  };
  if (role_ == ShardRole::kAttention) {
    std::swap(over.gives, over.takes);
    add_values(parts[to_.section], &back.gives);
    to_.pieces.push_back(over);
    attend_here(std::move(nodes), parts[to_.section]);
    to_.pieces.push_back(back);
    return;
  }
  // What others make of it is asked for once this device's own part is done.
  ShardPiece* const last = role_ == ShardRole::kWhole ? &back : &over;
  for (const uint32_t section : to_.others) add_values(parts[section], &last->takes);
  to_.pieces.push_back(over);
  if (role_ == ShardRole::kWhole) {
    attend_here(std::move(nodes), parts[0]);
    to_.pieces.push_back(back);
  }
  merge(node, parts);
}

// Attention to what lies in this part's section. A sink counts once: where the first section is.
void Cutter::attend_here(std::vector<GraphNode> nodes, const Attended& makes) {
  for (GraphNode& node : nodes) {
    for (int32_t& id : node.op.in) id = value(id);
    if (node.op.kind == MOTLEY_OP_PAGED_ATTENTION) {
      node.op.out[0] = makes.result, node.op.out[1] = makes.log_sum_exp;
      if (to_.section > 0) node.op.weight[0] = MOTLEY_NONE;
    }
    add_node(node, node.op);
  }
}

// What the parts of an attention make of it, by section.
std::vector<Cutter::Attended> Cutter::attended_values(const GraphNode& attention) {
  const int32_t whole = value(attention.op.out[0]);
  if (sections_ == 1) return {{whole, MOTLEY_NONE}};
  std::vector<Attended> parts;
  const auto& shape = attention.op.attr.attention;
  for (size_t s = 0; s < sections_; ++s) {
    parts.push_back({new_value(attention, fmt::format("attended{}", s), int64_t{shape.heads} * shape.head_dim),
                     new_value(attention, fmt::format("log_sum_exp{}", s), shape.heads)});
  }
  return parts;
}

void Cutter::merge(const GraphNode& attention, const std::vector<Attended>& parts) {
  const auto& shape = attention.op.attr.attention;
  Attended merged = parts[0];
  for (size_t s = 1; s < parts.size(); ++s) {
    Attended next{value(attention.op.out[0]), MOTLEY_NONE};
    if (s + 1 < parts.size()) {
      next = {new_value(attention, fmt::format("merged{}", s), int64_t{shape.heads} * shape.head_dim),
              new_value(attention, fmt::format("merged_log_sum_exp{}", s), shape.heads)};
    }
    motley_op op = attention.op;
    op.kind = MOTLEY_OP_ATTN_MERGE;
    op.attr = {};
    const std::array<int32_t, MOTLEY_OP_INPUTS_MAX> in = {merged.result, parts[s].result, merged.log_sum_exp,
                                                          parts[s].log_sum_exp};
    std::copy(in.begin(), in.end(), op.in);
    op.out[0] = next.result, op.out[1] = next.log_sum_exp;
    std::fill(std::begin(op.weight), std::end(op.weight), MOTLEY_NONE);
    GraphNode node = attention;
    node.op = op;
    add_node(node, op);
    merged = next;
  }
}

int32_t Cutter::new_value(const GraphNode& node, std::string name, int64_t width) {
  GraphValue made;
  made.name = fmt::format("blk.{}.{}", node.layer, name);
  made.shape.dtype = MOTLEY_F32;
  made.shape.rank = 2;
  made.shape.dims[0] = MOTLEY_DIM_ROWS;
  made.shape.dims[1] = width;
  to_.graph.values.push_back(std::move(made));
  return static_cast<int32_t>(to_.graph.values.size() - 1);
}

void Cutter::append_here(const GraphNode& node, motley_op op) {
  for (int32_t& id : op.in) id = value(id);
  for (int32_t& id : op.out) id = value(id);
  add_node(node, op);
}

// The op names values of the shard's graph.
void Cutter::add_node(const GraphNode& node, const motley_op& op) {
  begin_program(node);
  GraphNode made = node;
  made.op = op;
  to_.graph.nodes.push_back(made);
  piece_of_node_.push_back(to_.pieces.size() - 1);
}

void Cutter::reduce(int32_t source) {
  Layout& here = layouts_[static_cast<size_t>(source)];
  ShardPiece piece;
  piece.kind = ShardPiece::Kind::kReduce;
  piece.contributes = !here.absent;
  here = {};
  if (role_ == ShardRole::kAttention) return;
  piece.value = value(source);
  to_.pieces.push_back(piece);
}

// The stage's other shards get the residual stream from the one that has computed its layers.
void Cutter::hand_over() {
  ShardPiece piece;
  piece.kind = ShardPiece::Kind::kReduce;
  piece.contributes = in_layers(shard_);
  piece.value = value(from_.residual);
  to_.pieces.push_back(piece);
}

void Cutter::make_whole(const motley_op& op) {
  for (const int32_t id : op.in) {
    if (id >= 0 && layout(id).state == State::kPartial) reduce(id);
  }
}

// ---- ops

Status Cutter::unbuilt(const GraphNode& node) const {
  return error(MOTLEY_UNIMPLEMENTED, "layer {} of {} cannot be computed in parts (op {}); use --pipeline-parallel-size",
               node.layer, model_.config().architecture, node.op.kind);
}

bool Cutter::first_with(bool (*has)(const Shard&)) const {
  for (size_t i = 0; i < index_; ++i) {
    if (has(stage_.shards[i])) return false;
  }
  return true;
}

Status Cutter::add_embed(const GraphNode& node) {
  motley_op op = node.op;
  const Ranges rows = kept_of(Axis::kVocab);
  if (!shared_) {
    op.weight[0] = weight(op.weight[0], {}, {}, {});
    emit(node, op, {});
    return ok_status();
  }
  const bool here = !rows.empty();
  if (here) {
    op.weight[0] = weight(op.weight[0], rows, {}, {});
    begin_program(node);
    emit(node, op, {});
  }
  ShardPiece piece;
  piece.kind = ShardPiece::Kind::kReduce;
  piece.contributes = here;
  piece.value = value(from_.residual);
  to_.pieces.push_back(piece);
  return ok_status();
}

Status Cutter::add_matmul(const GraphNode& node) {
  motley_op op = node.op;
  make_whole(op);
  const Layout in = layout(op.in[0]);
  if (in.state == State::kByExpert) return unbuilt(node);
  if (in.state == State::kCut) {
    const Axis axis = from_.weights[static_cast<size_t>(op.weight[0])].col_axis;
    const Layout out{State::kPartial, {}, in.absent};
    if (!in.absent) {
      const auto has = axis == Axis::kFfn ? [](const Shard& s) { return !s.ffn_columns.empty(); }
                                          : [](const Shard& s) { return !s.kv_heads.empty(); };
      op.weight[0] = weight(op.weight[0], {}, in.kept, {});
      // A bias is added once.
      op.weight[1] = op.weight[1] >= 0 && first_with(has) ? vector(op.weight[1], {}) : MOTLEY_NONE;
    }
    emit(node, op, out);
    return ok_status();
  }
  const bool in_parts = node.part == Part::kHead ? shared_ : parts_;
  const std::optional<Ranges> rows = in_parts ? kept_rows(node) : std::nullopt;
  Layout out;
  if (rows) out = {State::kCut, *rows, rows->empty()};
  if (!out.absent) {
    op.weight[0] = weight(op.weight[0], out.kept, {}, {});
    op.weight[1] = vector(op.weight[1], out.kept);
  }
  emit(node, op, out);
  return ok_status();
}

Status Cutter::add_grouped(const GraphNode& node) {
  motley_op op = node.op;
  make_whole(op);
  if (!parts_) {
    op.weight[0] = weight(op.weight[0], {}, {}, {});
    op.weight[1] = vector(op.weight[1], {});
    emit(node, op, {});
    return ok_status();
  }
  const Layout out{State::kByExpert, {}, shard_.experts.empty()};
  if (!out.absent) {
    Ranges experts, biases;
    const int64_t width = width_of(from_.values[static_cast<size_t>(op.out[0])]);
    for (const int32_t id : shard_.experts) {
      experts.push_back({id, int64_t{id} + 1});
      biases.push_back({id * width, (int64_t{id} + 1) * width});
    }
    op.weight[0] = weight(op.weight[0], {}, {}, experts);
    op.weight[1] = vector(op.weight[1], biases);
  }
  emit(node, op, out);
  return ok_status();
}

Status Cutter::add_split(const GraphNode& node) {
  const Layout in = layout(node.op.in[0]);
  if (in.state == State::kPartial) return unbuilt(node);
  if (in.state != State::kCut) {
    emit(node, node.op, in);
    return ok_status();
  }
  for (const int32_t id : node.op.out) {  // each piece keeps its own part
    if (id < 0) continue;
    const Ranges kept = kept_of(from_.values[static_cast<size_t>(id)].last_axis);
    layouts_[static_cast<size_t>(id)] = {State::kCut, kept, kept.empty()};
  }
  if (!in.absent) append(node, node.op);
  return ok_status();
}

// ADD: of two summands a summand; anything else needs the sums first.
Status Cutter::add_sum(const GraphNode& node) {
  const Layout a = layout(node.op.in[0]), b = layout(node.op.in[1]);
  if (a.state == State::kPartial && b.state == State::kPartial) {
    if (a.absent != b.absent) {  // the other operand is all there is of it here
      const int32_t out = node.op.out[0], present = node.op.in[a.absent ? 1 : 0];
      layouts_[static_cast<size_t>(out)] = layout(present);
      mapped_[static_cast<size_t>(out)] = value(present);
      return ok_status();
    }
    emit(node, node.op, a);
    return ok_status();
  }
  return add_alike(node);
}

// Ops that take each element, head or row by itself: the result is laid out as the input.
Status Cutter::add_alike(const GraphNode& node) {
  motley_op op = node.op;
  const bool linear = op.kind == MOTLEY_OP_SCALE || op.kind == MOTLEY_OP_SIGMOID_MUL;
  if (linear && layout(op.in[0]).state == State::kPartial) {
    const Layout out = layout(op.in[0]);
    if (op.in[1] >= 0 && layout(op.in[1]).state != State::kWhole) return unbuilt(node);
    emit(node, op, out);
    return ok_status();
  }
  make_whole(op);
  const Layout in = layout(op.in[0]);
  for (const int32_t id : op.in) {
    if (id >= 0 && (layout(id).state != in.state || layout(id).absent != in.absent) &&
        op.kind != MOTLEY_OP_COMBINE_EXPERTS)
      return unbuilt(node);
  }
  Layout out = in;
  const int64_t heads = in.state == State::kCut ? count_of(in.kept) / model_.config().head_dim : 0;
  const bool cut = in.state == State::kCut;
  switch (op.kind) {
    case MOTLEY_OP_RMSNORM:
      // A group that others hold parts of; one head's group is whole wherever the head is.
      if (cut && !in.absent && count_of(in.kept) < op.attr.norm.group) return unbuilt(node);
      break;
    case MOTLEY_OP_ROPE:
      if (cut) op.attr.rope.heads = static_cast<int32_t>(heads);
      break;
    case MOTLEY_OP_COMBINE_EXPERTS:
      if (in.state == State::kByExpert) out = {State::kPartial, {}, in.absent};
      break;
    case MOTLEY_OP_CAST:
    case MOTLEY_OP_CONCAT:
    case MOTLEY_OP_SOFTCAP:
    case MOTLEY_OP_SELECT_ROWS:
    case MOTLEY_OP_TOPK_ROUTER:
      if (in.state == State::kByExpert || (cut && op.kind != MOTLEY_OP_SOFTCAP)) return unbuilt(node);
      break;
    case MOTLEY_OP_KV_WRITE:
      op.attr.kv.layer -= static_cast<int32_t>(stage_.layer_begin);
      if (cut) op.attr.kv.kv_heads = static_cast<int32_t>(heads);
      break;
    case MOTLEY_OP_PAGED_ATTENTION:
      op.attr.attention.layer -= static_cast<int32_t>(stage_.layer_begin);
      if (cut) {
        op.attr.attention.kv_heads = static_cast<int32_t>(count_of(kept_of(Axis::kKvHeads)) / model_.config().head_dim);
        op.attr.attention.heads = static_cast<int32_t>(heads);
      }
      break;
    default: break;
  }
  if (op.weight[0] >= 0 && !out.absent) {  // norms, rope divisors; sinks have one element a head
    Ranges sinks;
    if (op.kind == MOTLEY_OP_PAGED_ATTENTION && cut) sinks = scaled(query_heads(), 1);
    op.weight[0] = vector(op.weight[0], sinks);
  }
  emit(node, op, out);
  return ok_status();
}

// Tokens are drawn from all logits, by one shard.
Status Cutter::add_sample(const GraphNode& node) {
  const auto has_vocab = [](const Shard& s) { return !s.vocab_rows.empty(); };
  const auto holders = std::count_if(stage_.shards.begin(), stage_.shards.end(), has_vocab);
  if (shared_ && shard_.vocab_rows.empty()) return ok_status();
  to_.samples = !shared_ || first_with(has_vocab);
  if (holders > 1) {
    ShardPiece piece;
    piece.kind = ShardPiece::Kind::kLogits;
    piece.value = value(from_.logits);
    to_.pieces.push_back(piece);
    if (!to_.samples) return ok_status();
    mapped_[static_cast<size_t>(from_.logits)] = MOTLEY_NONE;  // from here on all of them
  }
  if (!to_.samples) return ok_status();
  layouts_[static_cast<size_t>(from_.logits)] = {};
  emit(node, node.op, {});
  return ok_status();
}

Status Cutter::add(const GraphNode& node) {
  switch (node.op.kind) {
    case MOTLEY_OP_EMBED: return add_embed(node);
    case MOTLEY_OP_MATMUL: return add_matmul(node);
    case MOTLEY_OP_GROUPED_MATMUL: return add_grouped(node);
    case MOTLEY_OP_SPLIT: return add_split(node);
    case MOTLEY_OP_ADD: return add_sum(node);
    case MOTLEY_OP_SAMPLE: return add_sample(node);
    case MOTLEY_OP_ATTN_MERGE:
    case MOTLEY_OP_ALL_REDUCE: return unbuilt(node);
    default: return add_alike(node);
  }
}

// ---- the whole

// Nodes whose results nobody here reads: the norms before parts of which this shard has no unit.
void Cutter::drop_dead_nodes() {
  Graph& graph = to_.graph;
  std::vector<bool> needed(graph.values.size(), false);
  const auto need = [&](int32_t id) {
    if (id >= 0) needed[static_cast<size_t>(id)] = true;
  };
  for (const int32_t id : {graph.residual, graph.logits, graph.sampled_ids}) need(id);
  for (const ShardPiece& piece : to_.pieces) {
    need(piece.value);
    for (const int32_t id : piece.gives) need(id);
  }
  std::vector<GraphNode> nodes;
  std::vector<size_t> pieces;
  for (size_t i = graph.nodes.size(); i-- > 0;) {
    const motley_op& op = graph.nodes[i].op;
    const bool alive = op.out[0] < 0 || std::any_of(std::begin(op.out), std::end(op.out), [&](int32_t id) {
                         return id >= 0 && needed[static_cast<size_t>(id)];
                       });
    if (!alive) continue;
    for (const int32_t id : op.in) need(id);
    nodes.push_back(graph.nodes[i]);
    pieces.push_back(piece_of_node_[i]);
  }
  std::reverse(nodes.begin(), nodes.end());
  std::reverse(pieces.begin(), pieces.end());
  graph.nodes = std::move(nodes);
  piece_of_node_ = std::move(pieces);
}

void Cutter::drop_unused_weights() {
  Graph& graph = to_.graph;
  std::vector<int32_t> renamed(graph.weights.size(), MOTLEY_NONE);
  std::vector<GraphWeight> weights;
  std::vector<ShardWeight> kept;
  for (GraphNode& node : graph.nodes) {
    for (int32_t& id : node.op.weight) {
      if (id < 0) continue;
      const auto at = static_cast<size_t>(id);
      if (renamed[at] < 0) {
        renamed[at] = static_cast<int32_t>(weights.size());
        weights.push_back(std::move(graph.weights[at]));
        kept.push_back(std::move(to_.weights[at]));
      }
      id = renamed[at];
    }
  }
  graph.weights = std::move(weights);
  to_.weights = std::move(kept);
}

// Of a whole layer's programs around attention.
void Cutter::name_cuts() {
  ShardPiece* last = nullptr;
  for (ShardPiece& piece : to_.pieces) {
    if (piece.kind != ShardPiece::Kind::kProgram || piece.cut != MOTLEY_CUT_STAGE) continue;
    piece.cut = last == nullptr ? MOTLEY_CUT_PRE : MOTLEY_CUT_POSTPRE;
    last = &piece;
  }
  if (last != nullptr && last->cut == MOTLEY_CUT_POSTPRE) last->cut = MOTLEY_CUT_POST;
}

// Gives the pieces their nodes and leaves out those that have none left.
void Cutter::finish() {
  Graph& graph = to_.graph;
  const auto made = [&](int32_t source) { return source < 0 ? MOTLEY_NONE : mapped_[static_cast<size_t>(source)]; };
  graph.token_slots = made(from_.token_slots);
  graph.residual = value(from_.residual);
  graph.logits = made(from_.logits);
  graph.sampled_ids = made(from_.sampled_ids);
  graph.sampled_logprobs = made(from_.sampled_logprobs);
  graph.top_ids = made(from_.top_ids);
  graph.top_logprobs = made(from_.top_logprobs);
  drop_dead_nodes();
  drop_unused_weights();
  std::vector<ShardPiece> pieces;
  size_t at = 0;
  for (size_t i = 0; i < to_.pieces.size(); ++i) {
    ShardPiece piece = to_.pieces[i];
    piece.node_begin = at;
    while (at < piece_of_node_.size() && piece_of_node_[at] == i) ++at;
    piece.node_end = at;
    if (piece.kind != ShardPiece::Kind::kProgram || piece.node_begin < piece.node_end) pieces.push_back(piece);
  }
  to_.pieces = std::move(pieces);
  if (!to_.others.empty() && !parts_) name_cuts();
  int64_t kv_heads = 0;
  for (const UnitRange& range : shard_.kv_heads) kv_heads += range.end - range.begin;
  const bool keeps_kv = kv_heads > 0 && role_ != ShardRole::kDense;
  if (keeps_kv) to_.kv_heads = shard_.kv_heads;
  for (uint32_t l = stage_.layer_begin; keeps_kv && l < stage_.layer_end; ++l) {
    KvLayer layer = model_.kv_layers()[l];
    layer.kv_heads = static_cast<uint32_t>(kv_heads);
    to_.kv_layers.push_back(layer);
  }
  for (const GraphNode& node : graph.nodes) to_.embeds = to_.embeds || node.op.kind == MOTLEY_OP_EMBED;
}

// Whether the node is this part's, or what it makes is needed to know how what follows is laid out.
bool Cutter::takes_part(const GraphNode& node) const {
  switch (node.part) {
    case Part::kAttention:
    case Part::kFfn:
      return node.layer >= static_cast<int32_t>(stage_.layer_begin) &&
             node.layer < static_cast<int32_t>(stage_.layer_end) && (parts_ || !shared_ || in_layers(shard_));
    case Part::kEmbed: return first_ && role_ != ShardRole::kAttention;
    // A shard without vocabulary rows has no part in the head.
    default: return last_ && role_ != ShardRole::kAttention && !(shared_ && shard_.vocab_rows.empty());
  }
}

Result<ShardGraph> Cutter::cut() {
  to_.layer_begin = static_cast<int32_t>(stage_.layer_begin);
  value(from_.residual);
  const bool hands_over = shared_ && !parts_ && role_ != ShardRole::kAttention;
  bool handed_over = !hands_over;
  for (const GraphNode& node : from_.nodes) {
    if (!handed_over && (node.part == Part::kHead || node.part == Part::kSample)) {
      hand_over();
      handed_over = true;
    }
    if (takes_part(node)) RETURN_IF_ERROR(add(node));
  }
  if (last_ && role_ != ShardRole::kAttention && !(shared_ && shard_.vocab_rows.empty())) {
    to_.vocab_rows = shared_ ? count_of(kept_of(Axis::kVocab)) : int64_t{model_.config().vocab_size};
  }
  finish();
  return std::move(to_);
}

}  // namespace

std::vector<Attendant> attendants_of(const Lane& lane, const Shard& shard) {
  std::vector<Attendant> attendants;
  if (shard.kv_heads.empty()) return attendants;
  if (!shard.partner.empty()) attendants.push_back({0, shard.partner});
  for (uint32_t s = 0; s < lane.sections.size(); ++s) attendants.push_back({s + 1, lane.sections[s].owner});
  return attendants;
}

Result<ShardGraph> shard_graph(const Model& model, const Lane& lane, size_t stage, size_t shard, ShardRole role,
                               uint32_t section, LayerPrograms programs) {
  RETURN_IF_ERROR(check_shards(model, lane, stage));
  return Cutter(model, lane, stage, shard, role, programs, section).cut();
}

}  // namespace motley
