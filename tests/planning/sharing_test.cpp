// What devices of unlike speeds do together, on virtual time.
#include "planning/sharing.hpp"

#include <gtest/gtest.h>

#include <cstdio>

#include "model/random_model.hpp"
#include "planner/prediction.hpp"
#include "planning/placements.hpp"

namespace motley::testing {
namespace {

class Sharing : public ::testing::Test {
 protected:
  Sharing() : random_(sharing_model()), shape_(*shape_of(random_.model())) {}
  const Model& model() const { return random_.model(); }

  const RandomModel random_;
  const ModelShape shape_;
};

TEST_F(Sharing, SameSeed_TakesTheSameNanoseconds) {
  const auto serve = [&](uint64_t seed) {
    SimDevice other = sharing_device(0.5);
    other.jitter = 0.1;
    other.seed = seed;
    const VirtualMachine machine({sharing_device(1), other}, sharing_link());
    std::vector<int64_t> ns;
    for (const Placement& placement :
         {on_one(shape_, machine.devices(), 1), in_parallel(shape_, machine.devices(), {2, 1}),
          in_line(shape_, machine.devices(), {2, 1})}) {
      VirtualRun run(model(), machine, placement, 64);
      ns.push_back(run.serve({.requests = 6, .concurrency = 4, .prompt_len = 20, .output_len = 6}).ns);
    }
    return ns;
  };
  const std::vector<int64_t> once = serve(3);
  EXPECT_EQ(serve(3), once);
  EXPECT_NE(serve(4), once);
}

TEST_F(Sharing, UnevenTensorParallelism_IsTheSumOfSpeedsLessCommunication) {
  for (const double r : {1.0, 2.0, 4.0, 10.0}) {
    const SharingRow row = share(model(), shape_, r);
    std::printf("%s\n", text_of(row).c_str());
    EXPECT_GE(row.together, 0.9 * row.bound) << r << ":1";
    EXPECT_NEAR(row.predicted / row.together, 1, 0.1) << r << ":1";
    if (r >= 2) EXPECT_GT(row.together, row.even) << r << ":1";
  }
}

TEST_F(Sharing, Pipeline_KeepsItsBottleneckBusy) {
  for (const double r : {1.0, 2.0, 5.0}) {
    const PipelineRow row = pipeline(model(), shape_, r);
    std::printf("%s\n", text_of(row).c_str());
    EXPECT_GE(row.together, 0.9 * row.bound) << r << ":1";
    EXPECT_GE(row.overlap, 0.6) << r << ":1";
  }
}

TEST_F(Sharing, TwoPartsOfOneBus_AreForeseenToGainNothing) {
  SimDevice part = sharing_device(1);
  part.kind = "cpu";
  part.gflops = part.attention_gflops = 1000;  // what it reads is all that counts
  part.memory_group = 71;
  const VirtualMachine machine({part, part}, sharing_link());
  const PlanInput input = machine.measure(model(), 64);
  EXPECT_NEAR(input.devices[0].together.at(4), 2, 0.1);
  EXPECT_NEAR(input.devices[0].context_together, 2, 0.1);
  const Load load{.requests = 4, .concurrency = 4, .prompt_len = 4, .output_len = 24};
  const auto report = plan(shape_, input, request_of(load));
  ASSERT_TRUE(report.ok()) << report.error().message();
  EXPECT_EQ(report->devices.size(), 1u) << "a second part of a saturated bus gains nothing";
  const double alone = VirtualRun(model(), machine, report->placement, 64).serve(load).tokens_per_s();
  const Placement split = in_parallel(shape_, machine.devices(), {1, 1});
  const double both = VirtualRun(model(), machine, split, 64).serve(load).tokens_per_s();
  EXPECT_LT(both, alone);
  const auto told = report_on(shape_, input, request_of(load), split);
  ASSERT_TRUE(told.ok()) << told.error().message();
  EXPECT_LT(told->predicted.tokens_per_s, report->predicted.tokens_per_s);
  EXPECT_NEAR(told->predicted.tokens_per_s / report->predicted.tokens_per_s, both / alone, 0.1);
}

// No hidden full copies: what a shard holds is its part of the plan, what crosses is the sums.
TEST_F(Sharing, BytesHeldAndMoved_AreThePlans) {
  const VirtualMachine machine({sharing_device(1), sharing_device(0.25), sharing_device(0.5)}, sharing_link());
  const PlanInput input = machine.measure(model(), 64);
  const uint64_t row_bytes = static_cast<uint64_t>(shape_.hidden) * 4, layers = shape_.layers.size();
  const StepShape step{.decode_rows = 6, .context = 30};
  const auto check = [&](const Placement& by_hand, const std::vector<uint64_t>& moved) {
    const auto report = report_on(shape_, input, request_of({}), by_hand);
    ASSERT_TRUE(report.ok()) << report.error().message();
    VirtualRun run(model(), machine, report->placement, 64);
    run.step_ns(step);
    const std::vector<DriverReport> reports = run.reports();
    uint64_t all = 0;
    size_t rank = 0;
    for (const Stage& stage : report->placement.lanes[0].stages) {
      for (const Shard& shard : stage.shards) {
        EXPECT_EQ(reports[rank].device, shard.device);
        EXPECT_NEAR(static_cast<double>(reports[rank].weight_bytes), static_cast<double>(shard.weight_bytes),
                    0.02 * static_cast<double>(shard.weight_bytes))
            << shard.device;
        EXPECT_EQ(reports[rank].work.bytes_moved, moved[rank]) << shard.device;
        all += reports[rank++].weight_bytes;
      }
    }
    EXPECT_LT(static_cast<double>(all), 1.05 * static_cast<double>(shape_.weight_bytes()));
  };
  const uint64_t sums = (2 * layers + 1) * 6 * row_bytes;
  check(on_one(shape_, machine.devices(), 0), {0});
  // The vocabulary on one: nothing but the sums.
  check(place(shape_, machine.devices(), {{1, {{0, 2, 2, 1}, {1, 1, 1, 0}}}}), {sums, sums});
  check(in_line(shape_, machine.devices(), {2, 1, 1}), {6 * row_bytes, 2 * 6 * row_bytes, 6 * row_bytes});
  // Shared: its logits and the sampled ids besides.
  const Placement shared = in_parallel(shape_, machine.devices(), {1, 1});
  const auto rows = static_cast<uint64_t>(shared.lanes[0].stages[0].shards[1].vocab_rows[0].end -
                                          shared.lanes[0].stages[0].shards[1].vocab_rows[0].begin);
  const uint64_t logits = 6 * (rows + 1) * 4;
  check(shared, {sums + logits, sums + logits});
}

}  // namespace
}  // namespace motley::testing
