#include "planner/routes.hpp"

#include <gtest/gtest.h>

#include "planner/planner_test_fleet.hpp"
#include "planner/search.hpp"

namespace motley {
namespace {

using testing::make_device;
using testing::make_shape;

struct World {
  ModelShape shape = make_shape({});
  PlanInput input;
  World() {
    for (const char* name : {"A", "B", "C"}) input.devices.push_back(make_device(name, "gpu", {}, shape));
  }
  void link(const char* a, const char* b, double latency_ns, double ns_per_byte, Route route) {
    input.links.push_back({a, b, latency_ns, ns_per_byte, route});
  }
};

LanePlan lane_of(const std::vector<std::vector<size_t>>& stages) {
  LanePlan plan;
  for (size_t s = 0; s < stages.size(); ++s) {
    StagePlan& stage = plan.stages.emplace_back(StagePlan{s, s + 1, {}});
    for (const size_t device : stages[s]) stage.shards.push_back({.device = device});
  }
  return plan;
}

TEST(GroupRoute, OfThePairThatAllWaitFor) {
  World world;
  world.link("A", "B", 1000, 0.1, Route::kSharedMemory);
  world.link("A", "C", 3000, 0.1, Route::kGloo);
  world.link("B", "C", 2000, 2, Route::kSharedMemory);
  const LinkTable links(world.input);
  const std::vector<size_t> all = {0, 1, 2}, fast = {0, 1}, alone = {2};
  EXPECT_EQ(group_route(links, all, 0), Route::kGloo);             // A - C has the largest latency
  EXPECT_EQ(group_route(links, all, 1000), Route::kSharedMemory);  // 3100 there, 4000 of B - C
  EXPECT_EQ(group_route(links, fast, 0), Route::kSharedMemory);
  EXPECT_EQ(group_route(links, alone, 0), Route::kSharedMemory);
}

TEST(GroupRoute, OfEquallySlowPairs_SharedMemory) {
  for (const bool gloo_first : {true, false}) {
    World world;
    world.link("A", "B", 1000, 0, gloo_first ? Route::kGloo : Route::kSharedMemory);
    world.link("A", "C", 1000, 0, Route::kSharedMemory);
    world.link("B", "C", 1000, 0, gloo_first ? Route::kSharedMemory : Route::kGloo);
    const LinkTable links(world.input);
    EXPECT_EQ(group_route(links, std::vector<size_t>{0, 1, 2}, 100), Route::kSharedMemory);
  }
}

TEST(LaneRoutes, AStageTakesOneAndAHopThatOfItsPair) {
  World world;
  world.link("B", "A", 5000, 0.1, Route::kGloo);  // A - C and B - C meet in the host's memory
  const LinkTable links(world.input);
  const auto routes = [&](const std::vector<std::vector<size_t>>& stages) {
    return lane_routes(world.input, links, lane_of(stages), 64);
  };
  const PairRoute a_b{"A", "B", Route::kGloo};
  EXPECT_EQ(routes({{1, 0}}), std::vector{a_b});
  EXPECT_EQ(routes({{1}, {0}}), std::vector{a_b});
  EXPECT_EQ(routes({{1, 2}, {0}}), std::vector{a_b});
  EXPECT_TRUE(routes({{0}, {2}, {1}}).empty());  // A and B never meet
  EXPECT_TRUE(routes({{0, 1, 2}}).empty());      // the host's memory is as slow and comes first
  world.input.links[0].latency_ns = 6000;
  EXPECT_EQ(routes({{0, 1, 2}}), (std::vector<PairRoute>{a_b, {"A", "C", Route::kGloo}, {"B", "C", Route::kGloo}}));
}

TEST(LaneRoutes, OfAPlan_AreThoseThatWereMeasured) {
  World world;
  for (const auto& [a, b] : {std::pair{"A", "B"}, {"A", "C"}, {"B", "C"}}) world.link(a, b, 2000, 0.1, Route::kGloo);
  for (const auto& [tensor, pipeline] : {std::pair{2u, 1u}, {1u, 2u}}) {
    PlanRequest request;
    request.tensor_parallel_size = tensor, request.pipeline_parallel_size = pipeline;
    const auto report = plan(world.shape, world.input, request);
    ASSERT_TRUE(report.ok()) << report.error().message();
    ASSERT_EQ(report->placement.lanes[0].routes.size(), 1u);
    EXPECT_EQ(report->placement.lanes[0].routes[0].route, Route::kGloo);
  }
  for (LinkProfile& link : world.input.links) link.route = Route::kSharedMemory;
  PlanRequest request;
  request.use_all_devices = true;
  const auto report = plan(world.shape, world.input, request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  EXPECT_TRUE(report->placement.lanes[0].routes.empty());
}

}  // namespace
}  // namespace motley
