// Every kernel set this machine can run, against plain loops in double.
// SPDX-License-Identifier: Apache-2.0
#include "cpu/kernels.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/test_data.hpp"
#include "cpu/weight.hpp"
#include "kit/kit.hpp"

namespace motley::cpu {

namespace {

// Activation blocks that end where readable memory ends: reading past the last one is a fault.
class GuardedBlocks {
 public:
  explicit GuardedBlocks(size_t count) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t used = (count * sizeof(ActBlock) + page - 1) / page * page;
    bytes_ = used + page;
    base_ = static_cast<char*>(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + used, page, PROT_NONE);
    blocks_ = reinterpret_cast<ActBlock*>(base_ + used) - count;
  }
  ~GuardedBlocks() { munmap(base_, bytes_); }
  GuardedBlocks(const GuardedBlocks&) = delete;
  GuardedBlocks& operator=(const GuardedBlocks&) = delete;
  ActBlock* data() const { return blocks_; }

 private:
  char* base_;
  size_t bytes_;
  ActBlock* blocks_;
};

constexpr float kSomeRests = 1.5f;  // of these about a tenth of random blocks has one

// All rows of x through the set's kernel in calls of `at_once` rows and panels split at `cut`; from: as RowForms has
// it.
std::vector<float> multiply_by(const KernelSet& set, const PackedWeight& w, const std::vector<float>& x, int64_t rows,
                               int64_t at_once, int64_t cut, float from) {
  const bool fine = from >= 0;
  const int64_t blocks = act_blocks(w.cols), columns = narrow_columns(w.cols);
  const GuardedBlocks act(static_cast<size_t>(rows * blocks)), rest(static_cast<size_t>(rows * blocks));
  std::vector<uint16_t> narrow(static_cast<size_t>(rows * columns), 0xffff), narrow_rest = narrow;
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x.data() + r * w.cols;
    set.quantise(row, w.cols, act.data() + r * blocks, fine ? rest.data() + r * blocks : nullptr, from);
    if (!set.narrow) continue;
    set.narrow(row, w.cols, narrow.data() + r * columns, fine ? narrow_rest.data() + r * columns : nullptr);
  }
  std::vector<float> y(static_cast<size_t>(rows * w.rows), NAN);
  MatmulArgs g;
  g.w = w.matrix();
  g.act_stride = blocks;
  g.narrow_stride = columns;
  g.x_stride = w.cols;
  g.y_stride = w.rows;
  for (int64_t r = 0; r < rows; r += at_once) {
    g.act = act.data() + r * blocks;
    g.rest = fine ? rest.data() + r * blocks : nullptr;
    g.narrow = narrow.data() + r * columns;
    g.narrow_rest = fine ? narrow_rest.data() + r * columns : nullptr;
    g.x = x.data() + r * w.cols;
    g.y = y.data() + r * w.rows;
    g.rows = std::min(at_once, rows - r);
    g.panel_begin = 0;
    g.panel_end = cut;
    set.matmul(g);
    g.panel_begin = cut;
    g.panel_end = g.w.panels();
    set.matmul(g);
  }
  return y;
}

class MatmulTest : public testing::TestWithParam<KernelCase> {
 protected:
  std::vector<float> multiply(const PackedWeight& w, const std::vector<float>& x, int64_t rows, int64_t at_once,
                              int64_t cut, float from = kNoRests) {
    return multiply_by(set(), w, x, rows, at_once, cut, from);
  }
  PackedWeight pack(const motley_weight_desc& desc) {
    return {kit::WeightSource(desc), allocator_, 2, set().narrow != nullptr};
  }
  const KernelSet& set() const { return *GetParam().set; }

 private:
  SlabAllocator allocator_;
};

// What rounding the activations may do to a product, as a part of the root of the sum of its squared terms: int8 errs
// by up to max / 254 a number, bf16 by up to 1 / 512 of it, both random in sign; the rests leave 1 / 200 of that.
double tolerance_of(PanelKind kind, float from) {
  if (is_float(kind)) return 1e-5;
  return (is_quantised(kind) ? 0.06 : 8e-3) * (from == kAllRests ? 0.01 : 1);
}

TEST_P(MatmulTest, AnyRowsAndPanels_AreCloseToDoubleAndBitIdentical) {
  constexpr int64_t kRows = 83, kCols = 512, kActRows = 23;  // an odd last panel
  const auto data = random_rows(GetParam().dtype, kRows, kCols, 7);
  const motley_weight_desc desc = describe(GetParam().dtype, kRows, kCols, data);
  const PackedWeight w = pack(desc);
  const std::vector<float> x = normals(kActRows * kCols, 3);
  for (const float from : {kNoRests, kAllRests}) {
    const std::vector<float> one = multiply(w, x, kActRows, 1, 2, from),
                             all = multiply(w, x, kActRows, kActRows, 5, from);
    EXPECT_EQ(0, std::memcmp(one.data(), all.data(), one.size() * 4));
    std::vector<float> row(kCols);
    for (int64_t n = 0; n < kRows; ++n) {
      w.read_row(0, n, row.data());
      for (int64_t r = 0; r < kActRows; ++r) {
        double sum = 0, size = 0;
        for (int64_t c = 0; c < kCols; ++c) {
          sum += static_cast<double>(row[static_cast<size_t>(c)]) * x[static_cast<size_t>(r * kCols + c)];
          size += std::pow(row[static_cast<size_t>(c)] * x[static_cast<size_t>(r * kCols + c)], 2);
        }
        EXPECT_NEAR(sum, all[static_cast<size_t>(r * kRows + n)], std::sqrt(size) * tolerance_of(w.matrix().kind, from))
            << r << " " << n << " " << from;
      }
    }
  }
}

TEST_P(MatmulTest, AnyNumberOfRowsAtOnce_IsBitIdentical) {
  constexpr int64_t kRows = 33, kCols = 256, kActRows = 17;
  const auto data = random_rows(GetParam().dtype, kRows, kCols, 13);
  const motley_weight_desc desc = describe(GetParam().dtype, kRows, kCols, data);
  const PackedWeight w = pack(desc);
  const std::vector<float> x = normals(kActRows * kCols, 4);
  for (const float from : {kNoRests, kSomeRests}) {
    const std::vector<float> one = multiply(w, x, kActRows, 1, 0, from);
    for (int64_t at_once = 2; at_once <= kActRows; ++at_once) {
      const std::vector<float> many = multiply(w, x, kActRows, at_once, 1, from);
      EXPECT_EQ(0, std::memcmp(one.data(), many.data(), one.size() * 4)) << at_once << " " << from;
    }
  }
}

// More rows than are taken at a time, columns that end inside of what is taken at a time, panels by one to five.
TEST_P(MatmulTest, ManyRowsAndOddColumns_AreBitIdenticalToOneRow) {
  constexpr int64_t kRows = 80, kActRows = 275;
  const int64_t size = kit::find_format(GetParam().dtype)->block, cols = size == 1 ? 301 : size == 32 ? 352 : 768;
  const auto data = random_rows(GetParam().dtype, kRows, cols, 19);
  motley_weight_desc desc = describe(GetParam().dtype, kRows, cols, data);
  const motley_range columns[] = {{0, 32}, {64, 288}};
  for (const bool cut : {false, true}) {
    if (cut) desc.col_ranges = columns, desc.col_range_count = 2;
    const PackedWeight w = pack(desc);
    const std::vector<float> x = normals(static_cast<size_t>(kActRows * w.cols), 4);
    const std::vector<float> one = multiply(w, x, kActRows, 1, 0, cut ? kSomeRests : kNoRests);
    for (const int64_t panel : {1, 2, 5}) {
      const std::vector<float> many = multiply(w, x, kActRows, kActRows, panel, cut ? kSomeRests : kNoRests);
      EXPECT_EQ(0, std::memcmp(one.data(), many.data(), one.size() * 4)) << panel;
    }
  }
}

// Columns of more than one strip, rows that end inside of a tile.
TEST_P(MatmulTest, ManyColumns_AreBitIdenticalToOneRow) {
  constexpr int64_t kRows = 48, kActRows = 101;
  for (const int64_t cols : {1280, 3328}) {
    const auto data = random_rows(GetParam().dtype, kRows, cols, 23);
    const motley_weight_desc desc = describe(GetParam().dtype, kRows, cols, data);
    const PackedWeight w = pack(desc);
    const std::vector<float> x = normals(static_cast<size_t>(kActRows * cols), 6);
    for (const float from : {kNoRests, kSomeRests, kAllRests}) {
      const std::vector<float> one = multiply(w, x, kActRows, 1, 0, from);
      for (const int64_t at_once : {26, 37, 74}) {
        const std::vector<float> many = multiply(w, x, kActRows, at_once, 1, from);
        EXPECT_EQ(0, std::memcmp(one.data(), many.data(), one.size() * 4)) << cols << " " << from << " " << at_once;
      }
    }
  }
}

// More columns than rows with rests are noted of.
TEST_P(MatmulTest, RestsOfSoManyColumns_AreBitIdenticalToOneRow) {
  constexpr int64_t kRows = 32, kCols = 66048, kActRows = 74;
  if (GetParam().dtype != MOTLEY_Q4_K) return;
  const auto data = random_rows(GetParam().dtype, kRows, kCols, 29);
  const motley_weight_desc desc = describe(GetParam().dtype, kRows, kCols, data);
  const PackedWeight w = pack(desc);
  const std::vector<float> x = normals(static_cast<size_t>(kActRows * kCols), 6);
  const std::vector<float> one = multiply(w, x, kActRows, 1, 0, kSomeRests);
  for (const int64_t at_once : {11, 37, 74}) {
    const std::vector<float> many = multiply(w, x, kActRows, at_once, 0, kSomeRests);
    EXPECT_EQ(0, std::memcmp(one.data(), many.data(), one.size() * 4)) << at_once;
  }
}

// Chunks of rows, the last of a single one. Behind the last row of activations nothing may be read.
TEST_P(MatmulTest, ARowBehindWholeChunks_IsBitIdenticalToOneRow) {
  constexpr int64_t kRows = 16, kCols = 256, kActRows = 1793;
  const auto data = random_rows(GetParam().dtype, kRows, kCols, 37);
  const motley_weight_desc desc = describe(GetParam().dtype, kRows, kCols, data);
  const PackedWeight w = pack(desc);
  if (!is_quantised(w.matrix().kind)) return;
  const std::vector<float> x = normals(static_cast<size_t>(kActRows * kCols), 6);
  for (const float from : {kNoRests, kSomeRests}) {
    const std::vector<float> one = multiply(w, x, kActRows, 1, 0, from),
                             many = multiply(w, x, kActRows, kActRows, 0, from);
    EXPECT_EQ(0, std::memcmp(one.data(), many.data(), one.size() * 4)) << from;
  }
}

// Which blocks have rests, and that a row's product is that of its blocks and their rests.
TEST_P(MatmulTest, Rests_AreAddedWhereTheyAreMarked) {
  constexpr int64_t kRows = 16, kCols = 2560, kBlocks = kCols / kBlockColumns;  // 80: of two words
  const auto data = random_rows(GetParam().dtype, kRows, kCols, 31);
  const motley_weight_desc desc = describe(GetParam().dtype, kRows, kCols, data);
  const PackedWeight w = pack(desc);
  if (!is_quantised(w.matrix().kind)) return;
  std::vector<float> x = normals(kCols, 6);
  for (size_t c = 0; c < kCols; ++c) {
    if (const size_t b = c / kBlockColumns; b == 3 || b == 63 || b == 64 || b == 79) x[c] *= 20;
  }
  std::vector<ActBlock> act(kBlocks), rest(kBlocks);
  set().quantise(x.data(), kCols, act.data(), rest.data(), 4);
  EXPECT_EQ(act[0].rests, uint64_t{1} << 3 | uint64_t{1} << 63);
  EXPECT_EQ(act[64].rests, uint64_t{1} | uint64_t{1} << 15);
  const std::vector<float> y = multiply(w, x, 1, 1, 0, 4);
  std::vector<float> row(kCols);
  for (int64_t n = 0; n < kRows; ++n) {
    w.read_row(0, n, row.data());
    double sum = 0, size = 0;
    for (size_t c = 0; c < kCols; ++c) {
      const ActBlock &a = act[c / 32], &b = rest[c / 32];
      const double value = static_cast<double>(a.d) * a.q[c % 32] + static_cast<double>(b.d) * b.q[c % 32];
      sum += value * row[c], size += std::fabs(value * row[c]);
    }
    EXPECT_NEAR(sum, y[static_cast<size_t>(n)], size * 2e-6) << n;
  }
}

// With activations that int8 holds exactly, nothing but float rounding may be lost.
TEST_P(MatmulTest, WholeNumbers_AreExact) {
  constexpr int64_t kRows = 16, kCols = 512;
  const auto data = random_rows(GetParam().dtype, kRows, kCols, 11);
  motley_weight_desc desc = describe(GetParam().dtype, kRows, kCols, data);
  const motley_range columns[] = {{64, 128}, {192, 448}};  // headers of a part of a block
  for (const bool cut : {false, true}) {
    if (cut) desc.col_ranges = columns, desc.col_range_count = 2;
    const PackedWeight w = pack(desc);
    const auto cols = static_cast<size_t>(w.cols);
    std::vector<float> x(cols);
    for (size_t c = 0; c < cols; ++c)
      x[c] = c % 32 == 5 ? 127.0f : static_cast<float>(static_cast<int>(c * 37 % 255) - 127);
    for (size_t c = 31; c < cols; c += 32) x[c] = -127.0f;
    const std::vector<float> y = multiply(w, x, 1, 1, 0);
    std::vector<float> row(cols);
    for (int64_t n = 0; n < kRows; ++n) {
      w.read_row(0, n, row.data());
      double sum = 0, size = 0;
      for (size_t c = 0; c < cols; ++c)
        sum += static_cast<double>(row[c]) * x[c], size += std::fabs(static_cast<double>(row[c]) * x[c]);
      EXPECT_NEAR(sum, y[static_cast<size_t>(n)], size * 2e-6) << n;
    }
  }
}

// The largest products that a format can make: the integer sums of a block must hold them.
TEST_P(MatmulTest, ExtremeElementsAndActivations_DoNotOverflow) {
  constexpr int64_t kRows = 16, kCols = 256;
  const int32_t dtype = GetParam().dtype;
  for (const int byte : {0x00, 0xff, 0x7f, 0x80, 0x08, 0xf0, 0x0f}) {
    std::vector<uint8_t> data(static_cast<size_t>(kRows * kit::find_format(dtype)->row_bytes(kCols)),
                              static_cast<uint8_t>(byte));
    std::mt19937 random(17);
    put_scales(dtype, random, data);
    const motley_weight_desc desc = describe(dtype, kRows, kCols, data);
    const PackedWeight w = pack(desc);
    std::vector<float> row(kCols);
    for (const float x : {3.0f, -3.0f}) {
      const std::vector<float> y = multiply(w, std::vector<float>(kCols, x), 1, 1, 0);
      for (int64_t n = 0; n < kRows; ++n) {
        w.read_row(0, n, row.data());
        double sum = 0, size = 0;
        for (const float v : row) sum += static_cast<double>(v) * x, size += std::fabs(static_cast<double>(v) * x);
        // An int16 that wraps is wrong by at least 65536 * 2^-10 * 3 / 127 = 1.5.
        EXPECT_NEAR(sum, y[static_cast<size_t>(n)], size * 4e-6 + 0.05) << n << " byte " << byte;
      }
    }
  }
}

// Exponents at the ends of f32: 2^-128 and 2^-127 are subnormal.
TEST_P(MatmulTest, ExponentScales_AreExactToTheEnds) {
  if (GetParam().dtype != MOTLEY_MXFP4) return;
  constexpr int64_t kRows = 16, kCols = 32;
  std::vector<uint8_t> data(kRows * 17, 0);
  for (int e : {0, 1, 2, 3, 127, 128, 230}) {
    for (size_t n = 0; n < kRows; ++n) data[17 * n] = static_cast<uint8_t>(e), data[17 * n + 1] = 0x07;  // 12, then 0
    const motley_weight_desc desc = describe(MOTLEY_MXFP4, kRows, kCols, data);
    const PackedWeight w = pack(desc);
    std::vector<float> x(kCols, 0.0f);
    x[0] = 127;
    for (const float y : multiply(w, x, 1, 1, 0)) EXPECT_EQ(std::ldexp(12.0f * 127, e - 128), y) << e;
  }
}

TEST_P(MatmulTest, ReadRow_IsTheFilesValue) {
  constexpr int64_t kRows = 21, kCols = 512;
  const auto data = random_rows(GetParam().dtype, kRows, kCols, 5);
  motley_weight_desc desc = describe(GetParam().dtype, kRows, kCols, data);
  const motley_range columns[] = {{32, 64}, {96, 320}}, rows[] = {{3, 7}, {9, 21}};
  for (const bool cut : {false, true}) {
    if (cut) desc.col_ranges = columns, desc.col_range_count = 2, desc.row_ranges = rows, desc.row_range_count = 2;
    const kit::WeightSource source(desc);
    const PackedWeight w = pack(desc);
    std::vector<float> mine(static_cast<size_t>(w.cols)), theirs(mine.size());
    for (int64_t n = 0; n < w.rows; ++n) {
      w.read_row(0, n, mine.data());
      source.read_row(0, n, theirs.data());
      EXPECT_EQ(mine, theirs) << n;
    }
  }
}

// Sets of one numeric class: those with AVX-512 multiply quantised weights to the same bits.
TEST_P(MatmulTest, SetsOfAClass_GiveTheSameBits) {
  constexpr int64_t kRows = 48, kCols = 512, kActRows = 70;
  const auto data = random_rows(GetParam().dtype, kRows, kCols, 23);
  const motley_weight_desc desc = describe(GetParam().dtype, kRows, kCols, data);
  const auto of_class = [](const KernelSet& s) {
    const std::string name = s.name;
    return name.rfind("avx512", 0) == 0 || name.rfind("amx", 0) == 0;
  };
  const PackedWeight w = pack(desc);
  if (!of_class(set()) || !is_quantised(w.matrix().kind)) return;
  const std::vector<float> x = normals(kActRows * kCols, 5);
  for (const float from : {kNoRests, kSomeRests, kAllRests}) {
    const std::vector<float> mine = multiply(w, x, kActRows, kActRows, 1, from);
    for (const KernelSet* other : tested_sets()) {
      if (!of_class(*other)) continue;
      const std::vector<float> theirs = multiply_by(*other, w, x, kActRows, kActRows, 1, from);
      EXPECT_EQ(0, std::memcmp(mine.data(), theirs.data(), mine.size() * 4)) << other->name << " " << from;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sets, MatmulTest, testing::ValuesIn(kernel_cases([](const KernelCase&) { return true; })),
                         [](const auto& one) { return name_of(one.param); });

class SetTest : public testing::TestWithParam<const KernelSet*> {
 protected:
  const KernelSet& set() const { return *GetParam(); }
};

TEST_P(SetTest, Quantise_KeepsSumsAndScale) {
  const std::vector<float> x = normals(75, 2);
  std::vector<ActBlock> act(3);
  set().quantise(x.data(), 75, act.data(), nullptr, 0);
  for (size_t c = 0; c < 75; ++c) EXPECT_NEAR(x[c], act[c / 32].d * act[c / 32].q[c % 32], act[c / 32].d * 0.501f);
  for (const ActBlock& a : act) {
    int sums[2] = {0, 0};
    for (int i = 0; i < 32; ++i) sums[i / 16] += a.q[i];
    EXPECT_EQ(a.isum, sums[0] + sums[1]);
    EXPECT_EQ(a.halves[0], sums[0]);
    EXPECT_EQ(a.halves[1], sums[1]);
    EXPECT_EQ(a.sum, a.d * static_cast<float>(a.isum));
  }
  for (size_t i = 75; i < 96; ++i) EXPECT_EQ(0, act[2].q[i - 64]);
  const std::vector<float> none(32, 0.0f);
  set().quantise(none.data(), 32, act.data(), nullptr, 0);
  EXPECT_EQ(0, act[0].d);
  EXPECT_EQ(0, act[0].isum);
}

TEST_P(SetTest, Quantise_RestsAre256ths) {
  std::vector<float> x = normals(96, 4);
  for (size_t c = 0; c < 32; ++c) x[c] = static_cast<float>(c) / 2;  // halves of a step, with 127 of them
  x[31] = 127, std::fill_n(x.begin() + 64, 32, 1e-35f);
  std::vector<ActBlock> act(3), rest(3);
  set().quantise(x.data(), 96, act.data(), rest.data(), 0);
  EXPECT_EQ(act[0].rests, 3u) << "of nothing there is no rest";
  for (size_t b = 0; b < 3; ++b) {
    EXPECT_EQ(rest[b].d, act[b].d / 256);
    EXPECT_EQ(rest[b].sum, rest[b].d * static_cast<float>(rest[b].isum));
    for (size_t i = 0; i < 32; ++i) {
      EXPECT_LE(std::abs(rest[b].q[i]), 127);
      const float both = act[b].d * act[b].q[i] + rest[b].d * rest[b].q[i];
      EXPECT_NEAR(x[32 * b + i], both, act[b].d * 1.01f / 256 + 1e-30f) << b << " " << i;
    }
  }
  EXPECT_EQ(act[2].d, 0) << "less than can be scaled";
}

TEST_P(SetTest, Norm_IsCloseToDouble) {
  for (const size_t n : {7u, 16u, 64u, 100u, 576u}) {
    const std::vector<float> x = normals(n, 1), w = normals(n, 2);
    std::vector<float> out(n);
    set().rmsnorm(x.data(), w.data(), static_cast<int64_t>(n), 1e-5f, out.data());
    double sum = 0;
    for (const float v : x) sum += static_cast<double>(v) * v;
    const double factor = 1 / std::sqrt(sum / static_cast<double>(n) + 1e-5);
    for (size_t i = 0; i < n; ++i) EXPECT_NEAR(x[i] * factor * w[i], out[i], 1e-5 + 1e-6 * std::fabs(out[i]));
  }
}

TEST_P(SetTest, Activations_AreCloseToDouble) {
  std::vector<float> gate, up;
  for (float x = -100; x <= 100; x += 0.37f) gate.push_back(x), up.push_back(1 + x / 50);
  std::vector<float> silu(gate.size()), gelu(gate.size());
  set().silu_mul(gate.data(), up.data(), static_cast<int64_t>(gate.size()), silu.data());
  set().gelu_mul(gate.data(), up.data(), static_cast<int64_t>(gate.size()), gelu.data());
  for (size_t i = 0; i < gate.size(); ++i) {
    const double x = gate[i], s = x / (1 + std::exp(-x)) * up[i];
    const double g = 0.5 * x * (1 + std::tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x))) * up[i];
    EXPECT_NEAR(s, silu[i], 1e-6 + 1e-6 * std::fabs(s)) << x;
    EXPECT_NEAR(g, gelu[i], 2e-6 + 2e-6 * std::fabs(g)) << x;
  }
}

TEST_P(SetTest, GatesAndCaps_AreCloseToDouble) {
  std::vector<float> x, y;
  for (float v = -100; v <= 100; v += 0.37f) x.push_back(v), y.push_back(7 - v / 9);
  const auto n = static_cast<int64_t>(x.size());
  std::vector<float> glu(x.size()), gated(x.size()), scaled(x.size()), capped = x;
  set().clamped_swiglu(x.data(), y.data(), n, 1.702f, 7.0f, glu.data());
  set().sigmoid_mul(y.data(), x.data(), n, gated.data());
  set().scale(x.data(), n, 0.3f, scaled.data());
  set().softcap(capped.data(), n, 30.0f, capped.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const double g = std::min(static_cast<double>(x[i]), 7.0), u = std::clamp(static_cast<double>(y[i]), -7.0, 7.0);
    EXPECT_NEAR(g / (1 + std::exp(-static_cast<double>(1.702f) * g)) * (u + 1), glu[i], 2e-5) << x[i];
    EXPECT_NEAR(y[i] / (1 + std::exp(-static_cast<double>(x[i]))), gated[i], 4e-6) << x[i];
    EXPECT_EQ(x[i] * 0.3f, scaled[i]);
    EXPECT_NEAR(30 * std::tanh(x[i] / 30.0), capped[i], 8e-6) << x[i];
  }
}

TEST_P(SetTest, SumOfExponentials_CountsEachOnce) {
  for (const size_t n : {1u, 15u, 16u, 60u, 128u}) {
    const std::vector<float> x = normals(n, 6);
    double sum = 0;
    for (const float v : x) sum += std::exp(static_cast<double>(v) - 2);
    EXPECT_NEAR(sum, set().sum_exp(x.data(), static_cast<int64_t>(n), 2.0f), 1e-6 * sum) << n;
  }
}

TEST_P(SetTest, Combine_WeighsRowsAndAddsTheResidual) {
  constexpr int64_t kStride = 80, kWidth = 75, kCount = 5;
  const std::vector<float> rows = normals(kStride * kCount, 7), weights = normals(kCount, 8),
                           residual = normals(kWidth, 9);
  std::vector<float> plain(kWidth), both = residual;
  set().combine(rows.data(), kStride, weights.data(), kCount, kWidth, nullptr, plain.data());
  set().combine(rows.data(), kStride, weights.data(), kCount, kWidth, both.data(), both.data());
  for (size_t i = 0; i < kWidth; ++i) {
    double sum = 0;
    for (size_t j = 0; j < kCount; ++j) sum += static_cast<double>(weights[j]) * rows[j * kStride + i];
    EXPECT_NEAR(sum, plain[i], 2e-6);
    EXPECT_EQ(residual[i] + plain[i], both[i]);
  }
}

TEST_P(SetTest, Narrow_RoundsAsKitAndKeepsTheRest) {
  if (set().narrow == nullptr) return;
  std::vector<float> x = normals(69, 12);
  x[0] = 1.0f + 0x1p-8f, x[1] = 1.0f + 3 * 0x1p-8f, x[2] = -0.0f, x[3] = 0x1p-130f, x[4] = NAN;
  std::vector<uint16_t> out(96, 0xffff), rest(96, 0xffff), alone(96, 0xffff);
  set().narrow(x.data(), 69, out.data(), rest.data());
  set().narrow(x.data(), 69, alone.data(), nullptr);
  EXPECT_EQ(out, alone);
  for (size_t i = 0; i < 96; ++i) {
    const uint16_t near = i < 69 ? kit::f32_to_bf16(x[i]) : 0;
    EXPECT_EQ(near, out[i]) << i;
    if (i != 4) {
      EXPECT_EQ(i < 69 ? kit::f32_to_bf16(x[i] - kit::bf16_to_f32(near)) : 0, rest[i]) << i;
    }
  }
}

TEST_P(SetTest, HalfConversion_IsKits) {
  std::vector<float> x = normals(4096, 9);
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::ldexp(x[i], static_cast<int>(i % 60) - 40);
  x[0] = 65519.9f, x[1] = 65520.0f, x[2] = -1e9f, x[3] = 0x1p-25f, x[4] = 0x1.8p-25f, x[5] = -0.0f;
  std::vector<uint16_t> out(x.size());
  set().to_f16(x.data(), static_cast<int64_t>(x.size()) - 3, out.data());
  for (size_t i = 0; i + 3 < x.size(); ++i) EXPECT_EQ(kit::f32_to_f16(x[i]), out[i]) << x[i];
}

// Pairs that fill vectors, and some more.
TEST_P(SetTest, Rope_TurnsPairs) {
  for (const int32_t half : {4, 8, 32, 45}) {
    const int32_t n_rot = 2 * half, dim = n_rot + 12;
    const std::vector<float> x = normals(static_cast<size_t>(dim), 4), table = normals(static_cast<size_t>(n_rot), 5);
    for (const int neox : {0, 1}) {
      std::vector<float> out(x.size());
      set().rope(x.data(), table.data(), dim, n_rot, neox, out.data());
      for (int32_t j = 0; j < half; ++j) {
        const auto a = static_cast<size_t>(neox ? j : 2 * j), b = static_cast<size_t>(neox ? j + half : 2 * j + 1);
        const float cosine = table[static_cast<size_t>(j)], sine = table[static_cast<size_t>(half + j)];
        EXPECT_NEAR(x[a] * cosine - x[b] * sine, out[a], 1e-6f) << half << ": " << j;
        EXPECT_NEAR(x[a] * sine + x[b] * cosine, out[b], 1e-6f) << half << ": " << j;
      }
      for (auto i = static_cast<size_t>(n_rot); i < x.size(); ++i) EXPECT_EQ(x[i], out[i]);
    }
  }
}

// A pool of one sequence whose blocks lie in reverse, and everything a row may see of it.
struct Pool {
  Pool(int32_t dtype_, int32_t context_, int32_t dim_, int32_t block_size_, bool transposed_)
      : dtype(dtype_), context(context_), dim(dim_), block_size(block_size_), transposed(transposed_) {
    const int32_t count = (context + block_size - 1) / block_size;
    const size_t elements = static_cast<size_t>(count) * static_cast<size_t>(block_size * dim);
    k.assign(elements * size(), 0xff);  // NaN where nothing is stored
    v = k;
    k_scale.assign(static_cast<size_t>(count * block_size), NAN);
    v_scale = k_scale;
    for (int32_t b = 0; b < count; ++b) blocks.push_back(count - 1 - b);
    keys = normals(static_cast<size_t>(context * dim), 21);
    values = normals(static_cast<size_t>(context * dim), 22);
    for (int32_t p = 0; p < context; ++p) {
      put(&keys[static_cast<size_t>(p * dim)], p, k, k_scale, transposed);
      put(&values[static_cast<size_t>(p * dim)], p, v, v_scale, false);
    }
  }
  size_t size() const { return static_cast<size_t>(kit::element_bytes(dtype)); }
  // Stores a vector and replaces it by what the pool now holds.
  void put(float* x, int32_t p, std::vector<uint8_t>& to, std::vector<float>& scales, bool turned) {
    std::vector<std::byte> line(static_cast<size_t>(dim) * size());
    const int32_t block = blocks[static_cast<size_t>(p / block_size)], inside = p % block_size;
    float* scale = dtype == MOTLEY_I8 ? &scales[static_cast<size_t>(block * block_size + inside)] : nullptr;
    kit::kv_store(dtype, x, dim, line.data(), scale);
    kit::kv_load(dtype, line.data(), dim, scale ? *scale : 1.0f, x);
    for (int32_t d = 0; d < dim; ++d) {
      const int32_t at = block * block_size * dim + (turned ? d * block_size + inside : inside * dim + d);
      std::memcpy(to.data() + static_cast<size_t>(at) * size(), line.data() + static_cast<size_t>(d) * size(), size());
    }
  }
  KvView view() const {
    KvView kv;
    kv.dtype = dtype;
    kv.k = k.data();
    kv.v = v.data();
    if (dtype == MOTLEY_I8) kv.k_scale = k_scale.data(), kv.v_scale = v_scale.data();
    kv.block_stride = block_size * dim;
    kv.k_position_stride = transposed ? 1 : dim;
    kv.k_dim_stride = transposed ? block_size : 1;
    kv.v_position_stride = dim;
    kv.scale_block_stride = block_size;
    kv.scale_position_stride = 1;
    kv.blocks = blocks.data();
    kv.block_size = block_size;
    kv.context = context;
    return kv;
  }
  int32_t dtype, context, dim, block_size;
  bool transposed;
  std::vector<uint8_t> k, v;
  std::vector<float> k_scale, v_scale, keys, values;
  std::vector<int32_t> blocks;
};

struct AttentionCase {
  int32_t dtype, dim, group, block_size, window;
  float softcap;
  bool transposed;
};
constexpr AttentionCase kAttentionCases[] = {
    {MOTLEY_F16, 64, 3, 16, 0, 0, true},        {MOTLEY_F16, 64, 3, 16, 0, 0, false},
    {MOTLEY_F32, 24, 1, 8, 0, 0, false},        {MOTLEY_BF16, 128, 4, 32, 70, 0, true},
    {MOTLEY_I8, 64, 2, 16, 0, 30, true},        {MOTLEY_F8_E4M3, 64, 3, 16, 0, 0, true},
    {MOTLEY_F8_E4M3, 80, 4, 32, 60, 30, false}, {MOTLEY_I8, 80, 5, 16, 100, 0, false},
};

// Results [rows][group][dim + 1 (log-sum-exp)] of the last `rows` positions, `at_once` rows a call, split by split or
// not.
std::vector<float> attention(const KernelSet& set, const AttentionCase& c, const Pool& pool,
                             const std::vector<float>& q, int32_t rows, int32_t at_once, bool by_split) {
  const int64_t stride = state_floats(c.dim);
  std::vector<float> scratch(static_cast<size_t>(attention_scratch_floats(c.dim)), NAN), out;
  for (int32_t r = 0; r < rows; r += at_once) {
    AttentionArgs g;
    g.kv = pool.view();
    g.rows = std::min(at_once, rows - r);
    g.q_stride = c.group * c.dim;
    g.q = q.data() + r * g.q_stride;
    g.group = c.group;
    g.head_dim = c.dim;
    g.first_position = pool.context - rows + r;
    g.window = c.window;
    g.softcap = c.softcap;
    g.scale = 0.125f;
    g.scratch = scratch.data();
    const int32_t splits = (g.first_position + g.rows - 1) / kAttentionSplit + 1;
    const size_t states = static_cast<size_t>(g.rows * c.group * stride);
    std::vector<float> total(states, NAN), part(states, NAN);
    for (int32_t s = 0; s < (by_split ? splits : 1); ++s) {
      g.split_begin = by_split ? s : 0;
      g.split_end = by_split ? s + 1 : splits;
      g.state = s == 0 ? total.data() : part.data();
      set.attend(g);
      for (int64_t i = 0; s > 0 && i < g.rows * c.group; ++i)
        set.merge(total.data() + i * stride, part.data() + i * stride, c.dim);
    }
    for (int64_t i = 0; i < g.rows * c.group; ++i) {
      std::vector<float> line(static_cast<size_t>(c.dim) + 1);
      line.back() = set.finish(total.data() + i * stride, c.dim, nullptr, line.data());
      out.insert(out.end(), line.begin(), line.end());
    }
  }
  return out;
}

TEST_P(SetTest, Attention_IsCloseToDoubleAndBitIdenticalInAnyPieces) {
  constexpr int32_t kContext = 601, kRows = 75;
  for (const AttentionCase& c : kAttentionCases) {
    const Pool pool(c.dtype, kContext, c.dim, c.block_size, c.transposed);
    const std::vector<float> q = normals(static_cast<size_t>(kRows * c.group * c.dim), 8);
    const std::vector<float> one = attention(set(), c, pool, q, kRows, 1, false);
    const std::vector<float> split = attention(set(), c, pool, q, kRows, 1, true);
    const std::vector<float> many = attention(set(), c, pool, q, kRows, kAttentionQueries / c.group, false);
    ASSERT_EQ(0, std::memcmp(one.data(), split.data(), one.size() * 4));
    ASSERT_EQ(0, std::memcmp(one.data(), many.data(), one.size() * 4));
    for (int32_t i = 0; i < kRows * c.group; ++i) {
      const int32_t at = kContext - kRows + i / c.group, first = c.window ? std::max(0, at - c.window + 1) : 0;
      std::vector<double> scores, sum(static_cast<size_t>(c.dim));
      double top = -1e30, total = 0;
      for (int32_t p = first; p <= at; ++p) {
        double s = 0;
        for (int32_t d = 0; d < c.dim; ++d)
          s += static_cast<double>(q[static_cast<size_t>(i * c.dim + d)]) *
               pool.keys[static_cast<size_t>(p * c.dim + d)];
        s *= 0.125;
        if (c.softcap > 0) s = c.softcap * std::tanh(s / c.softcap);
        scores.push_back(s);
        top = std::max(top, s);
      }
      for (int32_t p = first; p <= at; ++p) {
        const double w = std::exp(scores[static_cast<size_t>(p - first)] - top);
        total += w;
        for (int32_t d = 0; d < c.dim; ++d)
          sum[static_cast<size_t>(d)] += w * pool.values[static_cast<size_t>(p * c.dim + d)];
      }
      const float* got = one.data() + static_cast<size_t>(i) * static_cast<size_t>(c.dim + 1);
      for (int32_t d = 0; d < c.dim; ++d)
        ASSERT_NEAR(sum[static_cast<size_t>(d)] / total, got[d], 2e-5) << i << " " << d;
      ASSERT_NEAR(top + std::log(total), got[c.dim], 2e-5);
    }
  }
}

TEST_P(SetTest, Finish_CountsTheSink) {
  std::vector<float> state(static_cast<size_t>(state_floats(16)), 2.0f), out(16);
  state[16] = 1.0f, state[17] = 3.0f;
  const float sink = 2.0f;
  const float lse = set().finish(state.data(), 16, &sink, out.data());
  const double total = 3 * std::exp(-1.0) + 1;
  EXPECT_NEAR(2 * std::exp(-1.0) / total, out[3], 1e-6);
  EXPECT_NEAR(2 + std::log(total), lse, 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Sets, SetTest, testing::ValuesIn(tested_sets()), [](const auto& at) {
  std::string name = at.param->name;
  if (const size_t dash = name.find('-'); dash != std::string::npos) name[dash] = '_';
  return name;
});

}  // namespace
}  // namespace motley::cpu
