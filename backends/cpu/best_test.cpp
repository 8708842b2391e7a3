// The head where only the best results count: by every set, in every quantised format, the best has the bits that it
// has when all results count. SPDX-License-Identifier: Apache-2.0
#include "cpu/best.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/ops.hpp"
#include "cpu/test_data.hpp"
#include "kit/program.hpp"

namespace motley::cpu {
namespace {

constexpr int64_t kVocab = 1000, kCols = 512;  // the last group of panels has one, and that not all rows
constexpr size_t kCopies = 12;                 // of a row of the matrix, nearly
constexpr size_t copy_at(size_t i) { return i * 79 + 5; }

motley_sample_row greedy() {
  motley_sample_row row{};
  row.top_p = row.repetition_penalty = 1;
  row.top_logprobs = MOTLEY_NONE;
  return row;
}

// By the sampling contract: of equals the lower id, and what is no number is never the best.
size_t best_of(const float* x) {
  size_t best = 0;
  for (size_t i = 0; i < kVocab; ++i) {
    if (x[i] > x[best] || std::isnan(x[best])) best = i;
  }
  return best;
}

class BestTest : public testing::TestWithParam<KernelCase> {
 protected:
  static size_t row_bytes() { return static_cast<size_t>(kit::find_format(GetParam().dtype)->row_bytes(kCols)); }
  static size_t block_bytes() { return static_cast<size_t>(kit::find_format(GetParam().dtype)->bytes); }

  static size_t columns_of_block() { return static_cast<size_t>(kit::find_format(GetParam().dtype)->block); }

  // Copies of the largest row all over the matrix, in equal pairs. Pairs differ in a byte for every 32 columns.
  void copy_rows() {
    const PackedWeight w = pack();
    const auto square = [&](int64_t r) { return w.squares(r / kPanelRows).values[r % kPanelRows]; };
    int64_t largest = 0;
    for (int64_t r = 0; r < kVocab; ++r) largest = square(r) > square(largest) ? r : largest;
    const std::vector<uint8_t> copied(weights_.begin() + largest * static_cast<int64_t>(row_bytes()),
                                      weights_.begin() + (largest + 1) * static_cast<int64_t>(row_bytes()));
    std::mt19937 random(3);
    for (size_t i = 0; i < kCopies; ++i) {
      uint8_t* to = weights_.data() + copy_at(i) * row_bytes();
      std::memcpy(to, i % 2 == 0 ? copied.data() : weights_.data() + copy_at(i - 1) * row_bytes(), row_bytes());
      for (size_t at = block_bytes() / 2; i % 2 == 0 && at < row_bytes(); at += block_bytes()) {
        for (size_t j = 0; j < columns_of_block() / kBlockColumns; ++j) to[at + j] = static_cast<uint8_t>(random());
      }
    }
  }
  PackedWeight pack() {
    return {kit::WeightSource(describe(GetParam().dtype, kVocab, kCols, weights_)), allocator_, 2, true};
  }
  // Inputs whose best results are those of the copies. One number of each block is much larger than those by which the
  // copies differ, so that these are rounded most.
  static std::vector<float> towards(const PackedWeight& w, size_t rows) {
    std::vector<float> first(kCols), row(kCols);
    std::vector<bool> differs(kCols, false);
    w.read_row(0, copy_at(0), first.data());
    for (size_t i = 1; i < kCopies; ++i) {
      w.read_row(0, static_cast<int64_t>(copy_at(i)), row.data());
      for (size_t c = 0; c < kCols; ++c) differs[c] = differs[c] || row[c] != first[c];
    }
    std::vector<float> x = normals(rows * kCols, 6);
    for (size_t at = 0; at < x.size(); at += kBlockColumns) {
      const size_t begin = at % kCols;
      size_t large = begin;
      const auto size = [&](size_t c) { return differs[c] ? -1 : std::fabs(first[c]); };
      for (size_t c = begin; c < begin + kBlockColumns; ++c) large = size(c) > size(large) ? c : large;
      x[at + large - begin] = std::copysign(100.0f, first[large]);
    }
    return x;
  }
  std::vector<float> logits(const PackedWeight& w, std::vector<float> x, const std::vector<motley_sample_row>& samples,
                            uint32_t threads = 1) {
    const auto rows = static_cast<int64_t>(x.size()) / kCols;
    kit::CheckedSegment segment;
    kit::Plan& plan = segment.plan;
    plan.cut = MOTLEY_CUT_HEAD, plan.rows_max = rows, plan.threads = threads, plan.weights = {&w};
    for (const int64_t width : {kCols, kVocab}) {
      plan.add_value(MOTLEY_F32, MOTLEY_DIM_HEAD_ROWS, width, width * 4);
      plan.values.back().bound = true;
    }
    kit::PlanOp& op = plan.ops.emplace_back();
    op.kind = MOTLEY_OP_MATMUL, op.in = {0}, op.out = {1}, op.weight = {0, MOTLEY_NONE};
    fuse(plan, *GetParam().set, false);
    const kit::Program program(std::move(segment));
    motley_batch batch{};
    batch.rows = batch.head_row_count = static_cast<uint32_t>(rows);
    batch.samples = samples.empty() ? nullptr : samples.data();
    std::vector<float> y(static_cast<size_t>(rows * kVocab), 7e9f);
    kit::RunArgs args;
    args.batch = &batch;
    args.bound = {reinterpret_cast<std::byte*>(x.data()), reinterpret_cast<std::byte*>(y.data())};
    const SlabAllocator::Piece work = allocator_.allocate(program.workspace_bytes(rows, rows, 0));
    kit::Team team(threads, {});
    program.run(team, args, reinterpret_cast<std::byte*>(work.data));
    return y;
  }
  // As if there were no rests.
  std::vector<float> coarse(const PackedWeight& w, const std::vector<float>& x) {
    constexpr RowForms kForms{.quantised = true};
    const auto rows = static_cast<int64_t>(x.size()) / kCols;
    const SlabAllocator::Piece room = allocator_.allocate(static_cast<uint64_t>(rows * kForms.row_bytes(kCols)));
    auto* const at = reinterpret_cast<std::byte*>(room.data);
    for (int64_t r = 0; r < rows; ++r) kForms.prepare(*GetParam().set, x.data() + r * kCols, kCols, at, rows, r);
    std::vector<float> y(static_cast<size_t>(rows * kVocab));
    MatmulArgs g;
    g.w = w.matrix();
    kForms.point(at, kCols, rows, 0, &g);
    g.rows = rows, g.y = y.data(), g.y_stride = kVocab, g.panel_end = g.w.panels();
    GetParam().set->matmul(g);
    return y;
  }
  // Rows of all-wanted logits against those of which only the best is.
  static void expect_same_best(const std::vector<float>& all, const std::vector<float>& best) {
    for (size_t r = 0; r < all.size() / kVocab; ++r) {
      const float *x = all.data() + r * kVocab, *y = best.data() + r * kVocab;
      EXPECT_EQ(best_of(x), best_of(y)) << r;
      EXPECT_EQ(0, std::memcmp(x + best_of(x), y + best_of(x), 4)) << r;
    }
  }

  std::vector<uint8_t> weights_ = random_rows(GetParam().dtype, kVocab, kCols, 5);

 private:
  SlabAllocator allocator_;
};

TEST_P(BestTest, Squares_AreThoseOfTheRows) {
  const PackedWeight w = pack();
  std::vector<float> row(kCols);
  for (int64_t r = 0; r < kVocab; ++r) {
    w.read_row(0, r, row.data());
    double square = 0;
    for (const float x : row) square += static_cast<double>(x) * x;
    const LaneSquares squares = w.squares(r / kPanelRows);
    EXPECT_NEAR(squares.values[r % kPanelRows], square, 1e-6 * squares.terms[r % kPanelRows]) << r;
    EXPECT_GE(squares.terms[r % kPanelRows], square * (1 - 1e-6)) << r;
  }
}

TEST_P(BestTest, NearlyEqualResults_LeaveTheSameBest) {
  copy_rows();
  const PackedWeight w = pack();
  const std::vector<float> x = towards(w, 41);
  const std::vector<float> all = logits(w, x, {}), near = coarse(w, x);
  size_t differ = 0;  // rows whose best result is not that without rests
  for (size_t r = 0; r < 41; ++r) differ += best_of(near.data() + r * kVocab) != best_of(all.data() + r * kVocab);
  EXPECT_GT(differ, 0u);
  const std::vector<float> best = logits(w, x, std::vector(41, greedy()));
  expect_same_best(all, best);
  EXPECT_NE(all, best);  // much was left out
}

TEST_P(BestTest, RandomInputs_LeaveTheSameBest) {
  const PackedWeight w = pack();
  const std::vector<float> x = normals(64 * kCols, 9);
  const std::vector<float> all = logits(w, x, {}), best = logits(w, x, std::vector(64, greedy()));
  expect_same_best(all, best);
  EXPECT_NE(all, best);
}

// A row has the same bits whatever runs with it, on whatever threads.
TEST_P(BestTest, ThreadsAndOtherRows_ChangeNoBit) {
  copy_rows();
  const PackedWeight w = pack();
  const std::vector<float> x = towards(w, 9);
  const std::vector<float> all = logits(w, x, std::vector(9, greedy()));
  for (const uint32_t threads : {2u, 3u, 6u}) EXPECT_EQ(all, logits(w, x, std::vector(9, greedy()), threads));
  for (int64_t r = 0; r < 9; ++r) {
    const std::vector<float> alone = logits(w, {x.begin() + r * kCols, x.begin() + (r + 1) * kCols}, {greedy()});
    EXPECT_EQ(0, std::memcmp(alone.data(), all.data() + r * kVocab, kVocab * 4)) << r;
  }
}

// Whoever sees more of the logits than the best gets all of them.
TEST_P(BestTest, RowsThatAskForMore_HaveAllTheirResults) {
  copy_rows();
  const PackedWeight w = pack();
  std::vector<motley_sample_row> samples(15, greedy());
  samples[1].temperature = 1;
  samples[3].top_logprobs = 0;
  samples[4].biases_end = 1;
  samples[7].presence_penalty = 0.5f;
  samples[8].frequency_penalty = 0.5f;
  samples[11].repetition_penalty = 1.1f;
  const std::vector<float> x = towards(w, 15), all = logits(w, x, {}), some = logits(w, x, samples, 2);
  expect_same_best(all, some);
  for (const size_t r : {1, 3, 4, 7, 8, 11}) {
    EXPECT_EQ(0, std::memcmp(all.data() + r * kVocab, some.data() + r * kVocab, kVocab * 4)) << r;
  }
}

TEST_P(BestTest, NumbersThatAreNone_LeaveTheSameBest) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  copy_rows();
  const PackedWeight w = pack();
  std::vector<float> x = towards(w, 8);
  x[3] = kInf, x[kCols + 40] = -kInf, x[2 * kCols + 500] = NAN;
  std::fill_n(x.begin() + 4 * kCols, kCols, 0.0f);   // all results are equal
  std::fill_n(x.begin() + 5 * kCols, kCols, 2e38f);  // sums overflow
  std::fill_n(x.begin() + 6 * kCols, kCols, 1e-42f);
  expect_same_best(logits(w, x, {}), logits(w, x, std::vector(8, greedy())));
}

bool is_quantised_case(const KernelCase& c) { return kit::find_format(c.dtype)->block > 1; }
INSTANTIATE_TEST_SUITE_P(Sets, BestTest, testing::ValuesIn(kernel_cases(is_quantised_case)),
                         [](const auto& one) { return name_of(one.param); });

}  // namespace
}  // namespace motley::cpu
