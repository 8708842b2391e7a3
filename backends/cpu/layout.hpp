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
enum class PanelKind : int32_t { kF32, kF16, kBf16, kQ8_0, kQ4_0, kQ4_1, kQ4_K, kQ6_K, kCount };

// Bytes of a block of 32 columns x 16 rows, and of the header that precedes every `group` blocks. Float formats: bytes
// of one column, no header.
//
// Nibbles: 4 x 64 bytes; byte 4r + i of piece j holds column 4j + i of row r in its low half, column 16 + 4j + i in its
// high half. Bytes (Q8_0): 8 x 64; byte 4r + i of piece j is column 4j + i of row r. Then per row, 16 of each:
//   Q4_0  d f16                                   value = d * (q - 8)
//   Q4_1  d f16, m f16                            value = d * q + m
//   Q8_0  d f16                                   value = d * q
//   Q4_K  sc u8, mn u8; header d f16, dmin f16    value = d * sc * q - dmin * mn
//   Q6_K  2 x 64 bytes of high bits, sc0 i8 (columns 0-15), sc1 i8 (16-31); header d f16
//         value = d * sc * (q - 32); piece h of the high bits holds at byte 4r + i the bits 4-5 of columns
//         8h + i, 16 + 8h + i, 8h + 4 + i, 16 + 8h + 4 + i from the lowest bits up.
struct PanelFormat {
  int32_t block_bytes;
  int32_t header_bytes;
};
inline constexpr PanelFormat kPanelFormats[] = {
    {64, 0}, {32, 0}, {32, 0}, {544, 0}, {288, 0}, {320, 0}, {288, 64}, {416, 32},
};
static_assert(sizeof(kPanelFormats) / sizeof(kPanelFormats[0]) == static_cast<int>(PanelKind::kCount));

inline constexpr bool is_float(PanelKind kind) { return kind <= PanelKind::kBf16; }

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
  const PanelFormat& f = kPanelFormats[static_cast<int>(kind)];
  return blocks * f.block_bytes + (f.header_bytes ? (blocks + group - 1) / group * f.header_bytes : 0);
}

// 32 activations: x is close to d * q. sum = d * (sum of q); halves: the sums of q 0-15 and 16-31.
struct ActBlock {
  int8_t q[kBlockColumns];
  float d, sum;
  int32_t isum;
  int16_t halves[2];
};
static_assert(sizeof(ActBlock) == 48);

inline int64_t act_blocks(int64_t cols) { return (cols + kBlockColumns - 1) / kBlockColumns; }

}  // namespace motley::cpu
