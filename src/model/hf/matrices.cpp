#include "model/hf/matrices.hpp"

#include <algorithm>
#include <cstring>

#include "base/check.hpp"
#include "model/hf/numbers.hpp"
#include "motley/types.h"

namespace motley::hf {
namespace {

constexpr int64_t kBlock = 32;  // elements of a Q4_0, Q4_1, Q8_0 or MXFP4 block
constexpr int64_t kQ40Bytes = 18, kQ41Bytes = 20, kQ80Bytes = 34, kMxfp4Bytes = 17;
constexpr uint8_t kZero = 8;  // of Q4_0
// Rows unpacked together, so that the words which neighbouring rows share are read once.
constexpr int64_t kTileRows = 64;

float load_number(std::span<const std::byte> values, Element element, int64_t index) {
  switch (element) {
    case Element::kF32: return load_as<float>(values.data() + index * 4);
    case Element::kF16: return f16_to_float(load_as<uint16_t>(values.data() + index * 2));
    case Element::kBF16: return bf16_to_float(load_as<uint16_t>(values.data() + index * 2));
    default: CHECK(false, "not a real number: {}", static_cast<int>(element));
  }
  return 0;
}

uint32_t load_nibble(std::span<const std::byte> words, const Int4Layout& layout, int64_t row, int64_t col,
                     uint32_t add) {
  const int64_t run = layout.along_rows ? row : col;
  const int64_t word =
      (layout.along_rows ? row / 8 : row) * layout.row_step + (layout.along_rows ? col : col / 8) * layout.col_step;
  const uint32_t bits = load_as<uint32_t>(words.data() + word * 4) + add;
  return (bits >> (4 * layout.order[static_cast<size_t>(run % 8)])) & 15u;
}

int32_t zero_at(const Int4Matrix& matrix, int64_t row, int64_t group) {
  if (matrix.zeros.empty()) return kZero;
  const uint32_t stored = load_nibble(matrix.zeros, matrix.zero_layout, row, group, matrix.zero_word_add);
  return static_cast<int32_t>((stored + matrix.zero_add) & 15u);
}

int64_t group_at(const Int4Matrix& matrix, int64_t col) {
  if (matrix.column_group.empty()) return col / matrix.scales.block_cols;
  return load_as<int32_t>(matrix.column_group.data() + col * 4);
}

void make(const PlainMatrix& matrix, int32_t dtype, int64_t begin, int64_t end, std::byte* out) {
  const bool to_f32 = dtype == MOTLEY_F32 && (matrix.element != Element::kF32 || matrix.add != 0);
  const auto size = static_cast<int64_t>(element_bytes(matrix.element));
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = matrix.first + row * matrix.row_step;
    if (to_f32) {
      for (int64_t col = 0; col < matrix.cols; ++col, out += 4) {
        store_as(out, load_number(matrix.values, matrix.element, first + col * matrix.col_step) + matrix.add);
      }
    } else if (matrix.col_step == 1) {
      std::memcpy(out, matrix.values.data() + first * size, static_cast<size_t>(matrix.cols * size));
      out += matrix.cols * size;
    } else {
      for (int64_t col = 0; col < matrix.cols; ++col, out += size) {
        const std::byte* from = matrix.values.data() + (first + col * matrix.col_step) * size;
        std::memcpy(out, from, static_cast<size_t>(size));
      }
    }
  }
}

const std::array<float, 256>& f8_e4m3_values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> table{};
    for (size_t i = 0; i < table.size(); ++i) table[i] = f8_e4m3_to_float(static_cast<uint8_t>(i));
    return table;
  }();
  return values;
}

int8_t int8_at(const ScaledMatrix& matrix, const std::byte* from) {
  const auto bits = std::to_integer<uint8_t>(*from);
  return static_cast<int8_t>(matrix.offset_128 ? bits ^ 0x80u : bits);
}

void make(const ScaledMatrix& matrix, int32_t dtype, int64_t begin, int64_t end, std::byte* out) {
  const std::array<float, 256>& f8 = f8_e4m3_values();
  for (int64_t row = begin; row < end; ++row) {
    const std::byte* from = matrix.values.data() + row * matrix.row_bytes;
    for (int64_t col = 0; col < matrix.cols;) {
      // Runs of columns with one scale.
      const int64_t run = std::min(matrix.scales.block_cols - col % matrix.scales.block_cols, matrix.cols - col);
      const float scale = matrix.scales.at(row, col);
      for (const int64_t run_end = col + run; col < run_end;) {
        if (dtype == MOTLEY_F8_E4M3_S64) {
          store_as(out, scale);
          std::memcpy(out + sizeof scale, from + col, static_cast<size_t>(kF8Block));
          out += sizeof scale + kF8Block;
          col += kF8Block;
        } else if (dtype == MOTLEY_Q8_0) {
          store_as(out, float_to_f16(scale));
          for (int64_t i = 0; i < kBlock; ++i) store_as(out + 2 + i, int8_at(matrix, from + col + i));
          out += kQ80Bytes;
          col += kBlock;
        } else if (dtype == MOTLEY_BF16) {
          store_as(out, float_to_bf16(f8[std::to_integer<size_t>(from[col])] * scale));
          out += 2;
          ++col;
        } else {
          store_as(out, float_to_f16(static_cast<float>(int8_at(matrix, from + col)) * scale));
          out += 2;
          ++col;
        }
      }
    }
  }
}

using Codes = std::array<uint8_t, kBlock>;

// The codes of one row in one block of columns.
void encode(const Int4Matrix& matrix, int32_t dtype, int64_t row, int64_t col, const Codes& codes, std::byte* out) {
  if (dtype == MOTLEY_F16) {
    const int64_t count = std::min(kBlock, matrix.cols - col);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t group = group_at(matrix, col + i);
      const float scale = matrix.scales.at(row, group * matrix.scales.block_cols);
      const int32_t steps = codes[static_cast<size_t>(i)] - zero_at(matrix, row, group);
      store_as(out + 2 * i, float_to_f16(scale * static_cast<float>(steps)));
    }
    return;
  }
  const float scale = matrix.scales.at(row, col);
  store_as(out, float_to_f16(scale));
  out += 2;
  if (dtype == MOTLEY_Q4_1) {
    store_as(out, float_to_f16(-scale * static_cast<float>(zero_at(matrix, row, col / matrix.scales.block_cols))));
    out += 2;
  }
  for (size_t i = 0; i < kBlock / 2; ++i) out[i] = static_cast<std::byte>(codes[i] | codes[i + kBlock / 2] << 4);
}

// Unpacks rows [row, row + count) of the block of columns from `col` on, each word once.
void unpack(const Int4Matrix& matrix, int64_t row, int64_t count, int64_t col, Codes* codes) {
  constexpr int64_t kRun = 8;
  const int64_t cols = std::min(kBlock, matrix.cols - col);
  const Int4Layout& layout = matrix.code_layout;
  const auto word = [&](int64_t row_index, int64_t col_index) {
    return load_as<uint32_t>(matrix.codes.data() + (row_index * layout.row_step + col_index * layout.col_step) * 4);
  };
  const auto code = [&](uint32_t bits, int64_t i) {
    return static_cast<uint8_t>((bits >> (4 * layout.order[static_cast<size_t>(i)])) & 15u);
  };
  if (layout.along_rows) {
    for (int64_t c = 0; c < cols; ++c) {
      for (int64_t r = 0; r < count;) {
        const uint32_t bits = word((row + r) / kRun, col + c);
        for (int64_t i = (row + r) % kRun; i < kRun && r < count; ++i, ++r) {
          codes[r][static_cast<size_t>(c)] = code(bits, i);
        }
      }
    }
    return;
  }
  for (int64_t c = 0; c < cols; c += kRun) {
    const int64_t run = std::min(kRun, cols - c);
    for (int64_t r = 0; r < count; ++r) {
      const uint32_t bits = word(row + r, (col + c) / kRun);
      for (int64_t i = 0; i < run; ++i) codes[r][static_cast<size_t>(c + i)] = code(bits, i);
    }
  }
}

void make(const Int4Matrix& matrix, int32_t dtype, int64_t begin, int64_t end, std::byte* out) {
  const int64_t block_bytes = dtype == MOTLEY_Q4_0 ? kQ40Bytes : dtype == MOTLEY_Q4_1 ? kQ41Bytes : kBlock * 2;
  const int64_t row_bytes = dtype == MOTLEY_F16 ? matrix.cols * 2 : matrix.cols / kBlock * block_bytes;
  std::array<Codes, kTileRows> codes{};
  for (int64_t row = begin; row < end; row += kTileRows) {
    const int64_t count = std::min(kTileRows, end - row);
    for (int64_t col = 0; col < matrix.cols; col += kBlock) {
      unpack(matrix, row, count, col, codes.data());
      for (int64_t r = 0; r < count; ++r) {
        std::byte* to = out + (row - begin + r) * row_bytes + col / kBlock * block_bytes;
        encode(matrix, dtype, row + r, col, codes[static_cast<size_t>(r)], to);
      }
    }
  }
}

void make(const Mxfp4Matrix& matrix, int32_t /*dtype*/, int64_t begin, int64_t end, std::byte* out) {
  const int64_t blocks = matrix.cols / kBlock;
  constexpr int64_t kHalf = kBlock / 2;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t b = 0; b < blocks; ++b, out += kMxfp4Bytes) {
      const int64_t index = (matrix.first_row + row * matrix.row_step) * blocks + b;
      const std::byte* from = matrix.blocks.data() + index * kHalf;
      // Both scales are powers of two with the same bias once GGUF's doubled values are counted: the byte is kept.
      out[0] = matrix.scales[static_cast<size_t>(index)];
      const auto code = [&](int64_t e) { return (from[e / 2] >> (e % 2 == 0 ? 0 : 4)) & std::byte{15}; };
      for (int64_t e = 0; e < kHalf; ++e) out[1 + e] = code(e) | code(e + kHalf) << 4;
    }
  }
}

}  // namespace

uint32_t element_bytes(Element element) {
  switch (element) {
    case Element::kI64: return 8;
    case Element::kF32:
    case Element::kI32: return 4;
    case Element::kF16:
    case Element::kBF16: return 2;
    case Element::kF8E4M3:
    case Element::kI8:
    case Element::kU8: return 1;
    case Element::kOther: break;
  }
  CHECK(false, "an element that no weight is made of");
  return 0;
}

float BlockScales::at(int64_t row, int64_t col) const {
  return load_number(values, element, row / block_rows * row_step + col / block_cols * col_step);
}

void make_rows(const MatrixSource& source, int32_t dtype, int64_t begin, int64_t end, std::byte* out) {
  CHECK(0 <= begin && begin <= end && end <= rows_of(source), "rows {} to {} of {}", begin, end, rows_of(source));
  std::visit([&](const auto& matrix) { make(matrix, dtype, begin, end, out); }, source);
}

bool zeros_are_eight(const Int4Matrix& matrix) {
  if (matrix.zeros.empty()) return true;
  if (matrix.rows % 8 == 0) {  // whole words: there may be very many
    const uint32_t eights = static_cast<uint32_t>(kZero - matrix.zero_add) * 0x11111111u - matrix.zero_word_add;
    for (size_t at = 0; at < matrix.zeros.size(); at += sizeof(eights)) {
      if (load_as<uint32_t>(matrix.zeros.data() + at) != eights) return false;
    }
    return true;
  }
  for (int64_t group = 0; group < matrix.groups; ++group) {
    for (int64_t row = 0; row < matrix.rows; ++row) {
      if (zero_at(matrix, row, group) != kZero) return false;
    }
  }
  return true;
}

int64_t rows_of(const MatrixSource& source) {
  return std::visit([](const auto& matrix) { return matrix.rows; }, source);
}

int64_t cols_of(const MatrixSource& source) {
  return std::visit([](const auto& matrix) { return matrix.cols; }, source);
}

std::vector<std::span<const std::byte>> bytes_of(const MatrixSource& source) {
  struct Visitor {
    std::vector<std::span<const std::byte>> operator()(const PlainMatrix& m) const { return {m.values}; }
    std::vector<std::span<const std::byte>> operator()(const ScaledMatrix& m) const {
      return {m.values, m.scales.values};
    }
    std::vector<std::span<const std::byte>> operator()(const Int4Matrix& m) const {
      return {m.codes, m.zeros, m.column_group, m.scales.values};
    }
    std::vector<std::span<const std::byte>> operator()(const Mxfp4Matrix& m) const { return {m.blocks, m.scales}; }
  };
  return std::visit(Visitor(), source);
}

}  // namespace motley::hf
