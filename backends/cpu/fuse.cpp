// Joins neighbouring ops of a plan, so that fewer barriers and fewer passes over memory are needed:
//   RMSNORM + MATMULs of its result (+ SILU_MUL or GELU_MUL of the two)   -> one step
//   MATMUL + ADD of a residual                                            -> one step
//   ROPE of k + ROPE of q + KV_WRITE                                      -> one step
// Nothing here changes a result: a joined step computes the same roundings in the same order.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "cpu/ops.hpp"
#include "cpu/weight.hpp"

namespace motley::cpu {
namespace {

class Fuser {
 public:
  Fuser(kit::Plan& plan, const KernelSet& set) : plan_(plan), set_(set) {
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
    int32_t write, q, k;  // op indices; q = -1: none
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

  // No op strictly between writes `id`, nor, if `reads` counts too, reads it. An op may then move across.
  bool untouched(int32_t id, int32_t from, int32_t to, bool reads) const {
    for (int32_t i = from + 1; i < to; ++i) {
      const kit::PlanOp& o = op(i);
      if (std::find(o.out.begin(), o.out.end(), id) != o.out.end()) return false;
      const auto at = std::find(o.in.begin(), o.in.end(), id);
      if (at != o.in.end() && (reads || (o.writes_in >> (at - o.in.begin()) & 1))) return false;
    }
    return true;
  }

  void emit(int32_t i) {
    switch (op(i).kind) {
      case MOTLEY_OP_RMSNORM:
        if (const auto group = products_of(op(i).out[0], i); can_absorb_norm(i, group))
          return emit_products(i, i, group);
        break;
      case MOTLEY_OP_MATMUL: {
        auto group = products_of(op(i).in[0], i);
        if (group.empty() || group[0] != i) group = {i};
        return emit_products(i, -1, group);
      }
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

  // The pending products that read `id` and may be computed at step `at`; empty if something else reads it as well.
  std::vector<int32_t> products_of(int32_t id, int32_t at) const {
    std::vector<int32_t> group;
    for (const int32_t r : readers(id)) {
      const kit::PlanOp& o = op(r);
      if (o.kind != MOTLEY_OP_MATMUL || !pending(r) || !untouched(o.out[0], at, r, true)) return {};
      if (!untouched(id, at, r, false)) return {};
      group.push_back(r);
    }
    return group;
  }
  bool can_absorb_norm(int32_t i, const std::vector<int32_t>& group) const {
    const kit::PlanOp& o = op(i);
    return !group.empty() && !value(o.out[0]).bound && o.attr.norm.group == value(o.in[0]).width;
  }

  // Products `group`, computed where step `at` stands; norm: the RMSNORM before them or -1.
  void emit_products(int32_t at, int32_t norm, std::vector<int32_t> group) {
    auto data = std::make_shared<MatmulData>();
    data->set = &set_;
    kit::PlanOp made;
    made.kind = MOTLEY_OP_MATMUL;
    const int32_t x = norm >= 0 ? op(norm).in[0] : op(group[0]).in[0];
    int32_t residual = MOTLEY_NONE, result = MOTLEY_NONE;
    const int32_t activation = activation_of(at, &group);
    const int32_t sum = group.size() == 1 ? sum_of(at, group[0], x, &residual) : -1;
    if (activation >= 0) {
      data->after = op(activation).kind == MOTLEY_OP_SILU_MUL ? MatmulData::After::kSilu : MatmulData::After::kGelu;
      result = op(activation).out[0];
    }
    std::vector<int32_t> outs;
    for (const int32_t g : group) {
      made.weight.push_back(op(g).weight[0]);
      made.weight.push_back(op(g).weight[1]);
      const auto& w = *static_cast<const PackedWeight*>(plan_.weights[static_cast<size_t>(op(g).weight[0])]);
      (is_float(w.matrix().kind) ? data->floats : data->quantised) = true;
      outs.push_back(sum >= 0 ? op(sum).out[0] : op(g).out[0]);
      done_[static_cast<size_t>(g)] = true;
    }
    if (activation >= 0) outs.push_back(result), done_[static_cast<size_t>(activation)] = true;
    if (sum >= 0) done_[static_cast<size_t>(sum)] = true;
    made.weight.push_back(norm >= 0 ? op(norm).weight[0] : MOTLEY_NONE);
    data->count = static_cast<int32_t>(group.size());
    data->norm = norm >= 0;
    data->eps = norm >= 0 ? op(norm).attr.norm.eps : 0;
    made.in = {x, residual};
    const int64_t rows = value(x).rows, width = value(x).width;
    data->fine = data->quantised && needs_fine(rows, outs);
    const int64_t act_bytes = prepared_blocks(width, data->fine) * static_cast<int64_t>(sizeof(ActBlock));
    const int32_t act = data->quantised ? plan_.add_value(MOTLEY_I8, rows, act_bytes, act_bytes) : MOTLEY_NONE;
    const int32_t normed =
        data->norm && data->floats ? plan_.add_value(MOTLEY_F32, rows, width, width * 4) : MOTLEY_NONE;
    made.out = {act, normed};
    made.out.insert(made.out.end(), outs.begin(), outs.end());
    made.scratch_bytes = matmul_scratch_bytes(width);
    made.kernel = run_matmuls;
    made.data = std::move(data);
    push(at, std::move(made));
  }

  // Logits, and what becomes queries, keys and values: rounding there moves the result most (README.md has figures).
  bool needs_fine(int64_t rows, const std::vector<int32_t>& results) const {
    if (rows == MOTLEY_DIM_HEAD_ROWS) return true;
    for (const int32_t id : results) {
      for (const int32_t r : readers(id)) {
        const int32_t kind = op(r).kind;
        if (kind == MOTLEY_OP_ROPE || kind == MOTLEY_OP_KV_WRITE || kind == MOTLEY_OP_PAGED_ATTENTION) return true;
        if (kind == MOTLEY_OP_RMSNORM && op(r).attr.norm.group < value(id).width) return true;
      }
    }
    return false;
  }

  // The activation that joins exactly the two products of `group` (put in the order gate, up), or -1.
  int32_t activation_of(int32_t at, std::vector<int32_t>* group) const {
    if (group->size() != 2) return -1;
    const int32_t a = op((*group)[0]).out[0], b = op((*group)[1]).out[0];
    if (readers(a).size() != 1 || readers(a) != readers(b) || value(a).bound || value(b).bound) return -1;
    const int32_t i = readers(a)[0];
    const kit::PlanOp& o = op(i);
    if ((o.kind != MOTLEY_OP_SILU_MUL && o.kind != MOTLEY_OP_GELU_MUL) || !pending(i)) return -1;
    if (!untouched(o.out[0], at, i, true) || o.in[0] == o.in[1]) return -1;
    if (o.in[0] == b) std::swap((*group)[0], (*group)[1]);
    return i;
  }

  // The ADD whose only purpose is to add something ready to product g, or -1.
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
    done_[static_cast<size_t>(k)] = true;
    if (found.q >= 0) done_[static_cast<size_t>(found.q)] = true;
    rotations_.push_back(found);
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
    made.kernel = run_rotate;
    if (r.q >= 0) {
      data->q = op(r.q).attr;
      made.in[0] = op(r.q).in[0];
      made.out[0] = op(r.q).out[0];
      made.in[3] = table_for(op(r.q));
    }
    if (r.k >= 0) {
      data->k = op(r.k).attr;
      made.in[1] = op(r.k).in[0];
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
  std::vector<int32_t> producer_;
  std::vector<std::vector<int32_t>> readers_;
  std::vector<bool> done_;
  std::vector<Rotation> rotations_;
  std::vector<kit::PlanOp> tables_, ops_;
  std::shared_ptr<const OpData> plain_;
};

}  // namespace

void fuse(kit::Plan& plan, const KernelSet& set) { Fuser(plan, set).run(); }

}  // namespace motley::cpu
