// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "cpu/ops.hpp"
#include "cpu/weight.hpp"

namespace motley::cpu {
namespace {

// Up to this many numbers every thread prepares the rows for itself: cheaper than a barrier.
constexpr int64_t kPrepareAloneMax = 4096;

int64_t align(int64_t bytes) { return (bytes + 63) / 64 * 64; }
// Cache lines from one prepared row to the next, in either form: a line for each block of 32 columns, and of its rest.
// An odd number: the rows of a tile then lie in different sets of the cache.
int64_t lines(int64_t width, bool fine) { return act_blocks(width) * (fine ? 2 : 1) | 1; }
constexpr int64_t kLine = sizeof(ActBlock);
static_assert(kLine == kBlockColumns * sizeof(uint16_t));

struct Prepared {
  const std::byte* at = nullptr;
  const float* x = nullptr;
};

// Norm and other forms of row r.
void prepare_row(const kit::OpCall& call, const MatmulData& data, int64_t r, float* normed, std::byte* to) {
  const kit::Tensor& in = call.in[0];
  const float* x = in.f32(r);
  if (data.norm) {
    data.set->rmsnorm(x, call.weight.back()->vector(), in.width, data.eps, normed);
    x = normed;
  }
  data.forms.prepare(*data.set, x, in.width, to, in.rows, r);
}

Prepared prepare(const kit::OpCall& call, const MatmulData& data) {
  const kit::Tensor& in = call.in[0];
  if (!data.forms.prepared() && !data.norm) return {nullptr, in.f32()};
  auto* line = reinterpret_cast<float*>(call.scratch);
  const bool alone = in.rows * in.width <= kPrepareAloneMax && !(data.norm && data.forms.floats);
  if (alone) {
    std::byte* to = call.scratch + align(in.width * 4);
    for (int64_t r = 0; r < in.rows; ++r) prepare_row(call, data, r, line, to);
    return {to, in.f32()};
  }
  auto* to = static_cast<std::byte*>(call.out[0].data);
  const kit::Range part = call.part(in.rows);
  for (int64_t r = part.begin; r < part.end; ++r) {
    prepare_row(call, data, r, data.norm && data.forms.floats ? call.out[1].f32(r) : line, to);
  }
  call.barrier();
  return {to, data.norm ? call.out[1].f32() : in.f32()};
}

int64_t prepare_bytes(int64_t width) {
  const int64_t rows = kPrepareAloneMax / width;
  return align(width * 4) + rows * RowForms{true, true, false, true}.row_bytes(width);
}

// Product i on all rows; without the result's place and the panels.
MatmulArgs arguments(const kit::OpCall& call, const MatmulData& data, size_t i, const Prepared& prepared) {
  const auto& weight = *static_cast<const PackedWeight*>(call.weight[2 * i]);
  MatmulArgs g;
  g.w = rows_of(weight.matrix(), data.rows[i]);
  g.bias = bias_of(call.weight[2 * i + 1], data.rows[i], 0, weight.rows);
  if (prepared.at) data.forms.point(prepared.at, call.in[0].width, call.in[0].rows, 0, &g);
  g.x = prepared.x;
  g.x_stride = call.in[0].width;
  g.rows = call.in[0].rows;
  if (call.in[1].data) {
    g.residual = call.in[1].f32();
    g.residual_stride = call.in[1].width;
  }
  return g;
}

// Rows [begin, begin + count) and panels [from, to) of a product; its result at y.
MatmulArgs piece(MatmulArgs g, int64_t begin, int64_t count, int64_t from, int64_t to, float* y, int64_t y_stride) {
  if (g.act) g.act += begin * g.act_stride;
  if (g.rest) g.rest += begin * g.act_stride;
  if (g.x) g.x += begin * g.x_stride;
  if (g.narrow) g.narrow += begin * g.narrow_stride;
  if (g.narrow_rest) g.narrow_rest += begin * g.narrow_stride;
  g.rows = count;
  g.panel_begin = from;
  g.panel_end = to;
  g.y = y - from * kPanelRows;
  g.y_stride = y_stride;
  return g;
}

void run_one(const kit::OpCall& call, const MatmulData& data, size_t i, const Prepared& prepared, kit::Range panels) {
  const kit::Tensor& out = call.out[2 + i];
  MatmulArgs g = arguments(call, data, i, prepared);
  g.panel_begin = panels.begin;
  g.panel_end = panels.end;
  g.y = out.f32();
  g.y_stride = out.width;
  data.set->matmul(g);
  if (data.after.kind != Activation::Kind::kSoftcap) return;
  const int64_t from = panels.begin * kPanelRows, to = std::min(panels.end * kPanelRows, out.width);
  for (int64_t r = 0; r < out.rows; ++r)
    data.set->softcap(out.f32(r) + from, to - from, data.after.limit, out.f32(r) + from);
}

}  // namespace

int64_t RowForms::row_bytes(int64_t width) const {
  return ((quantised ? 1 : 0) + (narrow ? 1 : 0)) * lines(width, fine) * kLine;
}

void RowForms::point(const std::byte* at, int64_t width, int64_t rows, int64_t r, MatmulArgs* args) const {
  if (quantised) {
    args->act_stride = lines(width, fine);
    args->act = reinterpret_cast<const ActBlock*>(at) + r * args->act_stride;
    args->rest = fine ? args->act + act_blocks(width) : nullptr;
    at += rows * lines(width, fine) * kLine;
  }
  if (narrow) {
    args->narrow_stride = lines(width, fine) * kBlockColumns;
    args->narrow = reinterpret_cast<const uint16_t*>(at) + r * args->narrow_stride;
    args->narrow_rest = fine ? args->narrow + narrow_columns(width) : nullptr;
  }
}

void RowForms::prepare(const KernelSet& set, const float* x, int64_t width, std::byte* to, int64_t rows,
                       int64_t r) const {
  MatmulArgs at;
  point(to, width, rows, r, &at);
  if (quantised) set.quantise(x, width, const_cast<ActBlock*>(at.act), const_cast<ActBlock*>(at.rest));
  if (narrow) set.narrow(x, width, const_cast<uint16_t*>(at.narrow), const_cast<uint16_t*>(at.narrow_rest));
}

void RowForms::copy(const std::byte* one, int64_t width, std::byte* to, int64_t rows, int64_t r) const {
  MatmulArgs from, at;
  point(one, width, 1, 0, &from);
  point(to, width, rows, r, &at);
  const auto bytes = static_cast<size_t>(act_blocks(width) * (fine ? 2 : 1) * kLine);
  if (quantised) std::memcpy(const_cast<ActBlock*>(at.act), from.act, bytes);
  if (narrow) std::memcpy(const_cast<uint16_t*>(at.narrow), from.narrow, bytes);
}

PanelMatrix rows_of(PanelMatrix matrix, const RowsOf& rows) {
  matrix.data += rows.first / kPanelRows * matrix.panel_bytes;
  matrix.rows = rows.count;
  return matrix;
}

void Activation::join(const KernelSet& set, const float* gate, const float* up, int64_t n, float* out) const {
  switch (kind) {
    case Kind::kSilu: return set.silu_mul(gate, up, n, out);
    case Kind::kGelu: return set.gelu_mul(gate, up, n, out);
    default: return set.clamped_swiglu(gate, up, n, alpha, limit, out);
  }
}

void run_gated(const KernelSet& set, const Activation& activation, const GatedProducts& g) {
  const bool many = g.gate.rows > kGatedRows;
  const int64_t rows = many ? kGatedManyRows : kGatedRows, panels = many ? kGatedFewPanels : kGatedPanels;
  const int64_t stride = panels * kPanelRows;
  float *gate = g.room, *up = g.room + rows * stride;
  for (int64_t from = g.panels.begin; from < g.panels.end; from += panels) {
    const int64_t to = std::min(from + panels, g.panels.end), column = from * kPanelRows;
    const int64_t columns = std::min(to * kPanelRows, g.gate.w.rows) - column;
    for (int64_t begin = 0; begin < g.gate.rows; begin += rows) {
      const int64_t count = std::min(rows, g.gate.rows - begin);
      set.matmul(piece(g.gate, begin, count, from, to, gate, stride));
      set.matmul(piece(g.up, begin, count, from, to, up, stride));
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = g.out_rows ? g.out_rows[begin + i] : begin + i;
        activation.join(set, gate + i * stride, up + i * stride, columns, g.out + row * g.out_stride + column);
      }
    }
  }
}

int64_t matmul_scratch_bytes(int64_t width, const MatmulData& data) {
  return prepare_bytes(width) + (data.after.gated() ? kGatedRoomFloats * 4 : 0);
}

void run_matmuls(const kit::OpCall& call) {
  const auto& data = *static_cast<const MatmulData*>(call.op->data.get());
  const Prepared prepared = prepare(call, data);
  const auto panels_of = [&](size_t i) { return (data.rows[i].count + kPanelRows - 1) / kPanelRows; };
  if (data.after.gated()) {
    GatedProducts g{arguments(call, data, 0, prepared), arguments(call, data, 1, prepared), call.part(panels_of(0))};
    g.out = call.out[2].f32();
    g.out_stride = call.out[2].width;
    g.room = reinterpret_cast<float*>(call.scratch + prepare_bytes(call.in[0].width));
    return run_gated(*data.set, data.after, g);
  }
  int64_t total = 0;  // panels of all products, one after the other
  for (size_t i = 0; i < data.rows.size(); ++i) total += panels_of(i);
  const kit::Range part = call.part(total);
  int64_t first = 0;
  for (size_t i = 0; i < data.rows.size(); ++i) {
    const kit::Range mine = {std::max<int64_t>(part.begin - first, 0), std::min(part.end - first, panels_of(i))};
    if (mine.begin < mine.end) run_one(call, data, i, prepared, mine);
    first += panels_of(i);
  }
}

}  // namespace motley::cpu
