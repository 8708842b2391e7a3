// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "cpu/kv_fetch.hpp"
#include "cpu/ops.hpp"
#include "cpu/weight.hpp"

namespace motley::cpu {
namespace {

// Up to this many numbers every thread prepares the rows for itself: cheaper than a barrier.
constexpr int64_t kPrepareAloneMax = 4096;

constexpr int64_t kGrain = 2;  // panels that a thread takes at least: tiles take two at a time
// Of the panels, most are shared out beforehand: a thread finds them where it left them, and reads long runs of them.
// The rest goes to who is done first, in parts of so many bytes of weights times rows: some microseconds. A few threads
// seldom wait for one another, and would only lose by it (6 % of a step of one row with two).
constexpr int64_t kTakenWork = 64 << 10;
constexpr uint32_t kFewThreads = 4;
// Of prompt rows as tiles more is left to who is done first, and of the last panels the rows in parts: to wait for a
// thread with the last two panels of all rows would take up to a tenth of a step.
constexpr int64_t kRowPart = 128, kRowParts = 4;

// Of fewer rows products wait for weights themselves: with 8 a step took 2.5 % longer where they asked for KV as well.
constexpr int64_t kAloneRows = 8;

int64_t align(int64_t bytes) { return (bytes + 63) / 64 * 64; }
// Cache lines from one prepared row to the next: a line for each block of 32 columns, and of its rest. An odd number:
// the rows of a tile then lie in different sets of the cache.
int64_t lines(int64_t width, bool rests) { return act_blocks(width) * (rests ? 2 : 1) | 1; }
constexpr int64_t kLine = sizeof(ActBlock);
static_assert(kLine == kBlockColumns * sizeof(uint16_t));

// Of the rows that a thread prepares for itself.
int64_t alone_bytes(int64_t width) {
  const RowForms most{.quantised = true, .narrow = true, .rests_from = kAllRests, .fine = true};
  return kPrepareAloneMax / width * most.row_bytes(width);
}
// What comes before the products in a thread's scratch: a row, these rows, and the order of all rows.
int64_t prepare_bytes(int64_t rows, int64_t width) {
  return align(width * 4) + alone_bytes(width) + align(rows * static_cast<int64_t>(sizeof(int32_t)));
}

// The rows of a step that are of one numeric class, prepared.
struct ClassRows {
  const RowForms* forms = nullptr;
  const std::byte* at = nullptr;  // null: nothing is prepared
  int64_t count = 0;
  const int32_t* rows = nullptr;  // which of the step's; null: all, in their order
  bool only_best = false;         // of their results
  int64_t row(int64_t i) const { return rows ? rows[i] : i; }
};
struct Prepared {
  ClassRows classes[2];  // generated rows, prompt rows; of a head: all others, those of which only the best counts
  const float* x = nullptr;
  KvLines* fetch = nullptr;
};

// Norm and other forms of row i of a class.
void prepare_row(const kit::OpCall& call, const MatmulData& data, const ClassRows& rows, int64_t i, float* normed,
                 std::byte* to) {
  const kit::Tensor& in = call.in[0];
  const float* x = in.f32(rows.row(i));
  if (data.norm) {
    data.set->rmsnorm(x, call.weight.back()->vector(), in.width, data.eps, normed);
    x = normed;
  }
  rows.forms->prepare(*data.set, x, in.width, to, rows.count, i);
}

// Which rows are of which class; order: room for all rows.
void sort_rows(const kit::OpCall& call, const MatmulData& data, int32_t* order, ClassRows (&classes)[2]) {
  const int64_t rows = call.in[0].rows;
  classes[0] = {&data.forms, nullptr, rows, nullptr};
  classes[1] = {&data.prompt, nullptr, 0, nullptr};
  const bool head = data.best && call.batch->samples;
  if (head) classes[1] = {&data.forms, nullptr, 0, nullptr, true};
  if (!data.prompt.prepared() && !head) return;
  const auto is_second = [&](int64_t r) {
    return head ? only_best_counts(call.batch->samples[r]) : call.batch->generated[r] == 0;
  };
  for (int64_t r = 0; r < rows; ++r) classes[1].count += is_second(r);
  classes[0].count = rows - classes[1].count;
  if (classes[0].count == 0 || classes[1].count == 0) return;
  int64_t at[] = {0, classes[0].count};
  for (int64_t r = 0; r < rows; ++r) order[at[is_second(r)]++] = static_cast<int32_t>(r);
  classes[0].rows = order;
  classes[1].rows = order + classes[0].count;
}

Prepared prepare(const kit::OpCall& call, const MatmulData& data) {
  const kit::Tensor& in = call.in[0];
  Prepared p;
  p.x = in.f32();
  auto* line = reinterpret_cast<float*>(call.scratch);
  auto* const alone_at = call.scratch + align(in.width * 4);
  sort_rows(call, data, reinterpret_cast<int32_t*>(alone_at + alone_bytes(in.width)), p.classes);
  if (!data.forms.prepared() && !data.norm) return p;
  const bool alone = in.rows * in.width <= kPrepareAloneMax && !(data.norm && data.forms.floats);
  std::byte* to = alone ? alone_at : static_cast<std::byte*>(call.out[0].data);
  for (ClassRows& rows : p.classes) {
    rows.at = to;
    to += rows.count * rows.forms->row_bytes(in.width);
    const kit::Range part = alone ? kit::Range{0, rows.count} : call.part(rows.count);
    for (int64_t i = part.begin; i < part.end; ++i) {
      float* normed = data.norm && data.forms.floats ? call.out[1].f32(i) : line;
      prepare_row(call, data, rows, i, normed, const_cast<std::byte*>(rows.at));
    }
  }
  if (!alone) call.barrier();
  if (data.norm && !alone) p.x = call.out[1].f32();
  return p;
}

// Product i on the rows of a class; without the result's place and the panels.
MatmulArgs arguments(const kit::OpCall& call, const MatmulData& data, size_t i, const Prepared& prepared,
                     const ClassRows& rows) {
  const auto& weight = *static_cast<const PackedWeight*>(call.weight[2 * i]);
  MatmulArgs g;
  g.w = rows_of(weight.matrix(), data.rows[i]);
  g.bias = bias_of(call.weight[2 * i + 1], data.rows[i], 0, weight.rows);
  if (rows.at) rows.forms->point(rows.at, call.in[0].width, rows.count, 0, &g);
  g.x = prepared.x;
  g.x_stride = call.in[0].width;
  g.fetch = prepared.fetch;
  g.rows = rows.count;
  g.y_rows = rows.rows;
  if (call.in[1].data) {
    g.residual = call.in[1].f32();
    g.residual_stride = call.in[1].width;
  }
  return g;
}

// Rows [begin, begin + count) of a product, without the result's place.
MatmulArgs rows_from(MatmulArgs g, int64_t begin, int64_t count) {
  if (g.act) g.act += begin * g.act_stride;
  if (g.rest) g.rest += begin * g.act_stride;
  if (g.x) g.x += begin * g.x_stride;
  if (g.narrow) g.narrow += begin * g.narrow_stride;
  if (g.narrow_rest) g.narrow_rest += begin * g.narrow_stride;
  g.tiled_first += begin;
  g.rows = count;
  return g;
}

// The same and panels [from, to); its result at y.
MatmulArgs piece(const MatmulArgs& all, int64_t begin, int64_t count, int64_t from, int64_t to, float* y,
                 int64_t y_stride) {
  MatmulArgs g = rows_from(all, begin, count);
  g.panel_begin = from;
  g.panel_end = to;
  g.y = y - from * kPanelRows;
  g.y_stride = y_stride;
  g.y_rows = nullptr;
  return g;
}

// What a thread does of a step: panels of the products, one product after the other; of prompt rows part `row_part` of
// `row_parts`.
struct Part {
  kit::Range panels{};
  int64_t row_part = 0, row_parts = 1;
  // Of generated rows the first part has all.
  kit::Range rows(const ClassRows& of) const {
    if (!of.forms->tiled) return {0, row_part == 0 ? of.count : 0};
    const int64_t each = (of.count + row_parts * kTiledRows - 1) / (row_parts * kTiledRows) * kTiledRows;
    return {std::min(of.count, row_part * each), std::min(of.count, (row_part + 1) * each)};
  }
};

// Rows of a class of product i, with the result's place.
MatmulArgs placed(const kit::OpCall& call, const MatmulData& data, size_t i, const Prepared& prepared,
                  const ClassRows& all, const kit::Range& rows) {
  const kit::Tensor& out = call.out[2 + i];
  MatmulArgs g = rows_from(arguments(call, data, i, prepared, all), rows.begin, rows.end - rows.begin);
  g.y = out.f32();
  g.y_stride = out.width;
  if (g.y_rows) {
    g.y_rows += rows.begin;
  } else {
    g.y += rows.begin * g.y_stride;
    if (g.residual) g.residual += rows.begin * g.residual_stride;
  }
  return g;
}

// Without rests; so many panels at a time that their results are still near when the largest are looked for.
void run_coarse(const kit::OpCall& call, const MatmulData& data, MatmulArgs g, const kit::Range& panels) {
  constexpr int64_t kPanels = 32;
  static_assert(kGrain % kBestPanels == 0 && kPanels % kBestPanels == 0);
  g.rest = nullptr;
  for (g.panel_begin = panels.begin; g.panel_begin < panels.end; g.panel_begin = g.panel_end) {
    g.panel_end = std::min(g.panel_begin + kPanels, panels.end);
    data.set->matmul(g);
    note_largest(g, call.out[3].f32());
  }
}

// Once all panels are multiplied without rests: those again, with rests, that may hold the best result.
void run_fine(const kit::OpCall& call, const MatmulData& data, const Prepared& prepared) {
  const ClassRows& all = prepared.classes[1];
  const BestSearch search(*data.best, placed(call, data, 0, prepared, all, {0, all.count}), call.out[3].f32(),
                          reinterpret_cast<float*>(call.scratch + prepare_bytes(call.in[0].rows, call.in[0].width)));
  const kit::Range groups = call.part(data.best->groups());
  for (int64_t group = groups.begin; group < groups.end; ++group) {
    search.each_run(group, [&](int64_t begin, int64_t end) {
      MatmulArgs g = placed(call, data, 0, prepared, all, {begin, end});
      g.panel_begin = group * kBestPanels;
      g.panel_end = std::min(g.panel_begin + kBestPanels, g.w.panels());
      data.set->matmul(g);
    });
  }
}

void run_one(const kit::OpCall& call, const MatmulData& data, size_t i, const Prepared& prepared, const Part& part) {
  const kit::Tensor& out = call.out[2 + i];
  const bool capped = data.after.kind == Activation::Kind::kSoftcap;
  const int64_t from = part.panels.begin * kPanelRows, to = std::min(part.panels.end * kPanelRows, out.width);
  for (const ClassRows& all : prepared.classes) {
    const kit::Range rows = part.rows(all);
    if (rows.begin == rows.end) continue;
    MatmulArgs g = placed(call, data, i, prepared, all, rows);
    if (all.only_best) {
      run_coarse(call, data, g, part.panels);
      continue;
    }
    g.panel_begin = part.panels.begin;
    g.panel_end = part.panels.end;
    data.set->matmul(g);
    for (int64_t r = rows.begin; capped && r < rows.end; ++r) {
      float* y = out.f32(all.row(r)) + from;
      data.set->softcap(y, to - from, data.after.limit, y);
    }
  }
}

void run_gated(const kit::OpCall& call, const MatmulData& data, const Prepared& prepared, const Part& part) {
  for (const ClassRows& all : prepared.classes) {
    const kit::Range rows = part.rows(all);
    if (rows.begin == rows.end) continue;
    const auto of = [&](size_t i) {
      return rows_from(arguments(call, data, i, prepared, all), rows.begin, rows.end - rows.begin);
    };
    GatedProducts g{of(0), of(1), part.panels};
    g.out = call.out[2].f32();
    g.out_stride = call.out[2].width;
    g.out_rows = all.rows ? all.rows + rows.begin : nullptr;
    if (!all.rows) g.out += rows.begin * g.out_stride;
    g.room = reinterpret_cast<float*>(call.scratch + prepare_bytes(call.in[0].rows, call.in[0].width));
    run_gated(*data.set, data.after, g);
  }
}

// Panels that are shared out beforehand, then whole panels to take, then panels to take in parts of their rows.
struct Sharing {
  int64_t fixed = 0, whole = 0, parted = 0, row_parts = 1;
  int64_t grain = kGrain;  // of the whole ones

  Sharing(const kit::OpCall& call, int64_t panel_bytes, int64_t prompt_rows, int64_t total) {
    fixed = call.threads <= kFewThreads ? total : total * 3 / 4 / kGrain * kGrain;
    row_parts = std::min(kRowParts, prompt_rows / kRowPart);
    if (row_parts > 1 && fixed < total) {
      fixed = total / 2 / kGrain * kGrain;
      parted = std::min((total - fixed) / kGrain, int64_t{call.threads}) * kGrain;
    }
    whole = total - fixed - parted;
    const int64_t work = std::max<int64_t>(1, panel_bytes * call.in[0].rows);  // of a panel
    if (parted == 0) grain = kGrain * std::max<int64_t>(1, kTakenWork / (kGrain * work));
  }
  // f(part) for what this thread does.
  template <class F>
  void run(const kit::OpCall& call, F&& f) const {
    f(Part{call.part(fixed, kGrain)});
    const int64_t groups = (whole + grain - 1) / grain, items = groups + parted / kGrain * row_parts;
    for (kit::Range i = take(call, items); i.begin < i.end; i = take(call, items)) {
      if (i.begin < groups) {
        f(Part{{fixed + i.begin * grain, fixed + std::min(whole, std::min(i.end, groups) * grain)}});
      }
      for (int64_t k = std::max(i.begin, groups); k < i.end; ++k) {
        const int64_t panel = fixed + whole + (k - groups) / row_parts * kGrain;
        f(Part{{panel, panel + kGrain}, (k - groups) % row_parts, row_parts});
      }
    }
  }

 private:
  static kit::Range take(const kit::OpCall& call, int64_t items) { return items > 0 ? call.take(items) : kit::Range{}; }
};

}  // namespace

int64_t RowForms::row_bytes(int64_t width) const {
  const int64_t all = (quantised ? lines(width, has_rests()) : 0) + (narrow ? lines(width, fine) : 0) +
                      (tiled ? act_blocks(width) * (fine ? 2 : 1) : 0);
  return all * kLine;
}

void RowForms::point(const std::byte* at, int64_t width, int64_t rows, int64_t r, MatmulArgs* args) const {
  if (quantised) {
    args->act_stride = lines(width, has_rests());
    args->act = reinterpret_cast<const ActBlock*>(at) + r * args->act_stride;
    args->rest = has_rests() ? args->act + act_blocks(width) : nullptr;
    at += rows * args->act_stride * kLine;
  }
  if (narrow) {
    args->narrow_stride = lines(width, fine) * kBlockColumns;
    args->narrow = reinterpret_cast<const uint16_t*>(at) + r * args->narrow_stride;
    args->narrow_rest = fine ? args->narrow + narrow_columns(width) : nullptr;
    at += rows * lines(width, fine) * kLine;
  }
  if (tiled) {
    args->tiled = reinterpret_cast<const uint16_t*>(at);
    args->tiled_rest = fine ? args->tiled + rows * narrow_columns(width) : nullptr;
    args->tiled_rows = rows;
    args->tiled_first = r;
  }
}

void RowForms::prepare(const KernelSet& set, const float* x, int64_t width, std::byte* to, int64_t rows,
                       int64_t r) const {
  MatmulArgs at;
  point(to, width, rows, r, &at);
  if (quantised) set.quantise(x, width, const_cast<ActBlock*>(at.act), const_cast<ActBlock*>(at.rest), rests_from);
  if (narrow) set.narrow(x, width, const_cast<uint16_t*>(at.narrow), const_cast<uint16_t*>(at.narrow_rest));
  if (!tiled) return;
  point(to, width, rows, 0, &at);
  for (int64_t b = 0; b < act_blocks(width); ++b) {
    const int64_t place = tiled_place(r, rows, act_blocks(width), b), c = b * kBlockColumns;
    set.narrow(x + c, std::min<int64_t>(kBlockColumns, width - c), const_cast<uint16_t*>(at.tiled) + place,
               fine ? const_cast<uint16_t*>(at.tiled_rest) + place : nullptr);
  }
}

void RowForms::copy(const std::byte* one, int64_t width, std::byte* to, int64_t rows, int64_t r) const {
  MatmulArgs from, at;
  point(one, width, 1, 0, &from);
  point(to, width, rows, r, &at);
  const auto bytes = [width](bool twice) { return static_cast<size_t>(act_blocks(width) * (twice ? 2 : 1) * kLine); };
  if (quantised) std::memcpy(const_cast<ActBlock*>(at.act), from.act, bytes(has_rests()));
  if (narrow) std::memcpy(const_cast<uint16_t*>(at.narrow), from.narrow, bytes(fine));
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
  const bool many = g.gate.rows > kGatedRows, tiled = g.gate.tiled != nullptr;
  const int64_t rows = tiled ? kGatedTiledRows : many ? kGatedManyRows : kGatedRows;
  const int64_t panels = tiled ? kGatedTiledPanels : many ? kGatedFewPanels : kGatedPanels;
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

int64_t matmul_scratch_bytes(int64_t rows_max, int64_t width, const MatmulData& data) {
  const int64_t room = data.prompt.tiled ? kGatedTiledRoomFloats : kGatedRoomFloats;
  return prepare_bytes(rows_max, width) + (data.after.gated() ? room * 4 : 0) +
         (data.best ? rows_max * BestSearch::kRoomFloats * 4 : 0);
}

void run_matmuls(const kit::OpCall& call) {
  const auto& data = *static_cast<const MatmulData*>(call.op->data.get());
  Prepared prepared = prepare(call, data);
  KvFetch fetch;
  if (call.in[0].rows > kAloneRows) prepared.fetch = fetch.of(call, data.fetch);
  const auto panels_of = [&](size_t i) { return (data.rows[i].count + kPanelRows - 1) / kPanelRows; };
  int64_t total = 0;  // panels of all products, one after the other
  for (size_t i = 0; i < data.rows.size(); ++i) total += panels_of(i);
  if (data.after.gated()) total = panels_of(0);
  const auto run = [&](const Part& part) {
    if (part.panels.begin == part.panels.end) return;
    if (data.after.gated()) return run_gated(call, data, prepared, part);
    int64_t first = 0;
    for (size_t i = 0; i < data.rows.size(); ++i) {
      Part mine = part;
      mine.panels = {std::max<int64_t>(part.panels.begin - first, 0), std::min(part.panels.end - first, panels_of(i))};
      if (mine.panels.begin < mine.panels.end) run_one(call, data, i, prepared, mine);
      first += panels_of(i);
    }
  };
  const auto& weight = *static_cast<const PackedWeight*>(call.weight[0]);
  const int64_t prompt_rows = data.prompt.tiled ? prepared.classes[1].count : 0;
  Sharing(call, weight.matrix().panel_bytes, prompt_rows, total).run(call, run);
  if (!prepared.classes[1].only_best || prepared.classes[1].count == 0) return;
  call.barrier();
  run_fine(call, data, prepared);
}

}  // namespace motley::cpu
