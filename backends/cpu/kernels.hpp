// The table of kernels of one instruction set. Every table computes the same functions; within one table a result does
// not depend on how many rows or panels a call covers (the order of every float sum is fixed per output element).
// Kernels are pure functions of their arguments: thread-safe, no allocation, no failure.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "cpu/layout.hpp"

namespace motley::cpu {

inline constexpr int64_t kLineBytes = 64;  // of a cache

// Runs of cache lines that a later step reads, each of run_lines lines that lie together. Products ask for them while
// they multiply, where KernelSet::fetches says so and has_halves() does not.
struct KvLines {
  const uint8_t* const* runs = nullptr;
  int64_t count = 0, run_lines = 0;
  int64_t with_block = 1;     // lines that a tile asks for with each of its blocks, at most
  int64_t run = 0, line = 0;  // where the next one lies
  // The next lines that lie together, `most` at most, from *at on; 0: none is left.
  int64_t take(int64_t most, const uint8_t** at) {
    if (run == count) return 0;
    *at = runs[run] + line * kLineBytes;
    const int64_t lines = run_lines - line < most ? run_lines - line : most;
    line += lines;
    if (line == run_lines) line = 0, ++run;
    return lines;
  }
};

// The forms of x that are given choose the numeric class: quantised formats take `tiled`, by which they are multiplied
// as bf16 numbers, else `act`; BF16 by pairs takes `tiled`, else `narrow`, with the same result.
//
// y[i, 16 p ...] = x[i] * W^T (+ bias) (+ residual[i]) for rows i and panels p of [panel_begin, panel_end).
struct MatmulArgs {
  PanelMatrix w;
  const ActBlock* act = nullptr;  // quantised formats: [rows][act_stride]
  int64_t act_stride = 0;
  // What int8 left over of some blocks, quantised again (ActBlock::rests), or null: x is close to act + rest.
  // [rows][act_stride].
  const ActBlock* rest = nullptr;
  const float* x = nullptr;  // float formats: [rows][x_stride]
  int64_t x_stride = 0;
  // BF16 by pairs: x in bf16, and what that left over or null. [rows][narrow_stride]
  const uint16_t *narrow = nullptr, *narrow_rest = nullptr;
  int64_t narrow_stride = 0;
  // The same as they lie in tiles (tiled_place), of tiled_rows rows; row 0 is tiled_first of them, a multiple of
  // kTiledRows.
  const uint16_t *tiled = nullptr, *tiled_rest = nullptr;
  int64_t tiled_rows = 0, tiled_first = 0;
  int64_t rows = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
  const int32_t* y_rows = nullptr;  // row i goes to row y_rows[i] of y, and takes its residual; null: row i
  const float* bias = nullptr;
  const float* residual = nullptr;  // may be y
  int64_t residual_stride = 0;
  int64_t panel_begin = 0, panel_end = 0;
  KvLines* fetch = nullptr;  // taken from; null: nothing is asked for
};

inline constexpr int kAttentionTile = 64;     // KV positions per soft-max update
inline constexpr int kAttentionSplit = 256;   // KV positions per partial result; a multiple of the tile
inline constexpr int kAttentionQueries = 64;  // most queries (rows x heads of a group) per call

// The KV of one head group of one sequence, in a paged pool. Element (block b, position p, dim d) of K is at
// k + (b * block_stride + p * k_position_stride + d * k_dim_stride) elements; of V at
// v + b * block_stride + p * v_position_stride + d.
struct KvView {
  int32_t dtype = 0;  // motley_dtype: F32, F16, BF16, F8_E4M3, I8
  const void *k = nullptr, *v = nullptr;
  const float *k_scale = nullptr, *v_scale = nullptr;  // I8: + b * scale_block_stride + p * scale_position_stride
  int64_t block_stride = 0, k_position_stride = 0, k_dim_stride = 0, v_position_stride = 0;
  int64_t scale_block_stride = 0, scale_position_stride = 0;
  const int32_t* blocks = nullptr;  // below 0, and then `holes`: its positions lie elsewhere
  int32_t block_size = 0;
  bool holes = false;
  int32_t context = 0;  // positions that hold data
};

// Rows of one sequence x the heads that share one KV head, over the splits [split_begin, split_end).
struct AttentionArgs {
  KvView kv;
  const float* q = nullptr;  // [rows][q_stride], the group's heads side by side
  int64_t q_stride = 0;
  int32_t rows = 0, group = 0, head_dim = 0;
  int32_t first_position = 0;  // of row 0; row r stands at first_position + r
  int32_t window = 0;          // 0 = full
  float scale = 1, softcap = 0;
  int32_t split_begin = 0, split_end = 0;
  float* state = nullptr;    // out: [rows * group][state_floats(head_dim)]
  float* scratch = nullptr;  // attention_scratch_floats(head_dim)
};

// A partial result of one query: sum of exp-weighted values [padded head_dim], then the maximum, then the sum of
// weights. Maximum = -infinity: nothing seen.
inline constexpr int64_t padded_dim(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }
inline constexpr int64_t state_floats(int64_t head_dim) { return padded_dim(head_dim) + 16; }
inline constexpr int64_t attention_scratch_floats(int64_t head_dim) {
  return kAttentionTile * head_dim + kAttentionTile * padded_dim(head_dim)  // K and V in f32
         + kAttentionQueries * head_dim                                     // scaled queries
         + kAttentionQueries * state_floats(head_dim)                       // the running split
         + 4 * kAttentionTile + 2 * kAttentionTile + 64;                    // scores, scales
}

struct KernelSet {
  const char* name;
  void (*matmul)(const MatmulArgs&);
  // rest: null, or receives the rests of blocks whose d^2 is at least `from` times the mean of all.
  void (*quantise)(const float* x, int64_t cols, ActBlock* out, ActBlock* rest, float from);
  // x in bf16, rounded to nearest even, zeros up to narrow_columns(cols); rest: null, or the remainder, rounded again.
  // Null: the set multiplies BF16 weights by f32 activations; else it wants them by pairs.
  void (*narrow)(const float* x, int64_t cols, uint16_t* out, uint16_t* rest);
  bool takes_tiled;  // MatmulArgs::tiled
  bool fetches;      // MatmulArgs::fetch, of eight rows and more
  // out = x * weight / sqrt(mean(x^2) + eps); out may be x.
  void (*rmsnorm)(const float* x, const float* weight, int64_t n, float eps, float* out);
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);
  void (*gelu_mul)(const float* gate, const float* up, int64_t n, float* out);
  // gpt-oss: g = min(gate, limit), u = up within +-limit; out = g * sigmoid(alpha * g) * (u + 1).
  void (*clamped_swiglu)(const float* gate, const float* up, int64_t n, float alpha, float limit, float* out);
  void (*sigmoid_mul)(const float* x, const float* gate, int64_t n, float* out);
  void (*add)(const float* a, const float* b, int64_t n, float* out);
  void (*mul)(const float* a, const float* b, int64_t n, float* out);
  void (*scale)(const float* x, int64_t n, float factor, float* out);
  void (*softcap)(const float* x, int64_t n, float cap, float* out);  // out may be x
  float (*sum_exp)(const float* x, int64_t n, float largest);         // sum of e^(x - largest)
  // out = (residual +) sum over j < count, ascending, of weights[j] * the row at rows + j * stride.
  void (*combine)(const float* rows, int64_t stride, const float* weights, int32_t count, int64_t n,
                  const float* residual, float* out);
  // Rotates one head; table: [n_rot / 2] cosines, then as many sines. neox: pairs (j, j + n_rot/2), else (2j, 2j+1).
  // out may be x.
  void (*rope)(const float* x, const float* table, int32_t head_dim, int32_t n_rot, int32_t neox, float* out);
  void (*to_f16)(const float* x, int64_t n, uint16_t* out);
  void (*attend)(const AttentionArgs&);
  void (*merge)(float* state, const float* other, int64_t head_dim);  // state = state then other
  // out[head_dim] = the attention's result; sink: one more weight without a value, or null. Returns the log-sum-exp.
  float (*finish)(const float* state, int64_t head_dim, const float* sink, float* out);
};

extern const KernelSet kPortableKernels;
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvxVnniKernels;
extern const KernelSet kAvx512Kernels;
extern const KernelSet kAvx512Bf16Kernels;
extern const KernelSet kAmxKernels;

}  // namespace motley::cpu
