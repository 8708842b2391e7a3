// Products whose weights stream through once: bf16 rows and tiles, on tensor cores with bf16 activations, and f16 rows,
// with f16 activations. Every sum is
// taken in one order, whatever the number of rows: eight parts of the columns, each from its first to its last, then
// the parts in order. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/stored.hpp"
#include "cuda/stream.hpp"
#include "cuda/weight.hpp"

namespace motley::cuda {

constexpr int kParts = 8;        // of the columns
constexpr int kProductsMax = 3;  // of one input at once
constexpr int kFewRows = 8;      // that need no copy of the activations
constexpr int kFewRowsBest = 4;  // of these it pays
static_assert(kFewRowsBest == kPlainRows);
constexpr int kSerialRows = 64;  // that multiply_serially takes
constexpr int kRowsAtOnce = 64;  // that a block of threads takes, the most
constexpr int kBlockTiles = 8;   // of 16 weight rows each, that a block of threads takes with more than few rows
constexpr int kWideTiles = 16;   // the same of quantised weights with 64 rows: activations are read for half as many

// One of the products that share an input.
struct Product {
  const uint8_t* data;
  const float* bias;  // null: none
  void* out;          // [rows][width]
  int32_t width;      // weight rows
  int32_t first;      // tile, counted over all products
  bool bf16 = false;  // of out, else it is f32

  std::byte* at(int64_t i) const { return static_cast<std::byte*>(out) + i * (bf16 ? 2 : 4); }
};

// Rows that go to one expert.
struct Group {
  int32_t expert, first, count;  // expert -1: zeros; first: into `order`
};

// Rows of activations: f32, or already rounded to bf16 (of a multiple of eight columns), for tiles also in their order.
struct Inputs {
  const void* data;
  Stored stored;
};

struct Job {
  Product products[kProductsMax];
  int32_t count, tiles;  // products; tiles of all
  int32_t dtype, cols;
  int64_t row_bytes, expert_bytes;  // as WeightView has them
  Inputs x;                         // [rows][cols]
  int64_t rows;
  // Of few rows, and by multiply_serially, only: of two products of a width, the one `gate` says is a gate, and what is
  // written is SILU_MUL of both, first rounded to what they would be written in.
  void* gated;  // [rows][width]; null: the products are written
  Stored gated_as;
  int32_t gate;
};

// The rows of a GROUPED_MATMUL: pair p = (row, choice).
struct Choice {
  const int32_t* ids;  // [pairs]; null: no experts
  const int32_t* expert_of;
  int32_t source_experts, top_k;
  bool own_inputs;  // x has a row for each pair
  const FaultPlace* fault;
};

// Tiles of a product in a Job: whole blocks of threads, so that none has rows of two products.
int32_t tiles_of(int64_t rows);

// What a Job of at most `rows` rows needs beside its operands: bytes, and counters that are zero before and after.
int64_t stream_scratch(const Job& job, int64_t rows);
int64_t stream_counters(const Job& job, int64_t rows);
int64_t choice_scratch(int64_t pairs, int64_t x_rows, int64_t cols, int64_t experts);

// Whether multiply_rows() takes them without a copy of the activations.
bool is_of_few_rows(const Job& job, int64_t few_rows_max = kFewRowsBest);
// Up to few_rows_max rows, kFewRows at most, without a copy of the activations; its value changes no bit.
void multiply_rows(const Job& job, std::byte* scratch, uint32_t* counters, cudaStream_t stream,
                   int64_t few_rows_max = kFewRowsBest);
// `experts` are held.
void multiply_chosen(const Job& job, const Choice& choice, int64_t experts, std::byte* scratch, cudaStream_t stream);

// In bf16 (rows as the file has them) with the sums of cuBLASLt's kernels that split none: the columns from the first
// to the last, 16 at a time. Up to serial_rows_max rows, kSerialRows or none; the activations are in bf16, `stride`
// elements apart.
int64_t serial_rows_max(const Job& job);
void multiply_serially(const Job& job, int64_t stride, cudaStream_t stream);

// A job's rows, which are not in tile order, as its weights meet them: bf16 or f16, bf16_stride() apart, zeros behind.
void order_rows(const Job& job, void* to, cudaStream_t stream);
// To rows in bf16 or f16, `to_stride` apart, zeros behind.
void round_rows(const Inputs& x, int64_t rows, int64_t cols, bool f16, void* to, int64_t to_stride,
                cudaStream_t stream);
int64_t bf16_stride(int64_t cols);  // elements

// Lets the kernels have the shared memory they ask for; once a GPU. False: it has too little (before compute capability
// 9.0, and in GPUs for graphics) or no boxes, and none of the above may be used.
bool prepare_stream();

}  // namespace motley::cuda
