// How the matrices of a Hugging Face checkpoint lie in its tensors, and the rows that Motley's formats make of them.
// Layouts, and what each conversion keeps or loses: docs/formats/safetensors.md.
//
// Sources are values that point into mapped files. make_rows() is pure: calls may run at once on different rows. Spans
// of a source hold what its fields say: whoever describes it has checked that.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "model/hf/safetensors.hpp"
#include "motley/blocks.hpp"

namespace motley::hf {

// Values F32, F16 or BF16: element (r, c) lies at first + r * row_step + c * col_step. Made as they are, or as F32.
struct PlainMatrix {
  std::span<const std::byte> values;
  Element element = Element::kF32;
  int64_t rows = 0, cols = 0;
  int64_t first = 0, row_step = 0, col_step = 1;
  float add = 0;  // to every value, in F32
};

// Numbers F32, F16 or BF16, one for each block of a matrix.
struct BlockScales {
  std::span<const std::byte> values;
  Element element = Element::kF32;
  int64_t block_rows = 1, block_cols = 1;  // elements of the matrix that share a number
  int64_t row_step = 0, col_step = 0;      // from a block's number to the next one's

  float at(int64_t row, int64_t col) const;
};

// Bytes, row after row, each times its block's scale: F8_E4M3 made as itself or BF16, I8 made as Q8_0 or F16.
struct ScaledMatrix {
  std::span<const std::byte> values;
  Element element = Element::kI8;
  bool offset_128 = false;  // of kI8: bytes are unsigned, 128 is zero
  int64_t rows = 0, cols = 0;
  int64_t row_bytes = 0;
  BlockScales scales;
};

// Where four-bit numbers lie in 32-bit words, eight to a word along rows or along columns.
struct Int4Layout {
  bool along_rows = false;
  int64_t row_step = 0, col_step = 0;                    // words from a row (or run of 8) to the next; same for columns
  std::array<uint8_t, 8> order{0, 1, 2, 3, 4, 5, 6, 7};  // the nibble that holds element i of a run
};

// Codes q and zeros z of 0 to 15: a value is scale * (q - z). Made as Q4_0, Q4_1 or F16.
struct Int4Matrix {
  std::span<const std::byte> codes, zeros;  // without zeros z is 8 everywhere
  Int4Layout code_layout, zero_layout;      // of the zeros: columns count groups
  uint8_t zero_add = 0;                     // to each stored zero, modulo 16
  uint32_t zero_word_add = 0;               // to each word of zeros, with carry from one to the next
  std::span<const std::byte> column_group;  // I32 [cols], each below groups; empty: column / scales.block_cols
  int64_t groups = 0;
  int64_t rows = 0, cols = 0;
  BlockScales scales;
};

// MXFP4 as gpt-oss stores it: 32 codes in 16 bytes, element 2i in the low nibble of byte i. Made as MXFP4.
struct Mxfp4Matrix {
  std::span<const std::byte> blocks, scales;  // [stored rows, cols / 32, 16], [stored rows, cols / 32]
  int64_t rows = 0, cols = 0;
  int64_t first_row = 0, row_step = 1;
};

constexpr int64_t kF8Block = blocks::F8E4M3::kBlock;

using MatrixSource = std::variant<PlainMatrix, ScaledMatrix, Int4Matrix, Mxfp4Matrix>;

// Rows [begin, end) in the layout of `dtype` (motley_dtype), back to back from `out` on.
void make_rows(const MatrixSource& source, int32_t dtype, int64_t begin, int64_t end, std::byte* out);

// Whether every z of the matrix is 8, so that Q4_0 holds it.
bool zeros_are_eight(const Int4Matrix& matrix);

int64_t rows_of(const MatrixSource& source);
int64_t cols_of(const MatrixSource& source);
// The tensors' bytes behind it.
std::vector<std::span<const std::byte>> bytes_of(const MatrixSource& source);

uint32_t element_bytes(Element element);

}  // namespace motley::hf
