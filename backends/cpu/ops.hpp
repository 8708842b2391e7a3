// Kit kernels on top of a KernelSet, and the rewrite of a plan that joins ops (fuse.cpp).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/best.hpp"
#include "cpu/kernels.hpp"
#include "kit/kit.hpp"

namespace motley::cpu {

// PlanOp::data of every op this backend runs itself.
struct OpData {
  const KernelSet* set = nullptr;
};

// The rows of a matrix that a product takes; `first` is a multiple of kPanelRows. A SPLIT of a product becomes products
// of parts of its matrix: their PlanOp::data is one of these until fuse() has joined them.
struct RowsOf {
  int64_t first = 0, count = 0;
};

// What is done to the result of one product, or joins the results of two (gate and up).
struct Activation {
  enum class Kind { kNothing, kSilu, kGelu, kClampedSwiglu, kSoftcap };
  Kind kind = Kind::kNothing;
  float alpha = 0, limit = 0;  // kClampedSwiglu; kSoftcap: limit is the cap
  bool gated() const { return kind != Kind::kNothing && kind != Kind::kSoftcap; }
  void join(const KernelSet& set, const float* gate, const float* up, int64_t n, float* out) const;
};

// RowForms::rests_from of what nothing is chosen by: fewer rests err more, more take longer (docs/benchmarks.md).
inline constexpr float kRestsFrom = 4;

// The forms in which products read the rows of their input. Prepared rows lie form by form: the int8 blocks of all
// rows, then all rows in bf16. They lie at multiples of 64 bytes.
struct RowForms {
  bool quantised = false, narrow = false, floats = false;
  bool tiled = false;  // bf16 as it lies in tiles
  // int8 plus the rests of blocks whose d^2 is so many times the mean of their row's; 0: of all; below: of none.
  float rests_from = kNoRests;
  bool fine = false;  // bf16 plus its rest

  bool has_rests() const { return quantised && rests_from >= kAllRests; }

  void add(PanelKind kind) { (is_float(kind) ? floats : is_quantised(kind) ? quantised : narrow) = true; }
  bool prepared() const { return quantised || narrow || tiled; }
  // At most; for each of any number of rows.
  int64_t row_bytes(int64_t width) const;
  // Row r of `rows` that lie at `to`.
  void prepare(const KernelSet& set, const float* x, int64_t width, std::byte* to, int64_t rows, int64_t r) const;
  // Of one row at `one`; not tiled.
  void copy(const std::byte* one, int64_t width, std::byte* to, int64_t rows, int64_t r) const;
  // Has `args` read the prepared rows from r on; tiled: a multiple of kTiledRows.
  void point(const std::byte* at, int64_t width, int64_t rows, int64_t r, MatmulArgs* args) const;
};

// A product's part of the work before an attention: of `all`, [from, to). It asks for as much of the layer's KV.
struct FetchShare {
  int32_t layer = -1;  // of the pool; below 0: there is no attention behind it
  int64_t from = 0, to = 0, all = 0;
  int64_t bytes = 0;  // of KV that is asked for before the attention, at most
};

// A group of matrix products of the same rows, with what stands before and after them.
//   in   [0] x; [1] residual or none
//   out  [0] prepared rows or none, [1] normed rows or none (arena), [2 + i] result of product i; gated: [2] is the
//   one
//        result of two products
//        a head: [3] largest results of its groups of panels (arena)
//   weight [2 i] matrix, [2 i + 1] bias or none; last: norm weight or none
struct MatmulData : OpData {
  std::vector<RowsOf> rows;  // of each product's matrix
  RowForms forms, prompt;    // prompt: of prompt rows, where they are read in another form; else nothing
  bool norm = false;
  float eps = 0;
  Activation after;
  std::shared_ptr<const BestBounds> best;  // a head: rows of which only the best result counts need no other
  FetchShare fetch;
};

// GROUPED_MATMUL, or two of the same rows and ids (gate and up) with the activation that joins them.
//   in   [0] x [R, k] or [R, top_k, k]; [1] ids [R, top_k]
//   out  [0] result [R, top_k, n]; [1] prepared and [2] float rows in the order of the experts, or none (arena)
//   weight [2 i] matrices, [2 i + 1] biases or none
struct GroupedData : OpData {
  std::vector<RowsOf> rows;
  RowForms forms;
  Activation after;
};

// The rotation of keys and queries, the norms of their heads before it and the KV write after it, in one step.
//   in [0] q or none, [1] k, [2] v or none, [3] table; out [0] rotated q, [1] rotated k or none
//   weight [0] norm of q's heads or none, [1] of k's
struct RotateData : OpData {
  bool write = false;  // store k and v at op.attr.kv
  motley_attr q{}, k{};
  float q_eps = 0, k_eps = 0;
};

// Two products of the same rows; `panels` counts those of either. Row i of activation(gate, up) goes to row i of `out`,
// or to row out_rows[i]. The products pass through `room` in pieces that stay in the cache.
struct GatedProducts {
  MatmulArgs gate, up;  // without y and panels
  kit::Range panels{};
  float* out = nullptr;
  int64_t out_stride = 0;
  const int32_t* out_rows = nullptr;
  float* room = nullptr;  // kGatedRoomFloats, for tiled rows kGatedTiledRoomFloats
};
// A piece: so many rows x panels of either product. Many rows are multiplied fastest when most of them pass at once;
// tiled rows when panels are unpacked for as many rows, and rows read for as many panels, as the kernels take at once.
inline constexpr int64_t kGatedRows = 64, kGatedPanels = 16, kGatedManyRows = 256, kGatedFewPanels = 4;
inline constexpr int64_t kGatedRoomFloats = 2 * kGatedRows * kGatedPanels * kPanelRows;
static_assert(kGatedManyRows * kGatedFewPanels == kGatedRows * kGatedPanels);
inline constexpr int64_t kGatedTiledRows = 512, kGatedTiledPanels = 8;
inline constexpr int64_t kGatedTiledRoomFloats = 2 * kGatedTiledRows * kGatedTiledPanels * kPanelRows;
void run_gated(const KernelSet& set, const Activation& activation, const GatedProducts& products);

// The part of a packed matrix, and of the biases of all its experts.
PanelMatrix rows_of(PanelMatrix matrix, const RowsOf& rows);
inline const float* bias_of(const kit::Weight* bias, const RowsOf& rows, int64_t expert, int64_t all) {
  return bias ? bias->vector() + expert * all + rows.first : nullptr;
}

void run_matmuls(const kit::OpCall& call);
int64_t matmul_scratch_bytes(int64_t rows_max, int64_t width, const MatmulData& data);
void run_grouped(const kit::OpCall& call);
// pairs: most (row, choice) pairs of a step; width: of one input.
int64_t grouped_scratch_bytes(int64_t pairs, int64_t experts, int64_t width, const RowForms& forms);
void run_attention(const kit::OpCall& call);
int64_t attention_scratch_bytes(int64_t head_dim);
inline constexpr int64_t kPartialFloats = 1 << 18;  // width of the attention's room for partial results
void run_rope_table(const kit::OpCall& call);
void run_rotate(const kit::OpCall& call);
// in [0] x, [1] residual; out [0] = residual + RMSNORM of x. Scratch: a row of x.
void run_norm_add(const kit::OpCall& call);
// COMBINE_EXPERTS with a third input: a residual or none.
void run_combine(const kit::OpCall& call);

// Kit's reference table with this backend's kernels in it. They need plans that went through fuse().
const kit::KernelTable& kernel_table();

// Rewrites a checked plan for `set`: every op of the table gets its data, neighbours are joined. one_class: prompt rows
// are computed as generated ones are, also by a set that has a class of its own for them.
void fuse(kit::Plan& plan, const KernelSet& set, bool one_class);

}  // namespace motley::cpu
