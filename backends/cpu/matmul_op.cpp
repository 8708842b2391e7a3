// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cpu/ops.hpp"
#include "cpu/weight.hpp"

namespace motley::cpu {
namespace {

// Up to this many numbers every thread prepares the rows for itself: cheaper than a barrier.
constexpr int64_t kPrepareAloneMax = 4096;
// Rows that pass through gate, up and activation together, so that the intermediate values stay in the cache.
constexpr int64_t kActivationRows = 64;

struct Prepared {
  const ActBlock* act = nullptr;
  const float* x = nullptr;
};

// Norm and quantisation of row r.
void prepare_row(const kit::OpCall& call, const MatmulData& data, int64_t r, float* normed, ActBlock* act) {
  const kit::Tensor& in = call.in[0];
  const float* x = in.f32(r);
  if (data.norm) {
    data.set->rmsnorm(x, call.weight.back()->vector(), in.width, data.eps, normed);
    x = normed;
  }
  if (data.quantised) data.set->quantise(x, in.width, act, data.fine ? act + act_blocks(in.width) : nullptr);
}

Prepared prepare(const kit::OpCall& call, const MatmulData& data) {
  const kit::Tensor& in = call.in[0];
  const int64_t blocks = prepared_blocks(in.width, data.fine);
  if (!data.quantised && !data.norm) return {nullptr, in.f32()};
  auto* line = reinterpret_cast<float*>(call.scratch);
  const bool alone = in.rows * in.width <= kPrepareAloneMax && !(data.norm && data.floats);
  if (alone) {
    auto* act = reinterpret_cast<ActBlock*>(call.scratch + (in.width * 4 + 63) / 64 * 64);
    for (int64_t r = 0; r < in.rows; ++r) prepare_row(call, data, r, line, act + r * blocks);
    return {act, in.f32()};
  }
  auto* act = static_cast<ActBlock*>(call.out[0].data);
  const kit::Range part = call.part(in.rows);
  for (int64_t r = part.begin; r < part.end; ++r) {
    prepare_row(call, data, r, data.norm && data.floats ? call.out[1].f32(r) : line, act + r * blocks);
  }
  call.barrier();
  return {act, data.norm ? call.out[1].f32() : in.f32()};
}

MatmulArgs arguments(const kit::OpCall& call, int32_t i, const Prepared& prepared, kit::Range panels) {
  const auto& data = *static_cast<const MatmulData*>(call.op->data.get());
  const auto& weight = *static_cast<const PackedWeight*>(call.weight[static_cast<size_t>(2 * i)]);
  const kit::Weight* bias = call.weight[static_cast<size_t>(2 * i + 1)];
  const kit::Tensor& out = call.out[static_cast<size_t>(2 + i)];
  MatmulArgs g;
  g.w = weight.matrix();
  g.act = prepared.act;
  g.act_stride = prepared_blocks(call.in[0].width, data.fine);
  g.rest = data.fine && prepared.act ? prepared.act + act_blocks(call.in[0].width) : nullptr;
  g.x = prepared.x;
  g.x_stride = call.in[0].width;
  g.rows = call.in[0].rows;
  g.y = out.f32();
  g.y_stride = out.width;
  g.bias = bias ? bias->vector() : nullptr;
  if (call.in[1].data) {
    g.residual = call.in[1].f32();
    g.residual_stride = call.in[1].width;
  }
  g.panel_begin = panels.begin;
  g.panel_end = panels.end;
  return g;
}

// Rows [begin, begin + count) of a product.
MatmulArgs slice(MatmulArgs g, int64_t begin, int64_t count) {
  if (g.act) g.act += begin * g.act_stride;
  if (g.rest) g.rest += begin * g.act_stride;
  if (g.x) g.x += begin * g.x_stride;
  g.y += begin * g.y_stride;
  g.rows = count;
  return g;
}

// result = activation(gate) * up on this thread's columns.
void run_gated(const kit::OpCall& call, const MatmulData& data, const Prepared& prepared) {
  const kit::Tensor& out = call.out[4];
  const int64_t panels = (out.width + kPanelRows - 1) / kPanelRows;
  const kit::Range part = call.part(panels);
  const MatmulArgs gate = arguments(call, 0, prepared, part), up = arguments(call, 1, prepared, part);
  const auto activate = data.after == MatmulData::After::kSilu ? data.set->silu_mul : data.set->gelu_mul;
  const int64_t from = part.begin * kPanelRows, to = std::min(part.end * kPanelRows, out.width);
  for (int64_t begin = 0; begin < gate.rows && from < to; begin += kActivationRows) {
    const int64_t count = std::min(kActivationRows, gate.rows - begin);
    data.set->matmul(slice(gate, begin, count));
    data.set->matmul(slice(up, begin, count));
    for (int64_t r = begin; r < begin + count; ++r) {
      activate(call.out[2].f32(r) + from, call.out[3].f32(r) + from, to - from, out.f32(r) + from);
    }
  }
}

}  // namespace

int64_t matmul_scratch_bytes(int64_t width) {
  const int64_t rows = kPrepareAloneMax / width;
  return (width * 4 + 63) / 64 * 64 + rows * prepared_blocks(width, true) * static_cast<int64_t>(sizeof(ActBlock));
}

void run_matmuls(const kit::OpCall& call) {
  const auto& data = *static_cast<const MatmulData*>(call.op->data.get());
  const Prepared prepared = prepare(call, data);
  if (data.after != MatmulData::After::kNothing) return run_gated(call, data, prepared);
  int64_t total = 0;  // panels of all products, one after the other
  for (int32_t i = 0; i < data.count; ++i)
    total += (call.weight[static_cast<size_t>(2 * i)]->rows + kPanelRows - 1) / kPanelRows;
  const kit::Range part = call.part(total);
  int64_t first = 0;
  for (int32_t i = 0; i < data.count; ++i) {
    const int64_t panels = (call.weight[static_cast<size_t>(2 * i)]->rows + kPanelRows - 1) / kPanelRows;
    const kit::Range mine = {std::max<int64_t>(part.begin - first, 0), std::min(part.end - first, panels)};
    if (mine.begin < mine.end) data.set->matmul(arguments(call, i, prepared, mine));
    first += panels;
  }
}

}  // namespace motley::cpu
