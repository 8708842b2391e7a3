// What goes value by value, and the experts' choice.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/activations.cuh"
#include "cuda/launch.cuh"
#include "cuda/stored.cuh"

namespace motley::cuda {

namespace {

struct Add {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Mul {
  __device__ float operator()(float a, float b) const { return a * b; }
};
struct Scale {
  float factor;
  __device__ float operator()(float a, float) const { return a * factor; }
};
struct SiluMul {
  __device__ float operator()(float a, float b) const { return silu_times(a, b); }
};
struct GeluMul {
  __device__ float operator()(float a, float b) const {
    constexpr float kSqrt2OverPi = 0.79788456080286535588f;
    return 0.5f * a * (1.0f + tanhf(kSqrt2OverPi * (a + 0.044715f * a * a * a))) * b;
  }
};
struct Softcap {
  float cap;
  __device__ float operator()(float a, float) const { return cap * tanhf(a / cap); }
};
struct ClampedSwiglu {
  float alpha, limit;
  __device__ float operator()(float a, float b) const {
    const float gate = fminf(a, limit), up = fminf(fmaxf(b, -limit), limit);
    return gate * sigmoid(alpha * gate) * (up + 1.0f);
  }
};

struct Operands {
  const void *a, *b;  // b null: none
  bool bf16;          // else they are f32
};

template <class F>
__global__ void each_value(F f, Operands in, int64_t count, void* out, Stored stored) {
  const int32_t dtype = in.bf16 ? MOTLEY_BF16 : MOTLEY_F32;
  for (int64_t i = first_item(); i < count; i += item_step())
    store_one(stored, out, i, f(load_as(dtype, in.a, i), in.b ? load_as(dtype, in.b, i) : 0.0f));
}
// Four at a time, where all begin on borders of 16 bytes.
template <class F>
__global__ void each_four(F f, Operands in, int64_t count, void* out, Stored stored) {
  wait_for_earlier();
  for (int64_t i = first_item(); i < count; i += item_step()) {
    const float4 x = load_four(in.bf16, in.a, i), y = in.b ? load_four(in.bf16, in.b, i) : float4{};
    store_four(stored, out, i, {f(x.x, y.x), f(x.y, y.y), f(x.z, y.z), f(x.w, y.w)});
  }
}

template <class F>
void element_wise(const kit::OpCall& call, F f) {
  const int64_t count = call.out[0].rows * call.out[0].width;
  if (count == 0) return;
  const Operands in{call.in[0].data, call.in.size() > 1 ? call.in[1].data : nullptr, call.in[0].dtype == MOTLEY_BF16};
  const Stored stored = stored_as(call.out[0]);
  const auto places = reinterpret_cast<uintptr_t>(in.a) | reinterpret_cast<uintptr_t>(in.b) |
                      reinterpret_cast<uintptr_t>(call.out[0].data);
  if (places % sizeof(float4) == 0 && count % 4 == 0) {
    launch_early(stream_of(call), each_four<F>, blocks_for(count / 4), kThreads, 0, f, in, count / 4, call.out[0].data,
                 stored);
    return launched("an element-wise op");
  }
  each_value<<<blocks_for(count), kThreads, 0, stream_of(call).raw()>>>(f, in, count, call.out[0].data, stored);
  launched("an element-wise op");
}

__global__ void gate_rows(const float* x, const float* gate, int64_t width, bool whole_row, int64_t count, float* out) {
  for (int64_t i = first_item(); i < count; i += item_step()) out[i] = x[i] * sigmoid(gate[whole_row ? i / width : i]);
}

// `count` runs of `bytes`, from_step and to_step bytes apart; row `ids[i]` in place of i where ids are given.
template <class T>
__global__ void move_runs(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t length, int64_t count,
                          const int32_t* ids) {
  for (int64_t k = first_item(); k < count * length; k += item_step()) {
    const int64_t run = k / length, i = k % length;
    to[run * to_step + i] = from[(ids ? ids[run] : run) * from_step + i];
  }
}

struct Runs {
  const std::byte* from;
  int64_t from_step;
  std::byte* to;
  int64_t to_step, bytes, count;
};

void move(const kit::OpCall& call, const Runs& r, const int32_t* ids = nullptr) {
  if (r.bytes == 0 || r.count == 0) return;
  const auto launch = [&]<class T>(T) {
    constexpr int64_t kSize = sizeof(T);
    move_runs<<<blocks_for(r.count * r.bytes / kSize), kThreads, 0, stream_of(call).raw()>>>(
        reinterpret_cast<const T*>(r.from), r.from_step / kSize, reinterpret_cast<T*>(r.to), r.to_step / kSize,
        r.bytes / kSize, r.count, ids);
  };
  // Values begin on their elements, of which all are of 4 bytes if these are.
  const auto places = reinterpret_cast<uintptr_t>(r.from) | reinterpret_cast<uintptr_t>(r.to);
  const bool words = (places | static_cast<uint64_t>(r.from_step | r.to_step | r.bytes)) % 4 == 0;
  words ? launch(uint32_t{}) : launch(uint8_t{});
  launched("a copy of rows");
}

// The parts' runs lie one after the other in the runs of the whole.
template <class Copy>
void each_part(const kit::Tensor& whole, std::span<const kit::Tensor> parts, Copy&& copy) {
  const int64_t runs = whole.width / whole.last, count = whole.rows * runs;
  int64_t offset = 0;
  for (const kit::Tensor& part : parts) {
    if (!part.data) continue;
    const int64_t bytes = part.row_bytes / runs;
    copy(whole.bytes() + offset, whole.row_bytes / runs, part.bytes(), bytes, count);
    offset += bytes;
  }
}

__global__ void convert(const void* from, int32_t from_dtype, void* to, int32_t to_dtype, int64_t count) {
  for (int64_t i = first_item(); i < count; i += item_step()) store_as(to_dtype, load_as(from_dtype, from, i), to, i);
}

// A thread a row: experts by logit, best first; of equals the lower id.
__global__ void route(const float* all_logits, int64_t rows, int32_t experts, int32_t top_k, int32_t gating,
                      bool normalised, double factor, int32_t* all_ids, float* all_weights) {
  for (int64_t r = first_item(); r < rows; r += item_step()) {
    const float* logits = all_logits + r * experts;
    int32_t* ids = all_ids + r * top_k;
    float* weights = all_weights + r * top_k;
    for (int32_t j = 0; j < top_k; ++j) {
      int32_t best = -1;
      for (int32_t e = 0; e < experts; ++e) {
        bool taken = false;
        for (int32_t i = 0; i < j; ++i) taken = taken || ids[i] == e;
        if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
      }
      ids[j] = best;
    }
    const double largest = logits[ids[0]];
    double all = 0, chosen = 0;
    for (int32_t e = 0; e < experts; ++e) all += exp(logits[e] - largest);
    for (int32_t j = 0; j < top_k; ++j) {
      const double x = logits[ids[j]];
      const double weight = gating == 2 ? 1.0 / (1.0 + exp(-x)) : exp(x - largest) / (gating == 1 ? all : 1.0);
      weights[j] = static_cast<float>(weight);
      chosen += weight;
    }
    const double divisor = gating == 3 || normalised ? chosen : 1.0;
    for (int32_t j = 0; j < top_k; ++j) weights[j] = static_cast<float>(weights[j] / divisor * factor);
  }
}

__global__ void combine(const float* x, const float* weights, int64_t top_k, int64_t width, int64_t count, float* out) {
  for (int64_t k = first_item(); k < count; k += item_step()) {
    const int64_t r = k / width, i = k % width;
    double sum = 0;
    for (int64_t j = 0; j < top_k; ++j)
      sum += static_cast<double>(weights[r * top_k + j]) * x[(r * top_k + j) * width + i];
    out[k] = static_cast<float>(sum);
  }
}

}  // namespace

void add(const kit::OpCall& call) { element_wise(call, Add{}); }
void mul(const kit::OpCall& call) { element_wise(call, Mul{}); }
void scale(const kit::OpCall& call) { element_wise(call, Scale{call.op->attr.scale.factor}); }
void silu_mul(const kit::OpCall& call) { element_wise(call, SiluMul{}); }
void gelu_mul(const kit::OpCall& call) { element_wise(call, GeluMul{}); }
void softcap(const kit::OpCall& call) { element_wise(call, Softcap{call.op->attr.scale.factor}); }
void clamped_swiglu(const kit::OpCall& call) {
  element_wise(call, ClampedSwiglu{call.op->attr.glu.alpha, call.op->attr.glu.limit});
}

void sigmoid_mul(const kit::OpCall& call) {
  const int64_t width = call.out[0].width, count = call.out[0].rows * width;
  if (count == 0) return;
  gate_rows<<<blocks_for(count), kThreads, 0, stream_of(call).raw()>>>(
      call.in[0].f32(), call.in[1].f32(), width, call.in[1].width != width, count, call.out[0].f32());
  launched("SIGMOID_MUL");
}

void split(const kit::OpCall& call) {
  each_part(call.in[0], call.out, [&](std::byte* whole, int64_t step, std::byte* part, int64_t bytes, int64_t count) {
    move(call, {whole, step, part, bytes, bytes, count});
  });
}

void concat(const kit::OpCall& call) {
  each_part(call.out[0], call.in, [&](std::byte* whole, int64_t step, std::byte* part, int64_t bytes, int64_t count) {
    move(call, {part, bytes, whole, step, bytes, count});
  });
}

void cast(const kit::OpCall& call) {
  const int64_t count = call.out[0].rows * call.out[0].width;
  if (count == 0) return;
  convert<<<blocks_for(count), kThreads, 0, stream_of(call).raw()>>>(call.in[0].data, call.in[0].dtype,
                                                                     call.out[0].data, call.out[0].dtype, count);
  launched("CAST");
}

void select_rows(const kit::OpCall& call) {
  const int64_t bytes = call.out[0].row_bytes;
  move(call, {call.in[0].bytes(), bytes, call.out[0].bytes(), bytes, bytes, call.out[0].rows},
       stream_of(call).batch().head_rows);
}

void topk_router(const kit::OpCall& call) {
  const auto& a = call.op->attr.router;
  const int64_t rows = call.out[0].rows;
  if (rows == 0) return;
  route<<<blocks_for(rows, kWarp), kWarp, 0, stream_of(call).raw()>>>(call.in[0].f32(), rows, a.experts, a.top_k,
                                                                      a.gating, a.normalise != 0, a.scale,
                                                                      call.out[0].i32(), call.out[1].f32());
  launched("TOPK_ROUTER");
}

void combine_experts(const kit::OpCall& call) {
  const int64_t width = call.out[0].width, count = call.out[0].rows * width;
  if (count == 0) return;
  combine<<<blocks_for(count), kThreads, 0, stream_of(call).raw()>>>(call.in[0].f32(), call.in[1].f32(),
                                                                     call.in[1].width, width, count, call.out[0].f32());
  launched("COMBINE_EXPERTS");
}

}  // namespace motley::cuda
