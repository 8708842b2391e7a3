// RMSNORM, alone and of a sum.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/launch.cuh"
#include "cuda/stored.cuh"

namespace motley::cuda {

namespace {

constexpr int kRowThreads = 512;
constexpr int kQuadsMax = 4;            // of a thread
constexpr int64_t kWarpGroupMax = 512;  // shorter runs are a warp's

struct Rows {
  const float *x, *more, *weight;  // more: added first; null: nothing is
  int64_t group, runs;
  float eps;
  float* sum;
  void* out;
  Stored stored;                 // of out
  const int32_t* ids = nullptr;  // of whole rows, to which nothing is added: those that are taken; null: all

  __device__ int64_t source(int64_t run) const { return (ids ? ids[run] : run) * group; }
};

// The values that one thread has: quads of four, kRowThreads apart, whatever the addresses are.
template <bool kAligned>
__device__ float4 load_quad(const float* from) {
  if constexpr (kAligned) return *reinterpret_cast<const float4*>(from);
  return {from[0], from[1], from[2], from[3]};
}
template <bool kAligned>
__device__ void store_quad(float* to, float4 v) {
  if constexpr (kAligned)
    *reinterpret_cast<float4*>(to) = v;
  else
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

// A block of threads a run; the run's length is a multiple of four.
template <bool kAligned>
__global__ void __launch_bounds__(kRowThreads) normalise_rows(const __grid_constant__ Rows a) {
  __shared__ float warps[kRowThreads / kWarp];
  float4 v[kQuadsMax], more[kQuadsMax]{}, weight[kQuadsMax];
  const int64_t first = blockIdx.x * a.group;
  const auto each_quad = [&](auto&& f) {
#pragma unroll
    for (int k = 0; k < kQuadsMax; ++k) {
      const int64_t i = 4 * (int64_t{k} * kRowThreads + threadIdx.x);
      if (i >= a.group) break;
      f(k, i);
    }
  };
  each_quad([&](int k, int64_t i) { weight[k] = load_quad<false>(a.weight + i); });
  wait_for_earlier();
  const int64_t source = a.source(blockIdx.x);
  // All loads before the first store: as far as the compiler knows, it may be to where they read.
  each_quad([&](int k, int64_t i) {
    v[k] = load_quad<kAligned>(a.x + source + i);
    if (a.more) more[k] = load_quad<kAligned>(a.more + source + i);
  });
  float squares = 0;
  each_quad([&](int k, int64_t i) {
    if (a.more) {
      v[k] = {v[k].x + more[k].x, v[k].y + more[k].y, v[k].z + more[k].z, v[k].w + more[k].w};
      store_quad<kAligned>(a.sum + first + i, v[k]);
    }
    squares = fmaf(v[k].x, v[k].x, fmaf(v[k].y, v[k].y, fmaf(v[k].z, v[k].z, fmaf(v[k].w, v[k].w, squares))));
  });
  squares = warp_sum(squares);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = squares;
  __syncthreads();
  float all = 0;
#pragma unroll
  for (int w = 0; w < kRowThreads / kWarp; ++w) all += warps[w];
  const float factor = 1.0f / sqrtf(all / static_cast<float>(a.group) + a.eps);
  each_quad([&](int k, int64_t i) {
    const float4 w = weight[k];
    const float4 result{v[k].x * factor * w.x, v[k].y * factor * w.y, v[k].z * factor * w.z, v[k].w * factor * w.w};
    if (a.stored == Stored::kF32)
      store_quad<kAligned>(static_cast<float*>(a.out) + first + i, result);
    else
      store_four(a.stored, a.out, (first + i) / 4, result);
  });
}

// A warp a run, of any length.
__global__ void normalise_runs(const __grid_constant__ Rows a) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t run = first_item() / kWarp; run < a.runs; run += item_step() / kWarp) {
    const int64_t source = a.source(run);
    const auto value = [&](int64_t i) { return a.more ? a.x[source + i] + a.more[source + i] : a.x[source + i]; };
    float squares = 0;
    for (int64_t i = lane; i < a.group; i += kWarp) {
      const float x = value(i);
      squares = fmaf(x, x, squares);
    }
    const float factor = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(a.group) + a.eps);
    for (int64_t i = lane; i < a.group; i += kWarp) {
      const float x = value(i);  // the sum may be written to where it is from
      if (a.more) a.sum[run * a.group + i] = x;
      store_one(a.stored, a.out, run * a.group + i, x * factor * a.weight[i]);
    }
  }
}

void normalise(const Rows& a, const CudaStream& stream) {
  if (a.runs == 0) return;
  if (a.group <= kWarpGroupMax || a.group % 4 != 0 || a.group > 4 * kQuadsMax * kRowThreads) {
    normalise_runs<<<blocks_for(a.runs * kWarp), kThreads, 0, stream.raw()>>>(a);
  } else {
    const auto places = reinterpret_cast<uintptr_t>(a.x) | reinterpret_cast<uintptr_t>(a.more) |
                        reinterpret_cast<uintptr_t>(a.sum) | reinterpret_cast<uintptr_t>(a.out);
    const auto blocks = static_cast<unsigned>(a.runs);
    launch_early(stream, places % sizeof(float4) == 0 ? normalise_rows<true> : normalise_rows<false>, blocks,
                 kRowThreads, 0, a);
  }
  launched("RMSNORM");
}

}  // namespace

void rmsnorm(const kit::OpCall& call) {
  const int64_t group = call.op->attr.norm.group;
  normalise({call.in[0].f32(), nullptr, call.weight[0]->vector(), group, call.in[0].rows * (call.in[0].width / group),
             call.op->attr.norm.eps, nullptr, call.out[0].data, stored_as(call.out[0])},
            stream_of(call));
}

void rmsnorm_of_sum(const kit::OpCall& call, const float* x, const float* more, const kit::Tensor& sum,
                    const kit::Tensor& out, const motley_attr& attr, const kit::Weight& weight) {
  normalise({x, more, weight.vector(), sum.width, sum.rows, attr.norm.eps, sum.f32(), out.data, stored_as(out)},
            stream_of(call));
}

void select_rmsnorm(const kit::OpCall& call) {
  const kit::Tensor& out = call.out[0];
  normalise({call.in[0].f32(), nullptr, call.weight[0]->vector(), out.width, out.rows, call.op->attr.norm.eps, nullptr,
             out.data, stored_as(out), stream_of(call).batch().head_rows},
            stream_of(call));
}

void add_rmsnorm(const kit::OpCall& call) {
  rmsnorm_of_sum(call, call.in[0].f32(), call.in[1].f32(), call.out[0], call.out[1], call.op->attr, *call.weight[0]);
}

}  // namespace motley::cuda
