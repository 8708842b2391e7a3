#include "planner/replay.hpp"

#include <gtest/gtest.h>

#include "planner/planner_test_fleet.hpp"
#include "planner/search.hpp"

namespace motley {
namespace {

using testing::make_shape;
using testing::random_fleet;

TEST(Replay, OfRandomPlans_NeverExceedsTheBoundAndNearsThePrediction) {
  std::mt19937_64 random(23);
  const ModelShape shape =
      make_shape({.layers = 12, .hidden = 512, .heads = 8, .kv_heads = 4, .head_dim = 64, .ffn = 1024, .vocab = 4096});
  int pipelines = 0;
  for (int round = 0; round < 60; ++round) {
    const PlanInput input = random_fleet(random, shape, 4);
    PlanRequest request;
    request.concurrency = 1 + static_cast<uint32_t>(random() % 64);
    if (round % 3 == 0) request.pipeline_parallel_size = 2;  // where replicas are often predicted better
    const auto report = plan(shape, input, request);
    if (!report.ok() || report->placement.lanes.size() > 1) continue;
    Predictor predictor(shape, input, request);
    const Candidate candidate = predictor.evaluate(*lane_plan_of(shape, input, report->placement));
    const ReplayResult result = replay(&predictor, candidate, 400);
    EXPECT_LE(result.tokens_per_s, report->bound_tokens_per_s) << "round " << round;
    EXPECT_GE(result.tokens_per_s, 0.9 * report->predicted.tokens_per_s) << "round " << round;
    pipelines += candidate.plan.stages.size() > 1 ? 1 : 0;
  }
  EXPECT_GE(pipelines, 10);
}

}  // namespace
}  // namespace motley
