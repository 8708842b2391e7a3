// What a plan's ops need, and which neighbours become one launch.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <map>

#include "cuda/ops.hpp"
#include "cuda/stored.hpp"
#include "cuda/weight.hpp"
#include "kit/reference.hpp"

namespace motley::cuda {

namespace {

using kit::Plan;
using kit::PlanOp;

// How often each value is read. What the host sees is read by it.
std::vector<int> readers(const Plan& plan) {
  std::vector<int> count(plan.values.size());
  for (size_t i = 0; i < count.size(); ++i) count[i] = plan.values[i].bound;
  for (const PlanOp& op : plan.ops)
    for (const int32_t id : op.in)
      if (id != MOTLEY_NONE) ++count[static_cast<size_t>(id)];
  return count;
}

// The tables of turns: a step each, before all others.
class RopeTables {
 public:
  RopeTables(Plan& plan, CudaMemory& memory) : plan_(plan), memory_(memory) {}
  // The value that holds op's turns.
  int32_t of(const PlanOp& op) {
    kit::rope_attr a = op.attr.rope;
    a.heads = a.style = a.head_dim = 0;  // which have no part in it
    std::string key(reinterpret_cast<const char*>(&a), sizeof a);
    key += std::to_string(op.weight[0]);
    const auto [found, added] = tables_.try_emplace(key, MOTLEY_NONE);
    if (added) found->second = add(op);
    return found->second;
  }
  void insert() { plan_.ops.insert(plan_.ops.begin(), steps_.begin(), steps_.end()); }

 private:
  int32_t add(const PlanOp& op) {
    const kit::rope_attr& a = op.attr.rope;
    const float* divisors = nullptr;
    if (op.weight[0] != MOTLEY_NONE)
      divisors = static_cast<const CudaWeight*>(plan_.weights[static_cast<size_t>(op.weight[0])])->host_vector().data();
    // By how much each pair turns from one position to the next; the angle is linear in the position.
    std::vector<double> turns(static_cast<size_t>(a.n_rot / 2));
    for (size_t j = 0; j < turns.size(); ++j)
      turns[j] = kit::rope_angle(a, 1, static_cast<int32_t>(j), divisors ? divisors[j] : 1.0f);
    const int32_t id = plan_.add_value(MOTLEY_F32, MOTLEY_DIM_ROWS, a.n_rot, int64_t{a.n_rot} * 4);
    PlanOp step;
    step.kind = MOTLEY_OP_ROPE, step.out = {id}, step.attr = op.attr, step.kernel = rope_turns;
    step.data = std::make_shared<DeviceBytes>(memory_, turns.data(), turns.size() * sizeof(double));
    steps_.push_back(std::move(step));
    return id;
  }

  Plan& plan_;
  CudaMemory& memory_;
  std::map<std::string, int32_t> tables_;
  std::vector<PlanOp> steps_;
};

// An op on the KV pool by shape, with room for its partial results.
void prepare_attention(Plan& plan, PlanOp& op, ProgramNeeds& needs) {
  const auto& a = op.attr.attention;
  const AttentionShape shape{a.heads, a.kv_heads, a.head_dim};
  auto found = std::find(needs.shapes.begin(), needs.shapes.end(), shape);
  if (found == needs.shapes.end()) found = needs.shapes.insert(found, shape);
  op.data = std::make_shared<AttentionOp>(AttentionOp{static_cast<size_t>(found - needs.shapes.begin())});
  const int64_t width = a.head_dim + 2;
  op.out.push_back(plan.add_value(MOTLEY_F32, kPartialsMax, width, width * static_cast<int64_t>(sizeof(float))));
}

// ADD, and RMSNORM of whole rows of its sum.
bool join_norm(PlanOp& add, const PlanOp& norm, const Plan& plan) {
  if (add.kind != MOTLEY_OP_ADD || add.kernel != cuda::add || norm.kind != MOTLEY_OP_RMSNORM ||
      norm.in[0] != add.out[0] || norm.out[0] == add.out[0])
    return false;
  if (norm.attr.norm.group != plan.values[static_cast<size_t>(add.out[0])].width) return false;
  add.out = {add.out[0], norm.out[0]};
  add.weight = norm.weight, add.attr = norm.attr;
  add.kernel = add_rmsnorm;
  return true;
}

// SELECT_ROWS, and RMSNORM of whole rows of what is selected.
bool join_selection(PlanOp& select, const PlanOp& norm, const Plan& plan, const std::vector<int>& readers) {
  if (select.kind != MOTLEY_OP_SELECT_ROWS || norm.kind != MOTLEY_OP_RMSNORM) return false;
  const auto selected = static_cast<size_t>(select.out[0]);
  if (norm.in[0] != select.out[0] || readers[selected] != 1 || norm.out[0] == select.in[0] ||
      norm.attr.norm.group != plan.values[selected].width)
    return false;
  PlanOp joined = norm;
  joined.in = select.in;
  joined.kernel = select_rmsnorm;
  select = std::move(joined);
  return true;
}

// A product, and ADD of it with the norm behind, as join_norm makes them.
bool join_product(PlanOp& product, const PlanOp& add, const std::vector<int>& readers) {
  if (product.kind != MOTLEY_OP_MATMUL || product.kernel != matmul || product.out.size() != 1 ||
      add.kernel != add_rmsnorm)
    return false;
  const int32_t out = product.out[0], x = product.in[0];
  if (readers[static_cast<size_t>(out)] != 1 || (add.in[0] != out && add.in[1] != out)) return false;
  const int32_t other = add.in[0] == out ? add.in[1] : add.in[0];
  if (other == x || add.out[0] == x || add.out[1] == x) return false;
  product.in.push_back(other);
  product.out.insert(product.out.end(), add.out.begin(), add.out.end());
  product.weight.push_back(add.weight[0]);
  product.more_attrs = {add.attr};
  product.kernel = matmul_add_rmsnorm;
  return true;
}

// Two products of one input, and SILU_MUL of them.
bool join_silu(PlanOp& product, const PlanOp& silu, const std::vector<int>& readers) {
  if (product.kind != MOTLEY_OP_MATMUL || product.kernel != matmul || product.out.size() != 2 ||
      silu.kind != MOTLEY_OP_SILU_MUL)
    return false;
  const int32_t a = product.out[0], b = product.out[1];
  if (readers[static_cast<size_t>(a)] != 1 || readers[static_cast<size_t>(b)] != 1 || silu.out[0] == product.in[0] ||
      silu.out[0] == a || silu.out[0] == b)
    return false;
  if ((silu.in[0] != a || silu.in[1] != b) && (silu.in[0] != b || silu.in[1] != a)) return false;
  product.out.push_back(silu.out[0]);
  product.kernel = silu.in[0] == a ? matmul_silu_mul<0> : matmul_silu_mul<1>;
  return true;
}

// ROPE of q, ROPE of k, KV_WRITE of k: the turned k goes to the pool alone.
bool join_heads(PlanOp& q, const PlanOp& k, const PlanOp& write, const std::vector<int>& readers) {
  if (q.kind != MOTLEY_OP_ROPE || q.kernel != rope || k.kind != MOTLEY_OP_ROPE || k.kernel != rope ||
      write.kind != MOTLEY_OP_KV_WRITE)
    return false;
  const auto& a = q.attr.rope;
  const auto& b = k.attr.rope;
  if (write.in[0] != k.out[0] || readers[static_cast<size_t>(k.out[0])] != 1 || k.in[0] == q.out[0] ||
      write.in[1] == q.out[0] || write.in[1] == k.out[0])
    return false;
  if (q.in[1] != k.in[1] || a.style != b.style || a.head_dim != b.head_dim || a.n_rot != b.n_rot) return false;
  q.in = {q.in[0], k.in[0], write.in[1], q.in[1]};
  q.more_attrs = {k.attr, write.attr};
  q.kv_write = write.kv_write;
  q.kernel = rope_kv_write;
  return true;
}

// What join_heads makes, and PAGED_ATTENTION of it: generated rows' heads may be turned and stored by attention itself.
bool join_attention(PlanOp& heads, const PlanOp& attention, const std::vector<int>& readers) {
  if (attention.kind != MOTLEY_OP_PAGED_ATTENTION || attention.in[0] != heads.out[0] ||
      readers[static_cast<size_t>(heads.out[0])] != 1 || attention.attr.attention.layer != heads.kv_write)
    return false;
  PlanOp joined = attention;
  joined.in = heads.in;
  joined.out.insert(joined.out.end() - 1, heads.out[0]);
  joined.more_attrs = {heads.attr, heads.more_attrs[0], heads.more_attrs[1]};
  joined.kv_write = heads.kv_write;
  joined.kernel = rope_kv_write_attention;
  for (const int32_t id : heads.in)
    if (std::find(attention.out.begin(), attention.out.end(), id) != attention.out.end()) return false;
  heads = std::move(joined);
  return true;
}

void join(Plan& plan) {
  const std::vector<int> count = readers(plan);
  std::vector<PlanOp> joined;
  for (size_t i = 0; i < plan.ops.size();) {
    PlanOp op = std::move(plan.ops[i]);
    const size_t left = plan.ops.size() - i;
    size_t took = 1;
    if (left > 1 && (join_norm(op, plan.ops[i + 1], plan) || join_selection(op, plan.ops[i + 1], plan, count)))
      took = 2;
    if (left > 2 && join_heads(op, plan.ops[i + 1], plan.ops[i + 2], count)) {
      took = 3;
      if (left > 3 && join_attention(op, plan.ops[i + 3], count)) took = 4;
    }
    if (joined.empty() || (!join_product(joined.back(), op, count) && !join_silu(joined.back(), op, count)))
      joined.push_back(std::move(op));
    i += took;
  }
  plan.ops = std::move(joined);
}

// The result of an op that can write bf16; MOTLEY_NONE: it has none.
int32_t result_in_bf16(const PlanOp& op) {
  switch (op.kind) {
    case MOTLEY_OP_RMSNORM:
    case MOTLEY_OP_SILU_MUL:
    case MOTLEY_OP_GELU_MUL:
    case MOTLEY_OP_CLAMPED_SWIGLU:
    case MOTLEY_OP_PAGED_ATTENTION: return op.out[0];
    case MOTLEY_OP_ADD: return op.kernel == add_rmsnorm ? op.out[1] : MOTLEY_NONE;
    case MOTLEY_OP_MATMUL:
      return op.out.size() == 3 && op.kernel != matmul ? op.out[2] : MOTLEY_NONE;  // three products have no such result
    default: return MOTLEY_NONE;
  }
}

void write_in_bf16(Plan& plan, int32_t id, bool for_tiles = false) {
  kit::PlanValue& value = plan.values[static_cast<size_t>(id)];
  if (value.dtype != MOTLEY_F32 || value.width % 8 != 0) return;
  value.dtype = for_tiles && value.width % kOrdered == 0 ? kTileOrderType : MOTLEY_BF16;
  value.row_bytes = 2 * value.width;
}

// The products' first weight; the others are of its kind.
const CudaWeight& weight_of(const Plan& plan, const PlanOp& product) {
  return *static_cast<const CudaWeight*>(plan.weights[static_cast<size_t>(product.weight[0])]);
}
// Whether the products would round their input to bf16.
bool rounds(const Plan& plan, const PlanOp& product) {
  const CudaWeight& weight = weight_of(plan, product);
  return weight.view().streams && weight.format != MOTLEY_F16;
}

// What products alone read is written in bf16, as they would round it, and in the order in which they would put it:
// half the bytes, and no step of its own for it. So are two products that nothing but SILU_MUL reads (ADR 13).
void round_early(Plan& plan) {
  std::vector<int> others = readers(plan), without_tiles = others;  // that are no such products
  for (const PlanOp& op : plan.ops) {
    if (op.kind != MOTLEY_OP_MATMUL || !rounds(plan, op)) continue;
    const auto in = static_cast<size_t>(op.in[0]);
    if (plan.values[in].width % 8 == 0) --others[in];
    if (weight_of(plan, op).view().tiled) --without_tiles[in];
  }
  for (const PlanOp& op : plan.ops) {
    const int32_t id = result_in_bf16(op);
    if (id != MOTLEY_NONE && others[static_cast<size_t>(id)] == 0)
      write_in_bf16(plan, id, without_tiles[static_cast<size_t>(id)] == 0);
    const bool gates = op.kernel == matmul_silu_mul<0> || op.kernel == matmul_silu_mul<1>;
    if (!gates || !rounds(plan, op) || op.weight[1] != MOTLEY_NONE || op.weight[3] != MOTLEY_NONE) continue;
    write_in_bf16(plan, op.out[0]), write_in_bf16(plan, op.out[1]);
  }
}

}  // namespace

void fuse(Plan& plan, CudaMemory& memory) {
  auto needs = std::make_shared<ProgramNeeds>();
  RopeTables tables(plan, memory);
  for (PlanOp& op : plan.ops) {
    if (op.kind == MOTLEY_OP_ROPE) op.in.assign({op.in[0], tables.of(op)});
    if (op.kind == MOTLEY_OP_PAGED_ATTENTION) prepare_attention(plan, op, *needs);
    if (op.kind == MOTLEY_OP_SAMPLE) needs->samples = true, op.scratch_bytes = sample_scratch(memory.processors());
  }
  join(plan);
  round_early(plan);
  tables.insert();
  plan.data = std::move(needs);
}

}  // namespace motley::cuda
