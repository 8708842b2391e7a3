// The reference of the token-wise ops: clear loops, double where rounding would add up.
// Every thread takes whole rows (or whole columns of a matrix product), so a result never depends on the team.
// SPDX-License-Identifier: Apache-2.0
#include "kit/reference.hpp"

#include <cmath>
#include <cstring>

#include "kit/internal.hpp"

namespace motley::kit {

namespace {

// Weight rows de-quantised and widened together: each activation row is then read once for all.
constexpr int64_t kColumnsAtOnce = 32;
constexpr int64_t kDotsAtOnce = 8;  // of these, as many as registers hold sums of

// In a fixed order, whatever the other rows are.
double dot(const float* a, const float* b, int64_t count) {
  std::array<double, 4> sum{};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (size_t j = 0; j < 4; ++j)
      sum[j] += static_cast<double>(a[i + static_cast<int64_t>(j)]) * b[i + static_cast<int64_t>(j)];
  for (; i < count; ++i) sum[0] += static_cast<double>(a[i]) * b[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// The same of `a` with kDotsAtOnce vectors one after another, to the bit: a product of two floats is exact in double,
// so that it makes no difference whether adding it is fused.
[[gnu::always_inline]] inline void dots_of(const double* a, const double* b, int64_t length, double* out) {
  using Four = double __attribute__((vector_size(32)));
  Four sums[kDotsAtOnce] = {};
  int64_t i = 0;
  for (; i + 4 <= length; i += 4) {
    Four x, y;
    std::memcpy(&x, a + i, sizeof x);
#pragma GCC unroll 8
    for (int64_t k = 0; k < kDotsAtOnce; ++k) {
      std::memcpy(&y, b + k * length + i, sizeof y);
      sums[k] += x * y;
    }
  }
  for (int64_t k = 0; k < kDotsAtOnce; ++k) {
    for (int64_t t = i; t < length; ++t) sums[k][0] += a[t] * b[k * length + t];
    out[k] = (sums[k][0] + sums[k][1]) + (sums[k][2] + sums[k][3]);
  }
}

using Dots = void (*)(const double* a, const double* b, int64_t length, double* out);

void dots_plain(const double* a, const double* b, int64_t length, double* out) { dots_of(a, b, length, out); }

#if defined(__x86_64__)
[[gnu::target("avx2,fma")]] void dots_avx2(const double* a, const double* b, int64_t length, double* out) {
  dots_of(a, b, length, out);
}
Dots best_dots() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? dots_avx2 : dots_plain; }
#else
Dots best_dots() { return dots_plain; }
#endif

template <class F>
void each_row(const OpCall& call, F&& f) {
  const Range rows = call.part(call.out[0].rows);
  for (int64_t r = rows.begin; r < rows.end; ++r) f(r);
}

template <class F>
void element_wise(const OpCall& call, F&& f) {
  each_row(call, [&](int64_t r) {
    const float* a = call.in[0].f32(r);
    const float* b = call.in.size() > 1 ? call.in[1].f32(r) : nullptr;
    float* out = call.out[0].f32(r);
    for (int64_t i = 0; i < call.out[0].width; ++i) out[i] = f(a[i], b ? b[i] : 0.0f);
  });
}

void embed(const OpCall& call) {
  const Weight& table = *call.weight[0];
  const float scale = call.op->attr.embed.scale;
  each_row(call, [&](int64_t r) {
    const int32_t slot = call.batch->token_slots ? call.batch->token_slots[r] : -1;
    float* out = call.out[0].f32(r);
    const bool from_slot = slot >= 0 && call.in[0].data;
    const int32_t token = from_slot ? *call.in[0].i32(slot) : call.batch->token_ids[r];
    if (token < 0 || token >= table.kept_rows.source_count() || (slot >= 0 && !from_slot)) {
      call.fail(MOTLEY_OUT_OF_RANGE, "EMBED: a token slot holds no id of the vocabulary");
      std::memset(out, 0, static_cast<size_t>(call.out[0].row_bytes));
      return;
    }
    const int64_t row = table.kept_rows.kept_of(token);
    if (row < 0) {  // another shard's
      std::memset(out, 0, static_cast<size_t>(call.out[0].row_bytes));
      return;
    }
    table.read_row(0, row, out);
    if (scale != 1.0f)
      for (int64_t i = 0; i < call.out[0].width; ++i) out[i] *= scale;
  });
}

void matmul(const OpCall& call) {
  static const Dots dots = best_dots();
  const Weight& w = *call.weight[0];
  const float* bias = call.weight[1] ? call.weight[1]->vector() : nullptr;
  double* columns = reinterpret_cast<double*>(call.scratch);
  double* x = columns + kColumnsAtOnce * w.cols;
  float* read = reinterpret_cast<float*>(x + w.cols);
  const Range part = call.part(w.rows);
  for (int64_t n = part.begin; n < part.end; n += kColumnsAtOnce) {
    const int64_t count = std::min(kColumnsAtOnce, part.end - n);  // beside them is what was there: not taken
    for (int64_t j = 0; j < count; ++j) {
      w.read_row(0, n + j, read);
      std::copy_n(read, w.cols, columns + j * w.cols);
    }
    for (int64_t r = 0; r < call.in[0].rows; ++r) {
      std::copy_n(call.in[0].f32(r), w.cols, x);
      double sums[kColumnsAtOnce];
      for (int64_t j = 0; j < count; j += kDotsAtOnce) dots(x, columns + j * w.cols, w.cols, sums + j);
      for (int64_t j = 0; j < count; ++j)
        call.out[0].f32(r)[n + j] = static_cast<float>(sums[j] + (bias ? bias[n + j] : 0.0f));
    }
  }
}
int64_t matmul_scratch(const Plan& plan, const PlanOp& op) {
  const int64_t width = plan.values[static_cast<size_t>(op.in[0])].width;
  return (kColumnsAtOnce + 1) * width * int64_t{sizeof(double)} + width * int64_t{sizeof(float)};
}

void add(const OpCall& call) {
  element_wise(call, [](float a, float b) { return a + b; });
}
void mul(const OpCall& call) {
  element_wise(call, [](float a, float b) { return a * b; });
}
void scale(const OpCall& call) {
  element_wise(call, [f = call.op->attr.scale.factor](float a, float) { return a * f; });
}
void silu_mul(const OpCall& call) {
  element_wise(call,
               [](float a, float b) { return static_cast<float>(a / (1.0 + std::exp(-static_cast<double>(a))) * b); });
}
void gelu_mul(const OpCall& call) {
  constexpr double kSqrt2OverPi = 0.79788456080286535588;
  element_wise(call, [](float a, float b) {
    const double x = a;
    return static_cast<float>(0.5 * x * (1.0 + std::tanh(kSqrt2OverPi * (x + 0.044715 * x * x * x))) * b);
  });
}
void softcap(const OpCall& call) {
  element_wise(call, [cap = static_cast<double>(call.op->attr.scale.factor)](float a, float) {
    return static_cast<float>(cap * std::tanh(a / cap));
  });
}

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

void sigmoid_mul(const OpCall& call) {
  const int64_t step = call.in[1].width == call.in[0].width ? 1 : 0;  // [R, 1]: one gate for the whole row
  each_row(call, [&](int64_t r) {
    const float *x = call.in[0].f32(r), *gate = call.in[1].f32(r);
    float* out = call.out[0].f32(r);
    for (int64_t i = 0; i < call.out[0].width; ++i) out[i] = static_cast<float>(x[i] * sigmoid(gate[i * step]));
  });
}
void clamped_swiglu(const OpCall& call) {
  const double alpha = call.op->attr.glu.alpha, limit = call.op->attr.glu.limit;
  element_wise(call, [=](float a, float b) {
    const double gate = std::min(static_cast<double>(a), limit), up = std::clamp(static_cast<double>(b), -limit, limit);
    return static_cast<float>(gate * sigmoid(alpha * gate) * (up + 1));
  });
}

void rmsnorm(const OpCall& call) {
  const int64_t group = call.op->attr.norm.group;
  const float* w = call.weight[0]->vector();
  each_row(call, [&](int64_t r) {
    const float* x = call.in[0].f32(r);
    float* out = call.out[0].f32(r);
    for (int64_t begin = 0; begin < call.in[0].width; begin += group) {
      const double mean = dot(x + begin, x + begin, group) / static_cast<double>(group);
      const double factor = 1.0 / std::sqrt(mean + call.op->attr.norm.eps);
      for (int64_t i = 0; i < group; ++i) out[begin + i] = static_cast<float>(x[begin + i] * factor * w[i]);
    }
  });
}

void rope(const OpCall& call) {
  const auto& a = call.op->attr.rope;
  const float* divisors = call.weight[0] ? call.weight[0]->vector() : nullptr;
  auto* turn = reinterpret_cast<double*>(call.scratch);  // cos and sin by pair
  each_row(call, [&](int64_t r) {
    for (int32_t j = 0; j < a.n_rot / 2; ++j) {
      const double angle = rope_angle(a, call.batch->positions[r], j, divisors ? divisors[j] : 1.0f);
      turn[2 * j] = std::cos(angle) * a.magnitude;
      turn[2 * j + 1] = std::sin(angle) * a.magnitude;
    }
    for (int32_t h = 0; h < a.heads; ++h) {
      const float* x = call.in[0].f32(r) + int64_t{h} * a.head_dim;
      float* out = call.out[0].f32(r) + int64_t{h} * a.head_dim;
      for (int32_t j = 0; j < a.n_rot / 2; ++j) {
        const int32_t first = a.style == MOTLEY_ROPE_NORM ? 2 * j : j;
        const int32_t second = a.style == MOTLEY_ROPE_NORM ? 2 * j + 1 : j + a.n_rot / 2;
        const double p = x[first], q = x[second];
        out[first] = static_cast<float>(p * turn[2 * j] - q * turn[2 * j + 1]);
        out[second] = static_cast<float>(p * turn[2 * j + 1] + q * turn[2 * j]);
      }
      for (int32_t i = a.n_rot; i < a.head_dim; ++i) out[i] = x[i];
    }
  });
}
int64_t rope_scratch(const Plan&, const PlanOp& op) { return int64_t{op.attr.rope.n_rot} * 8; }

// The parts of a row's runs, each `last` elements long, lie one after the other in the runs of the whole.
template <class Copy>
void join(const Tensor& whole, std::span<const Tensor> parts, int64_t row, Copy&& copy) {
  const int64_t runs = whole.width / whole.last;
  std::byte* at = whole.bytes(row);
  for (int64_t i = 0; i < runs; ++i) {
    for (const Tensor& part : parts) {
      if (!part.data) continue;
      const int64_t bytes = part.row_bytes / runs;
      copy(at, part.bytes(row) + i * bytes, static_cast<size_t>(bytes));
      at += bytes;
    }
  }
}

void split(const OpCall& call) {
  const Range rows = call.part(call.in[0].rows);
  for (int64_t r = rows.begin; r < rows.end; ++r)
    join(call.in[0], call.out, r,
         [](const std::byte* whole, std::byte* part, size_t n) { std::memcpy(part, whole, n); });
}

void concat(const OpCall& call) {
  each_row(call, [&](int64_t r) {
    join(call.out[0], call.in, r,
         [](std::byte* whole, const std::byte* part, size_t n) { std::memcpy(whole, part, n); });
  });
}

// F32, F16 and BF16 are stored as KV elements are; the KV functions convert.
void cast(const OpCall& call) {
  auto* middle = reinterpret_cast<float*>(call.scratch);
  each_row(call, [&](int64_t r) {
    const int64_t width = call.out[0].width;
    kv_load(call.in[0].dtype, call.in[0].bytes(r), width, 1.0f, middle);
    kv_store(call.out[0].dtype, middle, width, call.out[0].bytes(r), nullptr);
  });
}
int64_t cast_scratch(const Plan& plan, const PlanOp& op) {
  return plan.values[static_cast<size_t>(op.in[0])].width * 4;
}

void select_rows(const OpCall& call) {
  each_row(call, [&](int64_t h) {
    std::memcpy(call.out[0].bytes(h), call.in[0].bytes(call.batch->head_rows[h]),
                static_cast<size_t>(call.out[0].row_bytes));
  });
}

// Experts by logit, best first; of equals the lower id.
void topk_router(const OpCall& call) {
  const auto& a = call.op->attr.router;
  each_row(call, [&](int64_t r) {
    const float* logits = call.in[0].f32(r);
    int32_t* ids = call.out[0].i32(r);
    float* weights = call.out[1].f32(r);
    for (int32_t j = 0; j < a.top_k; ++j) {
      int32_t best = -1;
      for (int32_t e = 0; e < a.experts; ++e)
        if (std::find(ids, ids + j, e) == ids + j && (best < 0 || logits[e] > logits[best])) best = e;
      ids[j] = best;
    }
    const double largest = logits[ids[0]];
    double all = 0, chosen = 0;
    for (int32_t e = 0; e < a.experts; ++e) all += std::exp(logits[e] - largest);
    for (int32_t j = 0; j < a.top_k; ++j) {
      const double x = logits[ids[j]];
      const double weight = a.gating == 2 ? sigmoid(x) : std::exp(x - largest) / (a.gating == 1 ? all : 1.0);
      weights[j] = static_cast<float>(weight);
      chosen += weight;
    }
    const double divisor = a.gating == 3 || a.normalise ? chosen : 1.0;
    for (int32_t j = 0; j < a.top_k; ++j) weights[j] = static_cast<float>(weights[j] / divisor * a.scale);
  });
}

void grouped_matmul(const OpCall& call) {
  const Weight& w = *call.weight[0];
  const float* bias = call.weight[1] ? call.weight[1]->vector() : nullptr;
  auto* row = reinterpret_cast<float*>(call.scratch);
  const int64_t top_k = call.in[1].width, step = call.in[0].width == w.cols ? 0 : w.cols;  // from choice to choice
  const Range part = call.part(w.rows);
  for (int64_t r = 0; r < call.in[0].rows; ++r) {
    for (int64_t j = 0; j < top_k; ++j) {
      const int32_t expert = call.in[1].i32(r)[j];
      const bool known = expert >= 0 && expert < w.kept_experts.source_count();
      if (!known) call.fail(MOTLEY_OUT_OF_RANGE, "GROUPED_MATMUL: an expert id is out of range");
      const int64_t held = known ? w.kept_experts.kept_of(expert) : -1;
      for (int64_t n = part.begin; n < part.end; ++n) {
        double sum = 0;
        if (held >= 0) {
          w.read_row(held, n, row);
          sum = dot(call.in[0].f32(r) + j * step, row, w.cols) + (bias ? bias[held * w.rows + n] : 0.0f);
        }
        call.out[0].f32(r)[j * w.rows + n] = static_cast<float>(sum);
      }
    }
  }
}
int64_t grouped_scratch(const Plan& plan, const PlanOp& op) {
  return plan.values[static_cast<size_t>(op.in[0])].last * 4;
}

void combine_experts(const OpCall& call) {
  each_row(call, [&](int64_t r) {
    const int64_t width = call.out[0].width;
    for (int64_t i = 0; i < width; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < call.in[1].width; ++j)
        sum += static_cast<double>(call.in[1].f32(r)[j]) * call.in[0].f32(r)[j * width + i];
      call.out[0].f32(r)[i] = static_cast<float>(sum);
    }
  });
}

KernelTable make_table() {
  KernelTable t{};
  t[MOTLEY_OP_EMBED] = {embed, nullptr};
  t[MOTLEY_OP_MATMUL] = {matmul, matmul_scratch};
  t[MOTLEY_OP_ADD] = {add, nullptr};
  t[MOTLEY_OP_MUL] = {mul, nullptr};
  t[MOTLEY_OP_SCALE] = {scale, nullptr};
  t[MOTLEY_OP_RMSNORM] = {rmsnorm, nullptr};
  t[MOTLEY_OP_ROPE] = {rope, rope_scratch};
  t[MOTLEY_OP_SILU_MUL] = {silu_mul, nullptr};
  t[MOTLEY_OP_GELU_MUL] = {gelu_mul, nullptr};
  t[MOTLEY_OP_SOFTCAP] = {softcap, nullptr};
  t[MOTLEY_OP_SPLIT] = {split, nullptr};
  t[MOTLEY_OP_CONCAT] = {concat, nullptr};
  t[MOTLEY_OP_CAST] = {cast, cast_scratch};
  t[MOTLEY_OP_KV_WRITE] = {kv_write, nullptr};
  t[MOTLEY_OP_PAGED_ATTENTION] = {paged_attention, paged_attention_scratch};
  t[MOTLEY_OP_ATTN_MERGE] = {attn_merge, nullptr};
  t[MOTLEY_OP_SELECT_ROWS] = {select_rows, nullptr};
  t[MOTLEY_OP_SAMPLE] = {sample, sample_scratch};
  t[MOTLEY_OP_TOPK_ROUTER] = {topk_router, nullptr};
  t[MOTLEY_OP_GROUPED_MATMUL] = {grouped_matmul, grouped_scratch};
  t[MOTLEY_OP_COMBINE_EXPERTS] = {combine_experts, nullptr};
  t[MOTLEY_OP_SIGMOID_MUL] = {sigmoid_mul, nullptr};
  t[MOTLEY_OP_CLAMPED_SWIGLU] = {clamped_swiglu, nullptr};
  return t;
}

}  // namespace

// YaRN: dimensions below yarn_low keep the angle, those above yarn_high take angle / yarn_factor, a ramp between.
double rope_angle(const rope_attr& a, int32_t position, int32_t pair, float divisor) {
  const double plain = position * static_cast<double>(a.position_scale) *
                       std::pow(static_cast<double>(a.base), -2.0 * pair / a.n_rot) / divisor;
  if (a.yarn_ext_factor == 0) return plain;
  const double width = std::max(0.001, static_cast<double>(a.yarn_high) - a.yarn_low);
  const double ramp =
      (1.0 - std::clamp((pair - static_cast<double>(a.yarn_low)) / width, 0.0, 1.0)) * a.yarn_ext_factor;
  return plain * ramp + plain / a.yarn_factor * (1.0 - ramp);
}

const KernelTable& reference_kernels() {
  static const KernelTable table = make_table();
  return table;
}

}  // namespace motley::kit
