// Products of each row with the matrices of the experts it chose.
//
// The (row, choice) pairs are sorted by expert, so that the panels of an expert pass once over all its rows. How a pair
// is computed does not depend on the others: a row alone gives the same bits.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <utility>

#include "cpu/ops.hpp"
#include "cpu/weight.hpp"

namespace motley::cpu {
namespace {

// To bring a panel from memory takes about as long as to multiply it with this many rows.
constexpr int64_t kPanelCost = 4;

class Grouped {
 public:
  explicit Grouped(const kit::OpCall& call)
      : call_(call),
        data_(*static_cast<const GroupedData*>(call.op->data.get())),
        x_(call.in[0]),
        width_(x_.last),
        top_k_(call.in[1].width),
        pairs_(call.in[1].rows * top_k_),
        experts_(call.weight[0]->experts),
        own_(x_.width != width_),
        line_(call.scratch),
        room_(reinterpret_cast<float*>(call.scratch + data_.forms.row_bytes(width_))),
        ends_(reinterpret_cast<int32_t*>(room_ + kGatedRoomFloats)),
        places_(ends_ + experts_),
        order_(places_ + pairs_) {}

  void run() {
    sort();
    prepare();
    const int64_t panels = (data_.rows[0].count + kPanelRows - 1) / kPanelRows;
    int64_t total = 0;
    for (int64_t e = 0; e < experts_; ++e) total += cost(e) * panels;
    // This thread's part of the row of all panels of all experts, each as long as its cost.
    const int64_t from = total * call_.thread / call_.threads, to = total * (call_.thread + 1) / call_.threads;
    int64_t at = 0;
    for (int64_t e = 0; e < experts_; ++e) {
      const int64_t each = cost(e);
      if (each == 0) continue;
      const auto panel = [&](int64_t point) {
        return std::min((std::max<int64_t>(point - at, 0) + each - 1) / each, panels);
      };
      if (const kit::Range mine{panel(from), panel(to)}; mine.begin < mine.end) multiply(e, mine);
      at += each * panels;
    }
  }

 private:
  // Pairs of expert e: [begin_of(e), ends_[e]) in the order of the experts.
  int64_t begin_of(int64_t e) const { return e > 0 ? ends_[e - 1] : 0; }
  int64_t cost(int64_t e) const {
    const int64_t rows = ends_[e] - begin_of(e);
    return rows > 0 ? rows + kPanelCost : 0;
  }
  bool one_input() const { return !own_ && x_.rows == 1; }
  const float* input(int64_t pair) const { return own_ ? x_.f32() + pair * width_ : x_.f32(pair / top_k_); }

  // Every thread sorts for itself: cheaper than to meet.
  void sort() {
    const int32_t* ids = call_.in[1].i32();
    const kit::Kept& kept = call_.weight[0]->kept_experts;
    const auto held = [&](int64_t pair) -> int64_t {
      if (ids[pair] >= 0 && ids[pair] < kept.source_count()) return kept.kept_of(ids[pair]);
      call_.fail(MOTLEY_OUT_OF_RANGE, "GROUPED_MATMUL: an expert id is out of range");
      return -1;
    };
    std::fill(ends_, ends_ + experts_, 0);
    int32_t sum = 0;
    for (int64_t p = 0; p < pairs_; ++p)
      if (const int64_t e = held(p); e >= 0) ++ends_[e];
    for (int64_t e = 0; e < experts_; ++e) sum += std::exchange(ends_[e], sum);
    for (int64_t p = 0; p < pairs_; ++p) {
      const int64_t e = held(p);
      places_[p] = e >= 0 ? ends_[e]++ : -1;
      if (places_[p] >= 0)
        order_[places_[p]] = static_cast<int32_t>(p);
      else
        leave_out(p);
    }
  }
  // An expert that is not here says nothing.
  void leave_out(int64_t pair) {
    if (pair % call_.threads != call_.thread) return;
    const int64_t n = call_.out[0].last;
    std::memset(call_.out[0].f32() + pair * n, 0, static_cast<size_t>(n) * 4);
  }

  std::byte* prepared() const { return static_cast<std::byte*>(call_.out[1].data); }
  float* floats(int64_t place) const { return call_.out[2].f32() + place * width_; }
  // Input x, prepared in line_, to its place.
  void put(int64_t place, const float* x) const {
    data_.forms.copy(line_, width_, prepared(), pairs_, place);
    if (data_.forms.floats) std::memcpy(floats(place), x, static_cast<size_t>(width_) * 4);
  }

  // Inputs in the order of the experts, each prepared once. The input of a single row stays where it is.
  void prepare() {
    if (one_input()) {
      data_.forms.prepare(*data_.set, x_.f32(), width_, line_, 1, 0);
      return;
    }
    const int64_t choices = own_ ? 1 : top_k_;  // that share an input
    const kit::Range part = call_.part(pairs_ / choices);
    for (int64_t i = part.begin; i < part.end; ++i) {
      const float* x = input(i * choices);
      data_.forms.prepare(*data_.set, x, width_, line_, 1, 0);
      for (int64_t p = i * choices; p < (i + 1) * choices; ++p) {
        if (places_[p] >= 0) put(places_[p], x);
      }
    }
    call_.barrier();
  }

  MatmulArgs arguments(size_t i, int64_t expert, int64_t place, int64_t rows) const {
    const auto& weight = *static_cast<const PackedWeight*>(call_.weight[2 * i]);
    MatmulArgs g;
    g.w = rows_of(weight.matrix(expert), data_.rows[i]);
    g.bias = bias_of(call_.weight[2 * i + 1], data_.rows[i], expert, weight.rows);
    g.x_stride = width_;
    one_input() ? data_.forms.point(line_, width_, 1, 0, &g) : data_.forms.point(prepared(), width_, pairs_, place, &g);
    if (data_.forms.floats || one_input()) g.x = one_input() ? x_.f32() : floats(place);
    g.rows = rows;
    return g;
  }
  void multiply(int64_t expert, kit::Range panels) const {
    const int64_t step = one_input() ? 1 : ends_[expert] - begin_of(expert);
    for (int64_t place = begin_of(expert); place < ends_[expert]; place += step) multiply(expert, place, step, panels);
  }
  void multiply(int64_t expert, int64_t place, int64_t rows, kit::Range panels) const {
    const kit::Tensor& out = call_.out[0];
    if (data_.after.gated()) {
      GatedProducts g{arguments(0, expert, place, rows), arguments(1, expert, place, rows), panels};
      g.out = out.f32();
      g.out_stride = out.last;
      g.out_rows = order_ + place;
      g.room = room_;
      return run_gated(*data_.set, data_.after, g);
    }
    MatmulArgs g = arguments(0, expert, place, rows);
    g.y = out.f32();
    g.y_stride = out.last;
    g.y_rows = order_ + place;
    g.panel_begin = panels.begin;
    g.panel_end = panels.end;
    data_.set->matmul(g);
  }

  const kit::OpCall& call_;
  const GroupedData& data_;
  const kit::Tensor& x_;
  const int64_t width_, top_k_, pairs_, experts_;
  const bool own_;  // each choice has an input of its own
  std::byte* const line_;
  float* const room_;
  int32_t *const ends_, *const places_, *const order_;  // [experts], by pair, by place
};

}  // namespace

int64_t grouped_scratch_bytes(int64_t pairs, int64_t experts, int64_t width, const RowForms& forms) {
  return forms.row_bytes(width) + kGatedRoomFloats * 4 + (experts + 2 * pairs) * 4;
}

void run_grouped(const kit::OpCall& call) { Grouped(call).run(); }

}  // namespace motley::cpu
