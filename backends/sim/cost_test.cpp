// The time model and the order of things.
#include "sim/cost.hpp"

#include <gtest/gtest.h>

#include "sim/timeline.hpp"

namespace motley::sim {
namespace {

constexpr int64_t kR = MOTLEY_DIM_ROWS;

// 1 GFLOP/s, 1 GB/s: a flop or a byte lasts 1 ns at the full rate.
Rates unit_rates() {
  Rates rates;
  rates.gflops.fill(1);
  rates.bandwidth_gb_s = 1;
  rates.link_gb_s = 1;
  return rates;
}

kit::Plan plan_of(int32_t kind, std::vector<kit::PlanValue> in, std::vector<kit::PlanValue> out, size_t weights = 0) {
  kit::Plan plan;
  kit::PlanOp op;
  op.kind = kind;
  for (auto* side : {&in, &out})
    for (kit::PlanValue& value : *side) {
      (side == &in ? op.in : op.out).push_back(static_cast<int32_t>(plan.values.size()));
      plan.values.push_back(value);
    }
  for (size_t i = 0; i < weights; ++i) op.weight.push_back(static_cast<int32_t>(i));
  plan.ops.push_back(op);
  return plan;
}

kit::PlanValue value(int64_t rows, int64_t width, int64_t last = 0) {
  kit::PlanValue v;
  v.rows = rows, v.width = width, v.row_bytes = width * 4, v.last = last ? last : width;
  return v;
}

motley_batch rows_only(uint32_t rows) {
  motley_batch batch{};
  batch.rows = rows;
  return batch;
}

double ns(const ProgramCost& cost, const Rates& rates, const motley_batch& batch, double share = 1) {
  return cost.seconds(rates, batch, {2, 4}, share) * 1e9;
}

TEST(ProgramCost, Matmul_IsTheLargerOfArithmeticAndBytes) {
  const ProgramCost cost(plan_of(MOTLEY_OP_MATMUL, {value(kR, 100)}, {value(kR, 50)}, 1), {{20000, MOTLEY_F32, 1, 1}});
  Rates rates = unit_rates();
  // One row: 10,000 flops; 20,000 bytes of weight and 600 of activations.
  EXPECT_DOUBLE_EQ(ns(cost, rates, rows_only(1)), 20600);
  EXPECT_DOUBLE_EQ(ns(cost, rates, rows_only(10)), 100000);
  EXPECT_DOUBLE_EQ(ns(cost, rates, rows_only(1), 0.5), 41200) << "half of the bandwidth";
  rates.half_rows.fill(10);
  EXPECT_DOUBLE_EQ(ns(cost, rates, rows_only(10)), 200000) << "half of the rate at half_rows";
  rates.dispatch_us = 3;
  EXPECT_DOUBLE_EQ(ns(cost, rates, rows_only(10)), 203000);
}

TEST(ProgramCost, WeightFormats_HaveTheirOwnRates) {
  Rates rates = unit_rates();
  rates.gflops[kWorkQ8] = 4;
  const auto plan = plan_of(MOTLEY_OP_MATMUL, {value(kR, 100)}, {value(kR, 50)}, 1);
  EXPECT_DOUBLE_EQ(ns(ProgramCost(plan, {{1, MOTLEY_Q8_0, 1, 1}}), rates, rows_only(8)), 20000);
  EXPECT_DOUBLE_EQ(ns(ProgramCost(plan, {{1, MOTLEY_Q4_K, 1, 1}}), rates, rows_only(8)), 80000);
}

TEST(ProgramCost, HeadRows_CountForTheHead) {
  const ProgramCost cost(
      plan_of(MOTLEY_OP_MATMUL, {value(MOTLEY_DIM_HEAD_ROWS, 100)}, {value(MOTLEY_DIM_HEAD_ROWS, 50)}, 1),
      {{1, MOTLEY_F32, 1, 1}});
  motley_batch batch = rows_only(64);
  EXPECT_DOUBLE_EQ(ns(cost, unit_rates(), batch), 0) << "no row asks for logits";
  batch.head_row_count = 2;
  EXPECT_DOUBLE_EQ(ns(cost, unit_rates(), batch), 20000);
}

TEST(ProgramCost, Attention_ReadsWhatTheBatchSees) {
  kit::Plan plan = plan_of(MOTLEY_OP_PAGED_ATTENTION, {value(kR, 8)}, {value(kR, 8)});
  plan.ops[0].attr.attention = {0, 2, 1, 4, 1, 0, 0};
  // A chunk of 3 rows at positions 4..6, and one row at 9.
  const int32_t positions[] = {4, 5, 6, 9}, context[] = {7, 10};
  const uint32_t begins[] = {0, 3, 4};
  motley_batch batch = rows_only(4);
  batch.positions = positions, batch.seqs = 2, batch.seq_row_begin = begins, batch.seq_context = context;
  Rates rates = unit_rates();
  rates.bandwidth_gb_s = 1e6;
  // 4 * heads * head_dim flops for each of (5 + 6 + 7) + 10 pairs.
  EXPECT_DOUBLE_EQ(ns(ProgramCost(plan, {}), rates, batch), 32 * 28);
  rates = unit_rates();
  rates.gflops.fill(1e6);
  // 17 positions of k and v, 4 elements of 2 bytes each.
  EXPECT_DOUBLE_EQ(ns(ProgramCost(plan, {}), rates, batch), 17 * 16);
  plan.ops[0].attr.attention.window = 2;
  EXPECT_DOUBLE_EQ(ns(ProgramCost(plan, {}), rates, batch), (4 + 2) * 16) << "positions 3..6, and 8 and 9";
}

TEST(ProgramCost, Attention_DoesNotReadBlocksThatLieElsewhere) {
  kit::Plan plan = plan_of(MOTLEY_OP_PAGED_ATTENTION, {value(kR, 8)}, {value(kR, 8)});
  plan.ops[0].attr.attention = {0, 2, 1, 4, 1, 0, 0};
  // Rows at positions 8 and 9 of a sequence without its positions 4..7, and one of a sequence with all of its four.
  const int32_t positions[] = {8, 9, 3}, context[] = {10, 4}, blocks[] = {0, MOTLEY_NONE, 1, 2};
  const uint32_t begins[] = {0, 2, 3}, block_begins[] = {0, 3, 4};
  motley_batch batch = rows_only(3);
  batch.positions = positions, batch.seqs = 2, batch.seq_row_begin = begins, batch.seq_context = context;
  batch.blocks = blocks, batch.seq_block_begin = block_begins;
  Rates rates = unit_rates();
  rates.bandwidth_gb_s = 1e6;
  EXPECT_DOUBLE_EQ(ns(ProgramCost(plan, {}), rates, batch), 32 * (5 + 6 + 4));
  rates = unit_rates();
  rates.gflops.fill(1e6);
  EXPECT_DOUBLE_EQ(ns(ProgramCost(plan, {}), rates, batch), (6 + 4) * 16);
  plan.ops[0].attr.attention.window = 3;
  EXPECT_DOUBLE_EQ(ns(ProgramCost(plan, {}), rates, batch), (2 + 3) * 16);
}

TEST(ProgramCost, Experts_OnlyTheTouchedOnesAreRead) {
  const ProgramCost cost(plan_of(MOTLEY_OP_GROUPED_MATMUL, {value(kR, 10), value(kR, 2)}, {value(kR, 2 * 5, 5)}, 1),
                         {{8000, MOTLEY_F32, 8, 1}});
  Rates rates = unit_rates();
  rates.gflops.fill(1e6);
  const double activations = (10 + 2 + 10) * 4;  // of a row
  EXPECT_DOUBLE_EQ(ns(cost, rates, rows_only(1)), 2 * 1000 + activations);
  EXPECT_DOUBLE_EQ(ns(cost, rates, rows_only(100)), 8 * 1000 + 100 * activations);
  rates = unit_rates();
  rates.bandwidth_gb_s = 1e6;
  EXPECT_DOUBLE_EQ(ns(cost, rates, rows_only(100)), 100 * 2 * 2 * 10 * 5);
}

TEST(ProgramCost, Copies_AreLatencyAndBytes) {
  Rates rates = unit_rates();
  rates.link_latency_us = 2;
  EXPECT_DOUBLE_EQ(copy_seconds(rates, 500) * 1e9, 2500);
}

TEST(Timeline, Gaps_AreUsed) {
  Timeline engine;
  EXPECT_EQ(engine.take(100, 50), 100);  // waits for a fence
  EXPECT_EQ(engine.take(0, 80), 0);      // fits before it
  EXPECT_EQ(engine.take(0, 30), 150);    // does not fit between 80 and 100
  EXPECT_EQ(engine.take(0, 20), 80);
  EXPECT_EQ(engine.take(160, 10), 180);
  engine.extend(500);
  EXPECT_EQ(engine.take(200, 1), 500);
}

TEST(Timeline, Parts_FillGapsAndGoOnBehind) {
  Timeline engine;
  engine.take(100, 50);
  engine.take(200, 50);
  const auto expect = [&](int64_t earliest_ns, int64_t duration_ns, int64_t begin_ns, int64_t end_ns) {
    const Timeline::Busy taken = engine.take_parts(earliest_ns, duration_ns);
    EXPECT_EQ(taken.begin_ns, begin_ns);
    EXPECT_EQ(taken.end_ns, end_ns);
  };
  expect(120, 0, 120, 120);
  expect(20, 30, 20, 50);     // in one piece
  expect(120, 70, 150, 270);  // behind the first, beside the second
  expect(0, 60, 0, 90);       // around what lies at 20
  expect(0, 15, 90, 275);
  expect(0, 1, 275, 276);
}

AccessLog::Work touching(uint64_t queue, uint64_t order, Access access, std::shared_ptr<const Event> event = nullptr,
                         int64_t begin_ns = 0, int64_t end_ns = 0) {
  return {queue, order, {access}, std::move(event), begin_ns, end_ns};
}

TEST(AccessLog, WallTime_EarlierUnfinishedWorkConflicts) {
  AccessLog log;
  log.add(touching(1, 5, {7, 0, 100, true}));
  EXPECT_TRUE(log.conflict(touching(2, 6, {7, 50, 60, false}), false));
  EXPECT_FALSE(log.conflict(touching(1, 6, {7, 50, 60, false}), false)) << "the same queue is in order";
  EXPECT_FALSE(log.conflict(touching(2, 4, {7, 50, 60, false}), false)) << "the later one is to blame";
  EXPECT_FALSE(log.conflict(touching(2, 6, {7, 100, 200, true}), false)) << "other bytes";
  EXPECT_FALSE(log.conflict(touching(2, 6, {8, 0, 100, true}), false)) << "another buffer";
  log.remove(5);
  EXPECT_FALSE(log.conflict(touching(2, 6, {7, 50, 60, true}), false));
  log.add(touching(1, 7, {7, 0, 100, false}));
  EXPECT_FALSE(log.conflict(touching(2, 8, {7, 0, 100, false}), false)) << "two reads";
  EXPECT_TRUE(log.conflict(touching(2, 8, {7, 0, 100, true}), false)) << "a write under a read";
}

TEST(AccessLog, VirtualTime_EndedOrSeenWorkIsInOrder) {
  AccessLog log;
  auto event = std::make_shared<Event>();
  event->progress = std::make_shared<Progress>();
  event->sequence = 3;
  log.add(touching(1, 1, {7, 0, 100, true}, event, 10, 20));
  EXPECT_TRUE(log.conflict(touching(2, 2, {7, 0, 8, false}, event, 19, 30), true));
  EXPECT_FALSE(log.conflict(touching(2, 2, {7, 0, 8, false}, event, 20, 30), true)) << "it has ended by then";
  event->progress->see(3);
  EXPECT_FALSE(log.conflict(touching(2, 2, {7, 0, 8, false}, event, 19, 30), true)) << "the host waited for it";
}

}  // namespace
}  // namespace motley::sim
