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

// A partner, and the owner of a further section; the second shard keeps its first section itself, the third no KV.
TEST(LaneLinks, EachWhoAttends_HasAWayToTheShard) {
  Lane lane = lane_of({{"A", "B", "C"}}, {{"A", "D"}, {"E", "B"}});
  std::vector<Shard>& shards = lane.stages[0].shards;
  shards[0].kv_heads = shards[1].kv_heads = {{0, 1}};
  shards[0].partner = "D";
  lane.sections = {{"E", 1}};
  const std::vector<LanePart> parts = lane_parts(lane);
  const auto links = links_of(lane);
  ASSERT_EQ(parts.size(), 6u);
  ASSERT_EQ(links.size(), 6u);
  const struct {
    ShardRole role;
    const char* device;
    size_t shard, partners;
    uint32_t section;
    Route route;  // of the last of them
  } wanted[] = {{ShardRole::kDense, "A", 0, 2, 0, kMemory},     {ShardRole::kWhole, "B", 1, 1, 0, kGloo},
                {ShardRole::kWhole, "C", 2, 0, 0, kMemory},     {ShardRole::kAttention, "D", 0, 1, 0, kGloo},
                {ShardRole::kAttention, "E", 0, 1, 1, kMemory}, {ShardRole::kAttention, "E", 1, 1, 1, kGloo}};
  for (size_t i = 0; i < parts.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(parts[i].role, wanted[i].role);
    EXPECT_EQ(parts[i].device, wanted[i].device);
    EXPECT_EQ(parts[i].shard, wanted[i].shard);
    EXPECT_EQ(parts[i].section, wanted[i].section);
    ASSERT_EQ(links[i].partners.size(), wanted[i].partners);
    if (wanted[i].partners > 0) {
      EXPECT_EQ(links[i].partners.back()->route(), wanted[i].route);
    }
  }
}

TEST(LaneLinks, AGroup_TakesTheRouteOfAllItsPairs_ElseSharedMemory) {
  EXPECT_EQ(links_of(lane_of({{"A", "B"}}, {{"B", "A"}}))[1].stage->route(), kGloo);
  EXPECT_EQ(links_of(lane_of({{"A", "B", "C"}}, {{"A", "B"}, {"A", "C"}}))[2].stage->route(), kMemory);
  EXPECT_EQ(links_of(lane_of({{"A", "B", "C"}}, {{"A", "B"}, {"A", "C"}, {"B", "C"}}))[2].stage->route(), kGloo);
}

}  // namespace
}  // namespace motley
