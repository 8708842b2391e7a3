#include "runtime/lane_links.hpp"

#include <gtest/gtest.h>

#include <array>

namespace motley {
namespace {

constexpr Route kMemory = Route::kSharedMemory, kGloo = Route::kGloo;

// A stage for each list of devices; pairs over Gloo.
Lane lane_of(const std::vector<std::vector<const char*>>& stages, const std::vector<std::array<const char*, 2>>& gloo) {
  Lane lane;
  for (const auto& devices : stages) {
    Stage& stage = lane.stages.emplace_back();
    for (const char* device : devices) stage.shards.emplace_back().device = device;
  }
  for (const auto& [a, b] : gloo) lane.routes.push_back({a, b, kGloo});
  return lane;
}

std::vector<DriverLinks> links_of(const Lane& lane) {
  ModelConfig config;
  config.hidden = 8, config.vocab_size = 16;
  auto links = make_lane_links(lane, config, {});
  CHECK(links.ok(), "{}", links.error().message());
  return *std::move(links);
}

TEST(LaneLinks, NoRoutes_AllMeetInSharedMemory) {
  const auto links = links_of(lane_of({{"A", "B"}, {"C"}}, {}));
  ASSERT_EQ(links.size(), 3u);
  for (const size_t i : {0, 1}) {
    EXPECT_EQ(links[i].stage->route(), kMemory);
    EXPECT_EQ(links[i].stage->rank(), i);
    EXPECT_EQ(links[i].receive_from, nullptr);
  }
  EXPECT_EQ(links[2].stage, nullptr);
  ASSERT_EQ(links[0].send_to.size(), 1u);
  EXPECT_TRUE(links[1].send_to.empty());
  EXPECT_EQ(links[0].send_to[0]->route(), kMemory);
  EXPECT_EQ(links[0].send_to[0]->rank(), kWaySender);
  EXPECT_EQ(links[2].receive_from->rank(), kWayReceiver);
}

TEST(LaneLinks, EachWay_GoesOverTheRouteOfItsPair) {
  const auto links = links_of(lane_of({{"A"}, {"B", "C"}, {"D"}}, {{"C", "A"}, {"B", "D"}}));
  ASSERT_EQ(links.size(), 4u);
  ASSERT_EQ(links[0].send_to.size(), 2u);
  EXPECT_EQ(links[0].send_to[0]->route(), kMemory);  // to B
  EXPECT_EQ(links[0].send_to[1]->route(), kGloo);    // to C
  EXPECT_EQ(links[1].receive_from->route(), kMemory);
  EXPECT_EQ(links[2].receive_from->route(), kGloo);
  EXPECT_EQ(links[1].stage->route(), kMemory);
  ASSERT_EQ(links[1].send_to.size(), 1u);
  EXPECT_EQ(links[1].send_to[0]->route(), kGloo);
  EXPECT_EQ(links[3].receive_from->route(), kGloo);
}

TEST(LaneLinks, AGroup_TakesTheRouteOfAllItsPairs_ElseSharedMemory) {
  EXPECT_EQ(links_of(lane_of({{"A", "B"}}, {{"B", "A"}}))[1].stage->route(), kGloo);
  EXPECT_EQ(links_of(lane_of({{"A", "B", "C"}}, {{"A", "B"}, {"A", "C"}}))[2].stage->route(), kMemory);
  EXPECT_EQ(links_of(lane_of({{"A", "B", "C"}}, {{"A", "B"}, {"A", "C"}, {"B", "C"}}))[2].stage->route(), kGloo);
}

}  // namespace
}  // namespace motley
