// Joins neighbouring ops of a plan, so that fewer barriers and fewer passes over memory are needed:
//   MATMUL or GROUPED_MATMUL + SPLIT of its result                   -> a product of a part of the matrix for each
//   RMSNORM + MATMULs of its result (+ the activation of gate and up)  -> one step
//   MATMUL + ADD of a residual, or SOFTCAP                             -> one step
//   two GROUPED_MATMULs of the same rows and ids + their activation    -> one step
//   RMSNORM or COMBINE_EXPERTS + ADD of a residual                     -> one step
//   norms of heads + ROPE of k + ROPE of q + KV_WRITE                  -> one step
// Nothing here changes a result: a joined step computes the same roundings in the same order.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "cpu/kv_fetch.hpp"
#include "cpu/ops.hpp"
#include "cpu/weight.hpp"

namespace motley::cpu {
namespace {

// No op strictly between writes `id`, nor, if `reads` counts too, reads it. An op may then move across.
bool untouched(const kit::Plan& plan, int32_t id, int32_t from, int32_t to, bool reads) {
  for (int32_t i = from + 1; i < to; ++i) {
    const kit::PlanOp& o = plan.ops[static_cast<size_t>(i)];
    if (std::find(o.out.begin(), o.out.end(), id) != o.out.end()) return false;
    const auto at = std::find(o.in.begin(), o.in.end(), id);
    if (at != o.in.end() && (reads || (o.writes_in >> (at - o.in.begin()) & 1))) return false;
  }
  return true;
}

// Puts products of parts of a matrix in the place of a product that is only read to be cut.
class Cutter {
 public:
  explicit Cutter(kit::Plan& plan) : plan_(plan) {}
  void run() {
    std::vector<kit::PlanOp> ops;
    std::vector<bool> gone(plan_.ops.size(), false);
    for (size_t i = 0; i < plan_.ops.size(); ++i) {
      if (gone[i]) continue;
      const int32_t split = split_of(static_cast<int32_t>(i));
      if (split < 0) {
        ops.push_back(plan_.ops[i]);
        continue;
      }
      gone[static_cast<size_t>(split)] = true;
      RowsOf rows;
      for (const int32_t id : plan_.ops[static_cast<size_t>(split)].out) {
        if (id == MOTLEY_NONE) continue;
        kit::PlanOp& part = ops.emplace_back(plan_.ops[i]);
        rows.count = value(id).last;
        part.out = {id};
        part.data = std::make_shared<RowsOf>(rows);
        rows.first += rows.count;
      }
    }
    plan_.ops = std::move(ops);
  }

 private:
  const kit::PlanValue& value(int32_t id) const { return plan_.values[static_cast<size_t>(id)]; }
  // The SPLIT behind product i, or -1 if there is none or its parts do not begin at panels.
  int32_t split_of(int32_t i) const {
    const kit::PlanOp& product = plan_.ops[static_cast<size_t>(i)];
    if ((product.kind != MOTLEY_OP_MATMUL && product.kind != MOTLEY_OP_GROUPED_MATMUL) || value(product.out[0]).bound)
      return -1;
    int32_t found = -1;
    for (size_t r = 0; r < plan_.ops.size(); ++r) {
      const kit::PlanOp& reader = plan_.ops[r];
      if (std::find(reader.in.begin(), reader.in.end(), product.out[0]) == reader.in.end()) continue;
      if (found >= 0 || reader.kind != MOTLEY_OP_SPLIT) return -1;
      found = static_cast<int32_t>(r);
    }
    return found >= 0 && fits(i, found) ? found : -1;
  }
  bool fits(int32_t product, int32_t split) const {
    int64_t first = 0;
    for (const int32_t id : plan_.ops[static_cast<size_t>(split)].out) {
      if (id == MOTLEY_NONE) continue;
      if (first % kPanelRows != 0 || !untouched(plan_, id, product, split, true)) return false;
      first += value(id).last;
    }
    return true;
  }

  kit::Plan& plan_;
};

class Fuser {
 public:
  Fuser(kit::Plan& plan, const KernelSet& set, bool one_class) : plan_(plan), set_(set), one_class_(one_class) {
    producer_.assign(plan.values.size(), -1);
    readers_.resize(plan.values.size());
    for (size_t i = 0; i < plan.ops.size(); ++i) {
      for (const int32_t id : plan.ops[i].in) {
        if (id != MOTLEY_NONE) readers_[static_cast<size_t>(id)].push_back(static_cast<int32_t>(i));
      }
      for (const int32_t id : plan.ops[i].out) {
        if (id != MOTLEY_NONE) producer_[static_cast<size_t>(id)] = static_cast<int32_t>(i);
      }
    }
    done_.assign(plan.ops.size(), false);
  }

  void run() {
    for (int32_t i = 0; i < count(); ++i) find_rotation(i);
    for (int32_t i = 0; i < count(); ++i) {
      if (!done_[static_cast<size_t>(i)]) emit(i);
    }
    plan_.ops = std::move(tables_);
    std::move(ops_.begin(), ops_.end(), std::back_inserter(plan_.ops));
  }

 private:
  struct Rotation {
    int32_t write, q, k;               // op indices; -1: none
    int32_t q_norm = -1, k_norm = -1;  // of the heads
  };

  int32_t count() const { return static_cast<int32_t>(done_.size()); }
  const kit::PlanOp& op(int32_t i) const { return plan_.ops[static_cast<size_t>(i)]; }
  const kit::PlanValue& value(int32_t id) const { return plan_.values[static_cast<size_t>(id)]; }
  const std::vector<int32_t>& readers(int32_t id) const { return readers_[static_cast<size_t>(id)]; }
  int32_t producer(int32_t id, int32_t kind) const {
    const int32_t i = id == MOTLEY_NONE ? -1 : producer_[static_cast<size_t>(id)];
    return i >= 0 && op(i).kind == kind ? i : -1;
  }
  bool pending(int32_t i) const { return !done_[static_cast<size_t>(i)]; }

  bool untouched(int32_t id, int32_t from, int32_t to, bool reads) const {
    return cpu::untouched(plan_, id, from, to, reads);
  }

  void emit(int32_t i) {
    switch (op(i).kind) {
      case MOTLEY_OP_RMSNORM:
        if (const auto group = products_of(op(i).out[0], i); can_absorb_norm(i, group))
          return emit_products(i, i, group);
        if (op(i).attr.norm.group == value(op(i).in[0]).width &&
            emit_with_sum(i, run_norm_add, value(op(i).in[0]).row_bytes))
          return;
        break;
      case MOTLEY_OP_MATMUL: return emit_products(i, -1, group_of(i));
      case MOTLEY_OP_GROUPED_MATMUL: return emit_grouped(i);
      case MOTLEY_OP_COMBINE_EXPERTS:
        if (emit_with_sum(i, run_combine, 0)) return;
        break;
      case MOTLEY_OP_ROPE: return emit_rotation({-1, i, -1});
      case MOTLEY_OP_KV_WRITE:
        for (const Rotation& r : rotations_) {
          if (r.write == i) return emit_rotation(r);
        }
        break;
      case MOTLEY_OP_PAGED_ATTENTION: return emit_attention(i);
      default: break;
    }
    kit::PlanOp copy = op(i);
    if (!copy.data) copy.data = plain();
    push(i, std::move(copy));
  }

  std::shared_ptr<const OpData> plain() {
    if (!plain_) plain_ = std::make_shared<OpData>(OpData{&set_});
    return plain_;
  }
  void push(int32_t i, kit::PlanOp made) {
    done_[static_cast<size_t>(i)] = true;
    ops_.push_back(std::move(made));
  }

  // Can `product` be computed at step `at`, which stands before it or is it?
  bool movable(int32_t product, int32_t at) const {
    const kit::PlanOp& o = op(product);
    if (!pending(product) || !untouched(o.out[0], at, product, true)) return false;
    return std::all_of(o.in.begin(), o.in.end(),
                       [&](int32_t id) { return id == MOTLEY_NONE || untouched(id, at, product, false); });
  }
  // The products that read `id`, if nothing else does and all of them may be computed at step `at`; else none.
  std::vector<int32_t> products_of(int32_t id, int32_t at) const {
    const std::vector<int32_t>& group = readers(id);
    const bool all = std::all_of(group.begin(), group.end(),
                                 [&](int32_t r) { return op(r).kind == MOTLEY_OP_MATMUL && movable(r, at); });
    return all ? group : std::vector<int32_t>();
  }
  // Product i with those that read the same: gate and up alone, so that their activation joins them.
  std::vector<int32_t> group_of(int32_t i) const {
    std::vector<int32_t> group = {i};
    if (const int32_t twin = twin_of(i); twin >= 0) return {i, twin};
    for (const int32_t r : readers(op(i).in[0])) {
      if (r > i && op(r).kind == MOTLEY_OP_MATMUL && movable(r, i) && twin_of(r) < 0) group.push_back(r);
    }
    return group;
  }
  bool same_experts(int32_t a, int32_t b) const {
    const auto kept = [&](int32_t i) { return plan_.weights[static_cast<size_t>(op(i).weight[0])]->kept_experts; };
    return kept(a) == kept(b);
  }
  // The other product of the activation that alone reads product i, if it may be computed with it; or -1.
  int32_t twin_of(int32_t i) const {
    const std::vector<int32_t>& users = readers(op(i).out[0]);
    if (users.size() != 1 || !is_activation(op(users[0]).kind)) return -1;
    const kit::PlanOp& user = op(users[0]);
    const int32_t other = user.in[0] == op(i).out[0] ? user.in[1] : user.in[0];
    const int32_t twin = producer(other, op(i).kind);
    if (twin < 0 || twin == i || !pending(twin) || op(twin).in != op(i).in ||
        !movable(std::max(i, twin), std::min(i, twin)) || !same_experts(i, twin))
      return -1;
    std::vector<int32_t> pair = {i, twin};
    return activation_of(std::min(i, twin), &pair) >= 0 ? twin : -1;
  }
  bool can_absorb_norm(int32_t i, const std::vector<int32_t>& group) const {
    const kit::PlanOp& o = op(i);
    return !group.empty() && !value(o.out[0]).bound && o.attr.norm.group == value(o.in[0]).width;
  }

  PanelKind kind_of(int32_t weight) const {
    return static_cast<const PackedWeight*>(plan_.weights[static_cast<size_t>(weight)])->matrix().kind;
  }

  // Notes matrix and bias of product g in `made`, and what they want for input.
  template <class Data>
  void add_product(int32_t g, kit::PlanOp* made, Data* data) {
    const kit::PlanOp& o = op(g);
    made->weight.push_back(o.weight[0]);
    made->weight.push_back(o.weight[1]);
    const int64_t rows = plan_.weights[static_cast<size_t>(o.weight[0])]->rows;
    data->rows.push_back(o.data ? *static_cast<const RowsOf*>(o.data.get()) : RowsOf{0, rows});
    data->forms.add(kind_of(o.weight[0]));
    done_[static_cast<size_t>(g)] = true;
  }

  // Products `group`, computed where step `at` stands; norm: the RMSNORM before them or -1.
  void emit_products(int32_t at, int32_t norm, std::vector<int32_t> group) {
    auto data = std::make_shared<MatmulData>();
    data->set = &set_;
    kit::PlanOp made;
    made.kind = MOTLEY_OP_MATMUL;
    const int32_t x = norm >= 0 ? op(norm).in[0] : op(group[0]).in[0];
    int32_t residual = MOTLEY_NONE;
    int32_t last = activation_of(at, &group);  // the step that is joined to the end of the products, or -1
    if (last < 0 && group.size() == 1) last = softcap_of(at, group[0]);
    if (last >= 0) data->after = activation(op(last));
    if (last < 0 && group.size() == 1) last = sum_of(at, group[0], x, &residual);
    std::vector<int32_t> outs;
    for (const int32_t g : group) {
      add_product(g, &made, data.get());
      outs.push_back(op(g).out[0]);
    }
    if (last >= 0) outs = {op(last).out[0]}, done_[static_cast<size_t>(last)] = true;
    made.weight.push_back(norm >= 0 ? op(norm).weight[0] : MOTLEY_NONE);
    data->norm = norm >= 0;
    data->eps = norm >= 0 ? op(norm).attr.norm.eps : 0;
    made.in = {x, residual};
    const int64_t rows = value(x).rows, width = value(x).width;
    const bool fine = needs_fine(rows, outs);
    data->forms.fine = data->forms.narrow && fine;
    data->forms.rests_from = decides(rows, outs) ? kAllRests : kRestsFrom;
    if (set_.takes_tiled && rows == MOTLEY_DIM_ROWS && data->forms.prepared() && !data->forms.floats) {
      if (!one_class_) data->prompt.tiled = true;
      if (one_class_ && !data->forms.quantised) data->prompt.tiled = true, data->prompt.fine = fine;
    }
    const int32_t prepared = add_prepared(rows, std::max(data->forms.row_bytes(width), data->prompt.row_bytes(width)));
    const int32_t normed =
        data->norm && data->forms.floats ? plan_.add_value(MOTLEY_F32, rows, width, width * 4) : MOTLEY_NONE;
    made.out = {prepared, normed};
    made.out.insert(made.out.end(), outs.begin(), outs.end());
    if (is_head(group) && data->forms.quantised && last < 0) {
      const kit::Weight& head = *plan_.weights[static_cast<size_t>(made.weight[0])];
      data->best = std::make_shared<BestBounds>(static_cast<const PackedWeight&>(head), plan_.threads);
      const int64_t groups = data->best->groups();
      made.out.push_back(plan_.add_value(MOTLEY_F32, rows, groups, groups * 4));
    }
    made.scratch_bytes = matmul_scratch_bytes(plan_.rows_max, width, *data);
    made.kernel = run_matmuls;
    made.data = std::move(data);
    push(at, std::move(made));
  }

  // Is this product the head, whose results go out as they are? What is rounded behind it, by a bias or a cap, could
  // make equals of results that differ.
  bool is_head(const std::vector<int32_t>& group) const {
    const kit::PlanOp& o = op(group[0]);
    return plan_.cut == MOTLEY_CUT_HEAD && group.size() == 1 && value(o.out[0]).rows == MOTLEY_DIM_HEAD_ROWS &&
           value(o.out[0]).bound && readers(o.out[0]).empty() && o.weight[1] == MOTLEY_NONE && !o.data;
  }

  int32_t add_prepared(int64_t rows, int64_t row_bytes) {
    return row_bytes > 0 ? plan_.add_value(MOTLEY_I8, rows, row_bytes, row_bytes) : MOTLEY_NONE;
  }

  void emit_grouped(int32_t at) {
    auto data = std::make_shared<GroupedData>();
    data->set = &set_;
    kit::PlanOp made;
    made.kind = MOTLEY_OP_GROUPED_MATMUL;
    made.in = op(at).in;
    std::vector<int32_t> group = {at};
    if (const int32_t twin = twin_of(at); twin >= 0) group.push_back(twin);
    const int32_t last = activation_of(at, &group);
    if (last >= 0) data->after = activation(op(last)), done_[static_cast<size_t>(last)] = true;
    for (const int32_t g : group) add_product(g, &made, data.get());
    const kit::PlanValue x = value(made.in[0]), ids = value(made.in[1]);
    const int64_t width = ids.width * x.last;
    made.out = {op(last >= 0 ? last : at).out[0], add_prepared(x.rows, ids.width * data->forms.row_bytes(x.last)),
                data->forms.floats ? plan_.add_value(MOTLEY_F32, x.rows, width, width * 4) : MOTLEY_NONE};
    const int64_t experts = plan_.weights[static_cast<size_t>(made.weight[0])]->experts;
    made.scratch_bytes = grouped_scratch_bytes(plan_.rows_max * ids.width, experts, x.last, data->forms);
    made.kernel = run_grouped;
    made.data = std::move(data);
    push(at, std::move(made));
  }

  // Step i and the ADD behind it as one step with a further input, the residual. False if there is none such.
  bool emit_with_sum(int32_t i, kit::Kernel kernel, int64_t scratch_bytes) {
    int32_t residual = MOTLEY_NONE;
    const int32_t sum = sum_of(i, i, op(i).in[0], &residual);
    if (sum < 0) return false;
    kit::PlanOp made = op(i);
    made.in.push_back(residual);
    made.out = op(sum).out;
    made.scratch_bytes = scratch_bytes;
    made.kernel = kernel;
    made.data = plain();
    done_[static_cast<size_t>(sum)] = true;
    push(i, std::move(made));
    return true;
  }

  // Logits and routes: something is chosen by them.
  bool decides(int64_t rows, const std::vector<int32_t>& results) const {
    if (rows == MOTLEY_DIM_HEAD_ROWS) return true;
    const auto routes = [this](int32_t r) { return op(r).kind == MOTLEY_OP_TOPK_ROUTER; };
    return std::any_of(results.begin(), results.end(), [&](int32_t id) {
      const auto& all = readers(id);
      return std::any_of(all.begin(), all.end(), routes);
    });
  }
  // These, and what becomes queries, keys and values: rounding to bf16 there moves the result most.
  bool needs_fine(int64_t rows, const std::vector<int32_t>& results) const {
    if (decides(rows, results)) return true;
    for (const int32_t id : results) {
      for (const int32_t r : readers(id)) {
        const int32_t kind = op(r).kind;
        if (kind == MOTLEY_OP_ROPE || kind == MOTLEY_OP_KV_WRITE || kind == MOTLEY_OP_PAGED_ATTENTION) return true;
        if (kind == MOTLEY_OP_RMSNORM && op(r).attr.norm.group < value(id).width) return true;
      }
    }
    return false;
  }

  static bool is_activation(int32_t kind) {
    return kind == MOTLEY_OP_SILU_MUL || kind == MOTLEY_OP_GELU_MUL || kind == MOTLEY_OP_CLAMPED_SWIGLU;
  }
  static Activation activation(const kit::PlanOp& o) {
    switch (o.kind) {
      case MOTLEY_OP_SILU_MUL: return {Activation::Kind::kSilu};
      case MOTLEY_OP_GELU_MUL: return {Activation::Kind::kGelu};
      case MOTLEY_OP_SOFTCAP: return {Activation::Kind::kSoftcap, 0, o.attr.scale.factor};
      default: return {Activation::Kind::kClampedSwiglu, o.attr.glu.alpha, o.attr.glu.limit};
    }
  }
  // The activation that joins exactly the two products of `group` (put in the order gate, up), or -1.
  int32_t activation_of(int32_t at, std::vector<int32_t>* group) const {
    if (group->size() != 2) return -1;
    const int32_t a = op((*group)[0]).out[0], b = op((*group)[1]).out[0];
    if (readers(a).size() != 1 || readers(a) != readers(b) || value(a).bound || value(b).bound) return -1;
    const int32_t i = readers(a)[0];
    const kit::PlanOp& o = op(i);
    if (!is_activation(o.kind) || !pending(i)) return -1;
    if (!untouched(o.out[0], at, i, true) || o.in[0] == o.in[1]) return -1;
    if (o.in[0] == b) std::swap((*group)[0], (*group)[1]);
    return i;
  }

  // The SOFTCAP that alone reads product g, or -1.
  int32_t softcap_of(int32_t at, int32_t g) const {
    const int32_t product = op(g).out[0];
    if (value(product).bound || readers(product).size() != 1) return -1;
    const int32_t i = readers(product)[0];
    return op(i).kind == MOTLEY_OP_SOFTCAP && pending(i) && untouched(op(i).out[0], at, i, true) ? i : -1;
  }
  // The ADD whose only purpose is to add something ready to the result of step g, or -1.
  int32_t sum_of(int32_t at, int32_t g, int32_t x, int32_t* residual) const {
    const int32_t product = op(g).out[0];
    if (value(product).bound || readers(product).size() != 1) return -1;
    const int32_t i = readers(product)[0];
    const kit::PlanOp& o = op(i);
    if (o.kind != MOTLEY_OP_ADD || !pending(i)) return -1;
    const int32_t other = o.in[0] == product ? o.in[1] : o.in[0];
    // Threads read x while others already store their part of the sum.
    if (other == product || o.out[0] == x) return -1;
    if (!value(other).bound && producer_[static_cast<size_t>(other)] >= at) return -1;
    if (!untouched(other, at, i, false) || !untouched(o.out[0], at, i, true)) return -1;
    *residual = other;
    return i;
  }

  // Finds the rotations of q and k that can wait for KV_WRITE `write`.
  void find_rotation(int32_t write) {
    if (op(write).kind != MOTLEY_OP_KV_WRITE) return;
    const int32_t k = producer(op(write).in[0], MOTLEY_OP_ROPE);
    if (k < 0 || !can_wait(k, write)) return;
    Rotation found{write, -1, k};
    for (int32_t i = std::max(0, k - kReach); i < write; ++i) {
      if (i != k && pending(i) && op(i).kind == MOTLEY_OP_ROPE && same_table(op(i), op(k)) && can_wait(i, write))
        found.q = i;
    }
    found.k_norm = head_norm_of(k, write);
    if (found.q >= 0) found.q_norm = head_norm_of(found.q, write);
    for (const int32_t i : {found.k, found.q, found.k_norm, found.q_norm}) {
      if (i >= 0) done_[static_cast<size_t>(i)] = true;
    }
    rotations_.push_back(found);
  }
  // The norm of the heads that only rotation `rope` reads, if it can wait for step `until`; or -1.
  int32_t head_norm_of(int32_t rope, int32_t until) const {
    const int32_t x = op(rope).in[0], i = producer(x, MOTLEY_OP_RMSNORM);
    const bool fits = i >= 0 && pending(i) && !value(x).bound && readers(x).size() == 1 &&
                      op(i).attr.norm.group == op(rope).attr.rope.head_dim && untouched(op(i).in[0], i, until, false);
    return fits ? i : -1;
  }
  bool can_wait(int32_t i, int32_t until) const {
    return untouched(op(i).out[0], i, until, true) && untouched(op(i).in[0], i, until, false);
  }
  static bool same_table(const kit::PlanOp& a, const kit::PlanOp& b) {
    const auto &x = a.attr.rope, &y = b.attr.rope;
    return a.weight[0] == b.weight[0] && x.n_rot == y.n_rot && x.base == y.base &&
           x.position_scale == y.position_scale && x.magnitude == y.magnitude && x.yarn_factor == y.yarn_factor &&
           x.yarn_ext_factor == y.yarn_ext_factor && x.yarn_low == y.yarn_low && x.yarn_high == y.yarn_high;
  }

  // The value that holds the cosines and sines of a ROPE's rows; one step before all others fills it.
  int32_t table_for(const kit::PlanOp& rope) {
    for (const kit::PlanOp& t : tables_) {
      if (same_table(t, rope) && value(t.out[0]).rows == value(rope.in[0]).rows) return t.out[0];
    }
    kit::PlanOp made;
    made.kind = MOTLEY_OP_ROPE;
    made.attr = rope.attr;
    made.weight = rope.weight;
    made.out = {
        plan_.add_value(MOTLEY_F32, value(rope.in[0]).rows, rope.attr.rope.n_rot, rope.attr.rope.n_rot * int64_t{4})};
    made.kernel = run_rope_table;
    made.data = plain();
    tables_.push_back(made);
    return made.out[0];
  }

  void emit_rotation(const Rotation& r) {
    auto data = std::make_shared<RotateData>();
    data->set = &set_;
    kit::PlanOp made;
    made.kind = r.write >= 0 ? MOTLEY_OP_KV_WRITE : MOTLEY_OP_ROPE;
    made.in.assign(4, MOTLEY_NONE);
    made.out.assign(2, MOTLEY_NONE);
    made.weight.assign(2, MOTLEY_NONE);
    made.kernel = run_rotate;
    if (r.q >= 0) {
      data->q = op(r.q).attr;
      made.in[0] = op(r.q_norm >= 0 ? r.q_norm : r.q).in[0];
      if (r.q_norm >= 0) made.weight[0] = op(r.q_norm).weight[0], data->q_eps = op(r.q_norm).attr.norm.eps;
      made.out[0] = op(r.q).out[0];
      made.in[3] = table_for(op(r.q));
    }
    if (r.k >= 0) {
      data->k = op(r.k).attr;
      made.in[1] = op(r.k_norm >= 0 ? r.k_norm : r.k).in[0];
      if (r.k_norm >= 0) made.weight[1] = op(r.k_norm).weight[0], data->k_eps = op(r.k_norm).attr.norm.eps;
      made.out[1] = op(r.k).out[0];
      made.in[3] = table_for(op(r.k));
    }
    if (r.write >= 0) {
      data->write = true;
      made.in[2] = op(r.write).in[1];
      made.attr = op(r.write).attr;
      made.kv_read = op(r.write).kv_read;
      made.kv_write = op(r.write).kv_write;
    }
    made.data = std::move(data);
    push(r.write >= 0 ? r.write : r.q, std::move(made));
  }

  void emit_attention(int32_t i) {
    kit::PlanOp copy = op(i);
    copy.out.resize(2, MOTLEY_NONE);
    copy.out.push_back(plan_.add_value(MOTLEY_F32, 1, kPartialFloats, kPartialFloats * 4));
    copy.scratch_bytes = attention_scratch_bytes(copy.attr.attention.head_dim);
    copy.data = plain();
    push(i, std::move(copy));
  }

  static constexpr int32_t kReach = 4;  // steps between the rotation of q and that of k

  kit::Plan& plan_;
  const KernelSet& set_;
  const bool one_class_;
  std::vector<int32_t> producer_;
  std::vector<std::vector<int32_t>> readers_;
  std::vector<bool> done_;
  std::vector<Rotation> rotations_;
  std::vector<kit::PlanOp> tables_, ops_;
  std::shared_ptr<const OpData> plain_;
};

}  // namespace

void fuse(kit::Plan& plan, const KernelSet& set, bool one_class) {
  Cutter(plan).run();
  Fuser(plan, set, one_class).run();
  share_fetches(plan);
}

}  // namespace motley::cpu
