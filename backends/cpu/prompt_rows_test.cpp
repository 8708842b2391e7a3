// Products with tiled rows, of every set that takes them, against plain loops in double.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "cpu/kernels.hpp"
#include "cpu/ops.hpp"
#include "cpu/test_data.hpp"
#include "cpu/weight.hpp"
#include "kit/program.hpp"

namespace motley::cpu {
namespace {

bool takes_tiled(const KernelCase& c) {
  return c.set->takes_tiled && (kit::find_format(c.dtype)->block > 1 || c.dtype == MOTLEY_BF16);
}
// One format that is multiplied as it is and one that is unpacked are enough for how steps are shared.
bool is_shared(const KernelCase& c) { return takes_tiled(c) && (c.dtype == MOTLEY_BF16 || c.dtype == MOTLEY_Q8_0); }
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

class SharedStepTest : public PromptRowsTest {
 protected:
  static constexpr int64_t kStepRows = 301, kCols = 64, kOutputs = 650, kGenerated = 2;
  static constexpr float kMissing = 7e9f;

  // y of one step: gate and up with their activation, or a product with its residual.
  std::vector<float> run(uint32_t threads, bool gated) {
    const motley_weight_desc desc = describe(GetParam().dtype, kOutputs, kCols, weights_);
    const PackedWeight w = pack(desc), other = pack(desc);
    auto data = std::make_shared<MatmulData>();
    data->set = &set();
    data->rows.assign(gated ? 2 : 1, RowsOf{0, kOutputs});
    data->forms.add(w.matrix().kind);
    data->prompt.tiled = true;
    if (gated) data->after.kind = Activation::Kind::kSilu;
    const int64_t row_bytes = std::max(data->forms.row_bytes(kCols), data->prompt.row_bytes(kCols));
    const int64_t scratch = (matmul_scratch_bytes(kStepRows, kCols, *data) + 63) / 64 * 64;
    std::vector<float> y(kStepRows * kOutputs, kMissing);
    const SlabAllocator::Piece prepared = room_.allocate(static_cast<uint64_t>(kStepRows * row_bytes));
    const SlabAllocator::Piece own = room_.allocate(static_cast<uint64_t>(scratch * threads));
    kit::PlanOp op;
    op.data = data;
    const kit::Tensor in[] = {tensor(x_.data(), kCols), gated ? kit::Tensor() : tensor(residual_.data(), kOutputs)};
    const kit::Tensor out[] = {tensor(prepared.data, row_bytes), {}, tensor(y.data(), kOutputs)};
    const kit::Weight* const all[] = {&w, nullptr, &other, nullptr, nullptr};
    std::vector<uint8_t> generated(kStepRows, 0);
    for (size_t i = 0; i < kGenerated; ++i) generated[100 * i + 5] = 1;
    motley_batch batch{};
    batch.generated = generated.data();
    kit::Team team(threads, {});
    kit::RunState state(team, 1);
    kit::OpCall call;
    call.op = &op, call.in = in, call.out = out, call.weight = std::span(all).subspan(gated ? 0 : 2);
    call.batch = &batch, call.threads = threads, call.run = &state, call.taken = state.taken(0);
    call.scratch = reinterpret_cast<std::byte*>(own.data);
    struct Context {
      kit::OpCall call;
      int64_t scratch;
    } context{call, scratch};
    team.run(
        [](void* opaque, uint32_t thread) {
          const auto& c = *static_cast<Context*>(opaque);
          kit::OpCall mine = c.call;
          mine.thread = thread;
          mine.scratch += c.scratch * thread;
          run_matmuls(mine);
        },
        &context);
    return y;
  }

 private:
  static kit::Tensor tensor(void* data, int64_t width) {
    kit::Tensor t;
    t.data = data, t.rows = kStepRows, t.width = width, t.row_bytes = width * 4;
    return t;
  }

  SlabAllocator room_;
  std::vector<uint8_t> weights_ = random_rows(GetParam().dtype, kOutputs, kCols, 5);
  std::vector<float> x_ = normals(kStepRows * kCols, 6), residual_ = normals(kStepRows * kOutputs, 7);
};

// Threads that take parts, of the last panels parts of their rows, leave nothing out and change no bit.
TEST_P(SharedStepTest, ManyThreads_HaveTheBitsOfOne) {
  for (const bool gated : {false, true}) {
    const std::vector<float> one = run(1, gated);
    EXPECT_EQ(0, std::count(one.begin(), one.end(), kMissing));
    for (const uint32_t threads : {5u, 6u}) EXPECT_EQ(one, run(threads, gated)) << threads << (gated ? " gated" : "");
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PromptRowsTest);
INSTANTIATE_TEST_SUITE_P(Sets, PromptRowsTest, testing::ValuesIn(kernel_cases(takes_tiled)),
                         [](const auto& one) { return name_of(one.param); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(SharedStepTest);
INSTANTIATE_TEST_SUITE_P(Sets, SharedStepTest, testing::ValuesIn(kernel_cases(is_shared)),
                         [](const auto& one) { return name_of(one.param); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Bf16PromptRowsTest);
INSTANTIATE_TEST_SUITE_P(Sets, Bf16PromptRowsTest, testing::ValuesIn(kernel_cases(takes_tiled_bf16)),
                         [](const auto& one) { return name_of(one.param); });

}  // namespace
}  // namespace motley::cpu
