// The packed layouts of matrix weights and of quantised activations (README.md has the picture). Plain data, shared by
// the packer and the kernels of every instruction set. Multi-byte numbers are little-endian.
//
// A matrix is cut into panels of 16 rows; a panel runs over the columns in blocks of 32 (quantised formats) or columns
// (float formats), so that one vector lane belongs to one row. The last panel is filled with rows of zeros.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace motley::cpu {

inline constexpr int kPanelRows = 16;
inline constexpr int kBlockColumns = 32;

// The inner layout of a packed matrix.
enum class PanelKind : int32_t {
  kF32,
  kF16,
  kBf16,
  kBf16Pairs,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_NL,
  kIQ4_XS,
  kMXFP4,
  kCount
};

// What nibbles mean where not themselves: IQ4's values, and E2M1 doubled.
enum class Codebook : int8_t { kNone, kIq4, kFp4 };
inline constexpr int8_t kCodebooks[][16] = {
    {},
    {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113},
    {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12},
};

// A quantised block of 16 rows x 32 columns is the plane of its elements' low bits, the plane of their high bits, and
// the scales. A header of 16 f16 a part precedes every `group` blocks.
//
// A plane of b bits an element is b pieces of 64 bytes. Column 16 h + 4 j + i of row r has the number k = 2 j + h; its
// bits lie in piece k b / 8 in byte 4 r + i, from bit k b mod 8 up. So piece j of nibbles has columns 4 j + i in its
// low halves, 16 + 4 j + i in its high ones, as the files have them.
//
// An element is q = low | high << low_bits; x = q - offset, or the codebook's number q. The scales, of 16 rows each,
// then the header:
//   Q8_0 Q4_0 Q5_0 IQ4_NL  d f16                          value = d * x
//   Q4_1 Q5_1              d f16, m f16                   value = d * x + m
//   Q4_K Q5_K              sc u8, mn u8; d, dmin          value = d * sc * x - dmin * mn
//   Q3_K Q6_K              sc i8 of columns 0-15, then of 16-31; d     value = d * sc * x
//   Q2_K                   sc | mn << 4 of columns 0-15, then of 16-31; d, dmin     as Q4_K
//   IQ4_XS                 sc i8; d                       value = d * sc * x
//   MXFP4                  e u8                           value = 2^(e - 128) * x
// Q8_0's q is the file's byte with its top bit flipped, so that it is unsigned like the others.
//
// offset: for a format with a codebook, what makes its values unsigned in the kernels. Float formats: one column of 16
// rows; but BF16 by pairs is in blocks of 32 columns, too: 16 pairs of columns of 16 rows, the last block filled with
// zeros. It is BF16 for instruction sets that multiply pairs of bf16 numbers.
struct PanelFormat {
  int32_t low_bits, high_bits;
  int32_t scale_bytes, header_bytes;
  int32_t offset = 0;
  Codebook codebook = Codebook::kNone;

  constexpr bool has_codebook() const { return codebook != Codebook::kNone; }
  constexpr int32_t value_of(int32_t code) const { return kCodebooks[static_cast<int>(codebook)][code]; }
  constexpr int32_t plane_bytes() const { return 64 * (low_bits + high_bits); }
};
inline constexpr PanelFormat kPanelFormats[] = {
    {32, 0, 0, 0},                        // F32
    {16, 0, 0, 0},                        // F16
    {16, 0, 0, 0},                        // BF16
    {16, 0, 0, 0},                        // BF16 by pairs
    {8, 0, 32, 0, 128},                   // Q8_0
    {4, 0, 32, 0, 8},                     // Q4_0
    {4, 0, 64, 0},                        // Q4_1
    {4, 1, 32, 0, 16},                    // Q5_0
    {4, 1, 64, 0},                        // Q5_1
    {2, 0, 32, 64},                       // Q2_K
    {2, 1, 32, 32, 4},                    // Q3_K
    {4, 0, 32, 64},                       // Q4_K
    {4, 1, 32, 64},                       // Q5_K
    {4, 2, 32, 32, 32},                   // Q6_K
    {4, 0, 32, 0, 128, Codebook::kIq4},   // IQ4_NL
    {4, 0, 16, 32, 128, Codebook::kIq4},  // IQ4_XS
    {4, 0, 16, 0, 12, Codebook::kFp4},    // MXFP4
};
static_assert(sizeof(kPanelFormats) / sizeof(kPanelFormats[0]) == static_cast<int>(PanelKind::kCount));

inline constexpr const PanelFormat& format_of(PanelKind kind) { return kPanelFormats[static_cast<int>(kind)]; }
// A float format by columns.
inline constexpr bool is_float(PanelKind kind) { return kind <= PanelKind::kBf16; }
inline constexpr bool is_quantised(PanelKind kind) { return kind > PanelKind::kBf16Pairs; }
// Two scales a block, of 16 columns each.
inline constexpr bool has_halves(PanelKind kind) {
  return kind == PanelKind::kQ2_K || kind == PanelKind::kQ3_K || kind == PanelKind::kQ6_K;
}
// Of 16 rows x 32 columns, or of one column of a float format.
inline constexpr int32_t block_bytes(PanelKind kind) {
  const PanelFormat& f = format_of(kind);
  if (kind == PanelKind::kBf16Pairs) return kPanelRows * kBlockColumns * 2;
  return is_float(kind) ? kPanelRows * f.low_bits / 8 : f.plane_bytes() + f.scale_bytes;
}

// Where a packed matrix lies. blocks: of 32 columns, or columns for float formats; group: blocks per header.
struct PanelMatrix {
  PanelKind kind = PanelKind::kF32;
  const uint8_t* data = nullptr;
  int64_t rows = 0, cols = 0;
  int64_t blocks = 0, group = 8;
  int64_t panel_bytes = 0;
  int64_t panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
};

inline int64_t panel_bytes_of(PanelKind kind, int64_t blocks, int64_t group) {
  return blocks * block_bytes(kind) + (blocks + group - 1) / group * format_of(kind).header_bytes;
}

// Where element (column, row) of a panel of BF16 by pairs lies, in elements.
inline int64_t pair_place(int64_t column, int64_t row) { return column / 2 * 2 * kPanelRows + row * 2 + column % 2; }

// 32 activations: x is close to d * q. sum = d * (sum of q); halves: the sums of q 0-15 and 16-31. A cache line each:
// loads of tiles take some 10 % less time than from blocks of 48 bytes; tiles of vectors take 2 to 6 % more.
// The rest of a block, what it leaves of x, is another one, with d a 256th of the block's. Where a row's blocks have
// rests, the first of every kRestsTogether says: bit i, whether the i-th from it on has one. Others' rests are zeros.
inline constexpr int kRestBits = 8, kRestsTogether = 64;
// Blocks have rests whose d^2 is so many times the mean of their row's, or all blocks, or none.
inline constexpr float kAllRests = 0, kNoRests = -1;
struct alignas(64) ActBlock {
  int8_t q[kBlockColumns];
  float d, sum;
  int32_t isum;
  int16_t halves[2];
  uint64_t rests;
};
static_assert(sizeof(ActBlock) == 64);

// The block of each of M activation rows.
template <int M>
struct ActRows {
  const ActBlock* row[M];
  const ActBlock& operator[](int i) const { return *row[i]; }
};

inline int64_t act_blocks(int64_t cols) { return (cols + kBlockColumns - 1) / kBlockColumns; }
// A row of activations in bf16, filled with zeros to whole blocks.
inline int64_t narrow_columns(int64_t cols) { return act_blocks(cols) * kBlockColumns; }

// Prompt rows in bf16 lie as products on tiles read them: strip by strip of kTiledBlocks blocks; in a strip 32 rows
// together, which are two tiles; of these block by block all their numbers. The last strip and the last rows are fewer.
// So what is read lies in one piece, and the rows of a strip take all sets of the second-level cache alike.
inline constexpr int64_t kTiledRows = 32, kTiledBlocks = 16;
inline int64_t tiled_rows_of(int64_t row, int64_t rows) {
  const int64_t left = rows - row / kTiledRows * kTiledRows;
  return left < kTiledRows ? left : kTiledRows;
}
// Where block b of row `row` of `rows` lies, in elements.
inline int64_t tiled_place(int64_t row, int64_t rows, int64_t blocks, int64_t b) {
  const int64_t strip = b / kTiledBlocks * kTiledBlocks, inside = row % kTiledRows;
  const int64_t wide = blocks - strip < kTiledBlocks ? blocks - strip : kTiledBlocks;
  return (strip * rows + (row - inside) * wide + (b - strip) * tiled_rows_of(row, rows) + inside) * kBlockColumns;
}

}  // namespace motley::cpu
