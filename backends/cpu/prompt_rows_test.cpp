// Products with tiled rows, of every set that takes them, against plain loops in double.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "cpu/kernels.hpp"
#include "cpu/ops.hpp"
#include "cpu/test_data.hpp"
#include "cpu/weight.hpp"

namespace motley::cpu {
namespace {

bool takes_tiled(const KernelCase& c) {
  return c.set->takes_tiled && (kit::find_format(c.dtype)->block > 1 || c.dtype == MOTLEY_BF16);
}
bool takes_tiled_bf16(const KernelCase& c) { return takes_tiled(c) && c.dtype == MOTLEY_BF16; }

class PromptRowsTest : public testing::TestWithParam<KernelCase> {
 protected:
  PackedWeight pack(const motley_weight_desc& desc) { return {kit::WeightSource(desc), allocator_, 2, true}; }
  const KernelSet& set() const { return *GetParam().set; }
  // All rows of x in calls of `at_once` rows, panels split at `cut`.
  std::vector<float> multiply(const PackedWeight& w, const std::vector<float>& x, int64_t rows, int64_t at_once,
                              int64_t cut, RowForms forms = {.tiled = true}) {
    std::vector<std::byte> room(static_cast<size_t>(rows * forms.row_bytes(w.cols)) + 64);
    std::byte* const at = room.data() + (64 - reinterpret_cast<uintptr_t>(room.data()) % 64);
    std::vector<float> y(static_cast<size_t>(rows * w.rows), NAN);
    for (int64_t begin = 0; begin < rows; begin += at_once) {
      MatmulArgs g;
      g.w = w.matrix();
      g.rows = std::min(at_once, rows - begin);
      for (int64_t r = 0; r < g.rows; ++r) {
        forms.prepare(set(), x.data() + (begin + r) * w.cols, w.cols, at, g.rows, r);
      }
      forms.point(at, w.cols, g.rows, 0, &g);
      g.y = y.data() + begin * w.rows;
      g.y_stride = w.rows;
      g.panel_end = cut;
      set().matmul(g);
      g.panel_begin = cut;
      g.panel_end = g.w.panels();
      set().matmul(g);
    }
    return y;
  }

 private:
  SlabAllocator allocator_;
};

// Both factors are rounded to bf16, by up to 1 / 512 of each. As a part of the root of the sum of squared terms.
TEST_P(PromptRowsTest, Products_AreCloseToDouble) {
  constexpr int64_t kRows = 83, kCols = 768, kActRows = 19;
  const auto data = random_rows(GetParam().dtype, kRows, kCols, 7);
  const motley_weight_desc desc = describe(GetParam().dtype, kRows, kCols, data);
  const PackedWeight w = pack(desc);
  const std::vector<float> x = normals(kActRows * kCols, 3), y = multiply(w, x, kActRows, kActRows, 2);
  std::vector<float> row(kCols);
  double error = 0, all = 0;
  for (int64_t n = 0; n < kRows; ++n) {
    w.read_row(0, n, row.data());
    for (int64_t r = 0; r < kActRows; ++r) {
      double sum = 0, size = 0;
      for (size_t c = 0; c < kCols; ++c) {
        const double term = static_cast<double>(row[c]) * x[static_cast<size_t>(r * kCols) + c];
        sum += term, size += term * term;
      }
      const double off = y[static_cast<size_t>(r * kRows + n)] - sum;
      EXPECT_LE(std::fabs(off), std::sqrt(size) * 0.015) << r << " " << n;
      error += off * off, all += size;
    }
  }
  EXPECT_LE(std::sqrt(error / all), 3e-3);
}

// Rows of one and two tiles, a chunk and more; columns and panels that end inside of what is taken at a time, more than
// one strip and one group of panels; headers of a part of a block.
TEST_P(PromptRowsTest, AnyRowsAndPanelsAtOnce_AreBitIdentical) {
  constexpr int64_t kRows = 290, kActRows = 530;
  const int64_t cols = kit::find_format(GetParam().dtype)->block <= 32 ? 736 : 768;
  const auto data = random_rows(GetParam().dtype, kRows, cols, 19);
  motley_weight_desc desc = describe(GetParam().dtype, kRows, cols, data);
  const motley_range columns[] = {{0, 32}, {64, 672}};
  desc.col_ranges = columns, desc.col_range_count = 2;
  const PackedWeight w = pack(desc);
  const std::vector<float> x = normals(static_cast<size_t>(kActRows * w.cols), 4);
  const std::vector<float> all = multiply(w, x, kActRows, kActRows, 0);
  for (const int64_t at_once : {1, 15, 33, 100}) {
    const std::vector<float> some = multiply(w, x, at_once + 1, at_once, at_once % 4 + 1);
    EXPECT_EQ(0, std::memcmp(all.data(), some.data(), some.size() * 4)) << at_once;
  }
}

class Bf16PromptRowsTest : public PromptRowsTest {};

// For weights that are BF16 it is another way to read the same numbers, with and without their rests.
TEST_P(Bf16PromptRowsTest, HaveTheBitsOfOtherRows) {
  constexpr int64_t kRows = 83, kCols = 2112, kActRows = 37;
  const auto data = random_rows(MOTLEY_BF16, kRows, kCols, 7);
  const motley_weight_desc desc = describe(MOTLEY_BF16, kRows, kCols, data);
  const PackedWeight w = pack(desc);
  const std::vector<float> x = normals(kActRows * kCols, 3);
  for (const bool fine : {false, true}) {
    const std::vector<float> tiled = multiply(w, x, kActRows, kActRows, 2, {.tiled = true, .fine = fine});
    const std::vector<float> narrow = multiply(w, x, kActRows, 5, 2, {.narrow = true, .fine = fine});
    EXPECT_EQ(0, std::memcmp(tiled.data(), narrow.data(), tiled.size() * 4)) << fine;
  }
}

// Rows of a class among others: results and residuals are those of the step's rows.
TEST_P(PromptRowsTest, RowsAmongOthers_GoWhereTheyBelong) {
  constexpr int64_t kRows = 40, kCols = 256, kActRows = 3;
  const auto data = random_rows(GetParam().dtype, kRows, kCols, 7);
  const motley_weight_desc desc = describe(GetParam().dtype, kRows, kCols, data);
  const PackedWeight w = pack(desc);
  const std::vector<float> x = normals(kActRows * kCols, 3), plain = multiply(w, x, kActRows, kActRows, 0);
  constexpr RowForms kForms{.tiled = true};
  std::vector<std::byte> room(static_cast<size_t>(kActRows * kForms.row_bytes(kCols)) + 64);
  std::byte* const at = room.data() + (64 - reinterpret_cast<uintptr_t>(room.data()) % 64);
  for (int64_t r = 0; r < kActRows; ++r) kForms.prepare(set(), x.data() + r * kCols, kCols, at, kActRows, r);
  const int32_t places[] = {4, 0, 2};
  const std::vector<float> residual = normals(5 * kRows, 5);
  std::vector<float> y(5 * kRows, 7.0f);
  MatmulArgs g;
  g.w = w.matrix();
  kForms.point(at, kCols, kActRows, 0, &g);
  g.y = y.data(), g.y_stride = kRows, g.y_rows = places;
  g.residual = residual.data(), g.residual_stride = kRows;
  g.rows = kActRows, g.panel_end = g.w.panels();
  set().matmul(g);
  for (size_t n = 0; n < kRows; ++n) {
    for (size_t r = 0; r < kActRows; ++r) {
      const size_t place = static_cast<size_t>(places[r]) * kRows + n;
      EXPECT_EQ(residual[place] + plain[r * kRows + n], y[place]);
    }
    EXPECT_EQ(7.0f, y[kRows + n]);
    EXPECT_EQ(7.0f, y[3 * kRows + n]);
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PromptRowsTest);
INSTANTIATE_TEST_SUITE_P(Sets, PromptRowsTest, testing::ValuesIn(kernel_cases(takes_tiled)),
                         [](const auto& info) { return name_of(info.param); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Bf16PromptRowsTest);
INSTANTIATE_TEST_SUITE_P(Sets, Bf16PromptRowsTest, testing::ValuesIn(kernel_cases(takes_tiled_bf16)),
                         [](const auto& info) { return name_of(info.param); });

}  // namespace
}  // namespace motley::cpu
