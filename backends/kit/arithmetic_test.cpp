#include "kit/arithmetic.hpp"

#include <gtest/gtest.h>

namespace motley::kit {
namespace {

PlanValue value(int64_t rows, int64_t width, int64_t last) {
  PlanValue v;
  v.rows = rows, v.width = width, v.row_bytes = width * 4, v.last = last;
  return v;
}

// Sequence 0: rows at positions 4, 5, 6. Sequence 1: a row at 9.
struct Batch {
  int32_t positions[4] = {4, 5, 6, 9}, context[2] = {7, 10};
  uint32_t begins[3] = {0, 3, 4}, block_begins[3] = {0, 2, 5};
  int32_t blocks[5] = {0, 1, 2, 3, 4};
  motley_batch view() const {
    motley_batch batch{};
    batch.rows = 4, batch.positions = positions, batch.seqs = 2, batch.head_row_count = 2;
    batch.seq_row_begin = begins, batch.seq_context = context;
    batch.seq_block_begin = block_begins, batch.blocks = blocks;
    return batch;
  }
};

TEST(Attended, AWindow_BoundsWhatIsSeen) {
  const Batch batch;
  EXPECT_EQ(attended(batch.view(), 0, 4).pairs, 5 + 6 + 7 + 10);
  EXPECT_EQ(attended(batch.view(), 0, 4).positions, 7 + 10);
  EXPECT_EQ(attended(batch.view(), 6, 4).pairs, 5 + 6 + 6 + 6);
  EXPECT_EQ(attended(batch.view(), 2, 4).positions, 4 + 2) << "positions 3 to 6, and 8 and 9";
}

TEST(Attended, BlocksElsewhere_AreNotSeen) {
  Batch batch;
  batch.blocks[0] = MOTLEY_NONE;  // positions 0 to 3
  batch.blocks[4] = MOTLEY_NONE;  // 8 to 11
  EXPECT_EQ(attended(batch.view(), 0, 4).pairs, 1 + 2 + 3 + 8);
  EXPECT_EQ(attended(batch.view(), 0, 4).positions, 3 + 8);
  EXPECT_EQ(attended(batch.view(), 3, 4).pairs, 1 + 2 + 3 + 1) << "positions 4 to 6, and 7 of 7 to 9";
}

// A layer with a product of each kind and two attentions.
TEST(Arithmetic, Products_AndAttention_AreCounted) {
  Plan plan;
  plan.values = {value(MOTLEY_DIM_ROWS, 6, 6),      value(MOTLEY_DIM_ROWS, 5, 5), value(MOTLEY_DIM_HEAD_ROWS, 6, 6),
                 value(MOTLEY_DIM_HEAD_ROWS, 7, 7), value(MOTLEY_DIM_ROWS, 2, 2), value(MOTLEY_DIM_ROWS, 2 * 3, 3)};
  const auto op = [](int32_t kind, std::vector<int32_t> in, int32_t out, std::vector<int32_t> weight = {}) {
    PlanOp made;
    made.kind = kind, made.in = std::move(in), made.out = {out}, made.weight = std::move(weight);
    return made;
  };
  plan.ops = {op(MOTLEY_OP_RMSNORM, {0}, 0, {0}), op(MOTLEY_OP_MATMUL, {0}, 1, {1})};
  const Batch batch;
  EXPECT_EQ(Arithmetic(plan, std::vector<double>{1, 1}).of(batch.view(), 4), 4 * 2 * 6 * 5);
  plan.ops.push_back(op(MOTLEY_OP_MATMUL, {2}, 3, {1}));
  EXPECT_EQ(Arithmetic(plan, std::vector<double>{1, 1}).of(batch.view(), 4), 240 + 2 * 2 * 6 * 7);
  plan.ops = {op(MOTLEY_OP_GROUPED_MATMUL, {0, 4}, 5, {1})};  // of two chosen experts, half are here
  EXPECT_EQ(Arithmetic(plan, std::vector<double>{1, 0.5}).of(batch.view(), 4), 4 * 2 * 6 * 3 * 2 / 2);
  plan.ops = {op(MOTLEY_OP_PAGED_ATTENTION, {0}, 0), op(MOTLEY_OP_PAGED_ATTENTION, {0}, 0)};
  plan.ops[0].attr.attention = {0, 3, 1, 2, 1, 0, 0};  // 3 heads of 2
  plan.ops[1].attr.attention = {1, 3, 1, 2, 1, 6, 0};
  EXPECT_EQ(Arithmetic(plan, {}).of(batch.view(), 4), 4 * 3 * 2 * (28 + 23));
}

}  // namespace
}  // namespace motley::kit
