// SPDX-License-Identifier: Apache-2.0
#include "cpu/ops.hpp"

#include <cmath>
#include <cstring>

namespace motley::cpu {
namespace {

const KernelSet& set_of(const kit::OpCall& call) { return *static_cast<const OpData*>(call.op->data.get())->set; }

// Rows over the threads; a single row is cut in pieces of whole cache lines instead.
template <class F>
void element_wise(const kit::OpCall& call, F f) {
  const int64_t rows = call.out[0].rows, width = call.out[0].width;
  if (rows >= call.threads) {
    const kit::Range part = call.part(rows);
    for (int64_t r = part.begin; r < part.end; ++r) f(r, 0, width);
    return;
  }
  const kit::Range part = call.part(width, 64);
  if (part.begin == part.end) return;
  for (int64_t r = 0; r < rows; ++r) f(r, part.begin, part.end - part.begin);
}

using Pairwise = void (*)(const float*, const float*, int64_t, float*);
template <Pairwise KernelSet::*kFunction>
void pairwise(const kit::OpCall& call) {
  const Pairwise function = set_of(call).*kFunction;
  element_wise(call, [&](int64_t r, int64_t from, int64_t count) {
    function(call.in[0].f32(r) + from, call.in[1].f32(r) + from, count, call.out[0].f32(r) + from);
  });
}

void clamped_swiglu(const kit::OpCall& call) {
  const auto& a = call.op->attr.glu;
  element_wise(call, [&](int64_t r, int64_t from, int64_t count) {
    set_of(call).clamped_swiglu(call.in[0].f32(r) + from, call.in[1].f32(r) + from, count, a.alpha, a.limit,
                                call.out[0].f32(r) + from);
  });
}
void sigmoid_mul(const kit::OpCall& call) {
  const KernelSet& set = set_of(call);
  const bool one_gate = call.in[1].width == 1 && call.in[0].width != 1;
  element_wise(call, [&](int64_t r, int64_t from, int64_t count) {
    const float *x = call.in[0].f32(r) + from, *gate = call.in[1].f32(r);
    float* out = call.out[0].f32(r) + from;
    one_gate ? set.scale(x, count, static_cast<float>(1 / (1 + std::exp(-static_cast<double>(*gate)))), out)
             : set.sigmoid_mul(x, gate + from, count, out);
  });
}

using WithNumber = void (*)(const float*, int64_t, float, float*);
template <WithNumber KernelSet::*kFunction>
void with_number(const kit::OpCall& call) {
  const WithNumber function = set_of(call).*kFunction;
  element_wise(call, [&](int64_t r, int64_t from, int64_t count) {
    function(call.in[0].f32(r) + from, count, call.op->attr.scale.factor, call.out[0].f32(r) + from);
  });
}

// The best of the logits, best first; of equals the lower id.
void choose(const float* logits, int32_t experts, int32_t top_k, int32_t* ids) {
  int32_t held = 0;
  for (int32_t e = 0; e < experts; ++e) {
    if (held == top_k && !(logits[e] > logits[ids[held - 1]])) continue;
    int32_t at = held < top_k ? held++ : held - 1;
    for (; at > 0 && logits[e] > logits[ids[at - 1]]; --at) ids[at] = ids[at - 1];
    ids[at] = e;
  }
}

void topk_router(const kit::OpCall& call) {
  const auto& a = call.op->attr.router;
  const kit::Range part = call.part(call.in[0].rows);
  for (int64_t r = part.begin; r < part.end; ++r) {
    const float* logits = call.in[0].f32(r);
    int32_t* ids = call.out[0].i32(r);
    float* weights = call.out[1].f32(r);
    choose(logits, a.experts, a.top_k, ids);
    const double largest = logits[ids[0]];
    const double all = a.gating == 1 ? set_of(call).sum_exp(logits, a.experts, logits[ids[0]]) : 1;
    double chosen = 0;
    for (int32_t j = 0; j < a.top_k; ++j) {
      const double x = logits[ids[j]];
      const double weight = a.gating == 2 ? 1 / (1 + std::exp(-x)) : std::exp(x - largest) / all;
      weights[j] = static_cast<float>(weight);
      chosen += weight;
    }
    const double factor = a.scale / (a.gating == 3 || a.normalise ? chosen : 1);
    for (int32_t j = 0; j < a.top_k; ++j) weights[j] = static_cast<float>(weights[j] * factor);
  }
}

void rmsnorm(const kit::OpCall& call) {
  const KernelSet& set = set_of(call);
  const int64_t group = call.op->attr.norm.group, groups = call.in[0].width / group;
  const float* weight = call.weight[0]->vector();
  const kit::Range part = call.part(call.in[0].rows * groups);
  for (int64_t i = part.begin; i < part.end; ++i) {
    set.rmsnorm(call.in[0].f32() + i * group, weight, group, call.op->attr.norm.eps, call.out[0].f32() + i * group);
  }
}

// The angle of pair j: kit's reference, and motley/types.h.
double angle_of(const motley_attr& attr, int32_t position, int32_t pair, float divisor) {
  const auto& a = attr.rope;
  const double plain = position * static_cast<double>(a.position_scale) *
                       std::pow(static_cast<double>(a.base), -2.0 * pair / a.n_rot) / divisor;
  if (a.yarn_ext_factor == 0) return plain;
  const double width = std::fmax(0.001, static_cast<double>(a.yarn_high) - a.yarn_low);
  const double at = std::fmin(1.0, std::fmax(0.0, (pair - static_cast<double>(a.yarn_low)) / width));
  const double ramp = (1.0 - at) * a.yarn_ext_factor;
  return plain * ramp + plain / a.yarn_factor * (1.0 - ramp);
}

// Norm (if there is one) and rotation of a head.
void turn_head(const KernelSet& set, const decltype(motley_attr::rope)& a, const float* x, const float* table,
               const kit::Weight* norm, float eps, float* out) {
  if (norm) {
    set.rmsnorm(x, norm->vector(), a.head_dim, eps, out);
    x = out;
  }
  set.rope(x, table, a.head_dim, a.n_rot, a.style == MOTLEY_ROPE_NEOX, out);
}

// One head of K or V of one row to its place in the pool.
void store_kv(const KernelSet& set, const kit::KvPool& pool, const kit::KvLayer& layer, bool key, int64_t slot,
              int64_t head, const float* x) {
  const int64_t block = slot / pool.block_size, position = slot % pool.block_size;
  float* scales = key ? layer.k_scale : layer.v_scale;
  float* scale = scales ? scales + layer.scale_offset(block, position, head) : nullptr;
  alignas(64) std::byte line[kit::kHeadDimMax * 4];
  std::byte* to = key ? line : layer.v + layer.offset(block, position, head) * pool.element_bytes;
  if (pool.dtype == MOTLEY_F16) {
    set.to_f16(x, layer.head_dim, reinterpret_cast<uint16_t*>(to));
  } else {
    kit::kv_store(pool.dtype, x, layer.head_dim, to, scale);
  }
  if (!key) return;
  std::byte* at = layer.k + layer.key_offset(block, position, head) * pool.element_bytes;
  kit::kv_scatter(pool.element_bytes, line, layer.head_dim, at, layer.key_dim_stride);
}

}  // namespace

void run_norm_add(const kit::OpCall& call) {
  const KernelSet& set = set_of(call);
  const int64_t width = call.in[0].width;
  auto* line = reinterpret_cast<float*>(call.scratch);
  const kit::Range part = call.part(call.in[0].rows);
  for (int64_t r = part.begin; r < part.end; ++r) {
    set.rmsnorm(call.in[0].f32(r), call.weight[0]->vector(), width, call.op->attr.norm.eps, line);
    set.add(call.in[1].f32(r), line, width, call.out[0].f32(r));
  }
}

void run_combine(const kit::OpCall& call) {
  const int64_t width = call.out[0].width, choices = call.in[1].width;
  element_wise(call, [&](int64_t r, int64_t from, int64_t count) {
    const float* residual = call.in.size() > 2 && call.in[2].data ? call.in[2].f32(r) + from : nullptr;
    set_of(call).combine(call.in[0].f32(r) + from, width, call.in[1].f32(r), static_cast<int32_t>(choices), count,
                         residual, call.out[0].f32(r) + from);
  });
}

// out [0]: per row n_rot / 2 cosines and as many sines, times the magnitude. The pairs are shared by the threads.
void run_rope_table(const kit::OpCall& call) {
  const auto& a = call.op->attr.rope;
  const float* divisors = call.weight[0] ? call.weight[0]->vector() : nullptr;
  const int64_t half = a.n_rot / 2;
  const kit::Range part = call.part(call.out[0].rows * half, 16);
  for (int64_t i = part.begin; i < part.end; ++i) {
    const int64_t row = i / half, j = i % half;
    const double angle =
        angle_of(call.op->attr, call.batch->positions[row], static_cast<int32_t>(j), divisors ? divisors[j] : 1.0f);
    call.out[0].f32(row)[j] = static_cast<float>(std::cos(angle) * a.magnitude);
    call.out[0].f32(row)[half + j] = static_cast<float>(std::sin(angle) * a.magnitude);
  }
}

void run_rotate(const kit::OpCall& call) {
  const auto& data = *static_cast<const RotateData*>(call.op->data.get());
  const KernelSet& set = *data.set;
  const auto& qa = data.q.rope;
  const auto& ka = data.k.rope;
  const int64_t q_heads = call.in[0].data ? qa.heads : 0, k_heads = call.in[1].data ? ka.heads : 0;
  const int64_t v_heads = data.write ? call.op->attr.kv.kv_heads : 0, heads = q_heads + k_heads + v_heads;
  const kit::KvLayer* layer = data.write ? &call.kv->layers[static_cast<size_t>(call.op->attr.kv.layer)] : nullptr;
  const kit::Range part = call.part(call.in[3].rows * heads);
  for (int64_t i = part.begin; i < part.end; ++i) {
    const int64_t row = i / heads;
    int64_t head = i % heads;
    const float* table = call.in[3].f32(row);
    const int64_t slot = data.write ? call.batch->kv_slots[row] : -1;
    if (head < q_heads) {
      const int64_t at = head * qa.head_dim;
      turn_head(set, qa, call.in[0].f32(row) + at, table, call.weight[0], data.q_eps, call.out[0].f32(row) + at);
    } else if (head < q_heads + k_heads) {
      head -= q_heads;
      const int64_t at = head * ka.head_dim;
      float* out = call.out[1].f32(row) + at;
      turn_head(set, ka, call.in[1].f32(row) + at, table, call.weight[1], data.k_eps, out);
      if (slot >= 0) store_kv(set, *call.kv, *layer, true, slot, head, out);
    } else if (slot >= 0) {
      head -= q_heads + k_heads;
      store_kv(set, *call.kv, *layer, false, slot, head, call.in[2].f32(row) + head * layer->head_dim);
    }
  }
}

const kit::KernelTable& kernel_table() {
  static const kit::KernelTable table = [] {
    kit::KernelTable t = kit::reference_kernels();
    t[MOTLEY_OP_MATMUL] = {run_matmuls, nullptr};
    t[MOTLEY_OP_ADD] = {pairwise<&KernelSet::add>, nullptr};
    t[MOTLEY_OP_MUL] = {pairwise<&KernelSet::mul>, nullptr};
    t[MOTLEY_OP_SILU_MUL] = {pairwise<&KernelSet::silu_mul>, nullptr};
    t[MOTLEY_OP_GELU_MUL] = {pairwise<&KernelSet::gelu_mul>, nullptr};
    t[MOTLEY_OP_CLAMPED_SWIGLU] = {clamped_swiglu, nullptr};
    t[MOTLEY_OP_SIGMOID_MUL] = {sigmoid_mul, nullptr};
    t[MOTLEY_OP_SCALE] = {with_number<&KernelSet::scale>, nullptr};
    t[MOTLEY_OP_SOFTCAP] = {with_number<&KernelSet::softcap>, nullptr};
    t[MOTLEY_OP_TOPK_ROUTER] = {topk_router, nullptr};
    t[MOTLEY_OP_GROUPED_MATMUL] = {run_grouped, nullptr};
    t[MOTLEY_OP_COMBINE_EXPERTS] = {run_combine, nullptr};
    t[MOTLEY_OP_RMSNORM] = {rmsnorm, nullptr};
    t[MOTLEY_OP_ROPE] = {run_rotate, nullptr};
    t[MOTLEY_OP_PAGED_ATTENTION] = {run_attention, nullptr};
    return t;
  }();
  return table;
}

}  // namespace motley::cpu
