#include "planner/move_cost.hpp"

#include <gtest/gtest.h>

#include "planner/adaptation.hpp"
#include "planner/planner_test_fleet.hpp"

namespace motley {
namespace {

using testing::make_device;
using testing::make_shape;

class MoveCostOf : public ::testing::Test {
 protected:
  MoveCostOf() : shape_(make_shape({.layers = 4, .heads = 8, .kv_heads = 4, .ffn = 1024})) {
    for (const char* name : {"GPU:0", "GPU:1"}) input_.devices.push_back(make_device(name, "gpu", {}, shape_));
    for (DeviceProfile& device : input_.devices) device.copy = {1000, 0.5};
    input_.host_memory = {"", "", 2000, 0.02};
    request_.concurrency = 8, request_.prompt_len = 100, request_.output_len = 56;
  }

  // A stage of layers [begin, end): so many KV heads and blocks of 64 columns on the first device, the rest on the
  // other.
  StagePlan stage(size_t begin, size_t end, int64_t kv_heads, int64_t columns) const {
    StagePlan stage{begin, end, {}};
    const bool outer = begin == 0 || end == shape_.layers.size();
    for (size_t d = 0; d < 2; ++d) {
      const int64_t heads = d == 0 ? kv_heads : shape_.kv_heads - kv_heads;
      const int64_t ffn = d == 0 ? 64 * columns : shape_.ffn_columns - 64 * columns;
      const ShardPlan shard{d, heads * shape_.query_heads_per_kv(), heads, ffn, 0, outer && d == 0 ? shape_.vocab : 0};
      if (!shard.empty()) stage.shards.push_back(shard);
    }
    return stage;
  }
  PlanReport report(const LanePlan& plan, uint64_t tokens = 4096) const {
    PlanReport report;
    report.placement = to_placement(shape_, input_, request_, plan, PoolTokens{tokens}, 1);
    report.lanes.resize(1);
    report.lanes[0].predicted.concurrency = request_.concurrency;
    for (const DeviceProfile& device : input_.devices)
      report.devices.push_back({device.name, "", weights_, 0, 0, device.memory_free, 0});
    return report;
  }
  MoveCost cost(const PlanReport& now, const PlanReport& next) const {
    const auto cost = move_cost(shape_, input_, request_, now, next);
    CHECK(cost.ok(), "{}", cost.error().message());
    return *cost;
  }
  double used_tokens() const { return 8 * (100 + 56 / 2); }
  double kv_bytes(double heads, double layers) const {
    return used_tokens() * kv_head_bytes(shape_, request_) * heads * layers;
  }

  const ModelShape shape_;
  PlanInput input_;
  PlanRequest request_;
  uint64_t weights_ = 0;  // of each device, in the report
};

TEST_F(MoveCostOf, TheSamePlan_IsNothing) {
  const PlanReport now = report({{stage(0, 4, 2, 8)}});
  const MoveCost none = cost(now, now);
  EXPECT_EQ(none.packed_bytes, 0u);
  EXPECT_EQ(none.kv_bytes, 0u);
  EXPECT_EQ(none.prepare_ns, 0);
  EXPECT_EQ(none.pause_ns, 0);
  EXPECT_EQ(none.gain_over(1.3, 1e9), 1.3);
}

// Both devices' matrices have other columns: all of them are packed anew.
TEST_F(MoveCostOf, ABorderOfColumns_PacksTheirMatrices_AndMovesNoKv) {
  const MoveCost moved = cost(report({{stage(0, 4, 2, 8)}}), report({{stage(0, 4, 2, 11)}}));
  const double bytes = 4 * 16 * 64 * shape_.layers[0].ffn_column_bytes;
  EXPECT_EQ(moved.packed_bytes, static_cast<uint64_t>(bytes));
  EXPECT_EQ(moved.without_room_bytes, 0u);
  EXPECT_EQ(moved.kv_bytes, 0u);
  EXPECT_DOUBLE_EQ(moved.prepare_ns, 2 * 1000 + bytes * 0.5);
  EXPECT_EQ(moved.pause_ns, 0);
}

// A device that has room for half of its new columns beside what it holds packs the others while nothing runs.
TEST_F(MoveCostOf, WhatADeviceHasNoRoomFor_IsPackedInThePause) {
  const double bytes = 4 * 8 * 64 * shape_.layers[0].ffn_column_bytes;  // of each of them
  for (DeviceProfile& device : input_.devices) device.memory_free = uint64_t{1} << 30;
  weights_ = (uint64_t{1} << 30) - static_cast<uint64_t>(bytes / 2);
  PlanReport now = report({{stage(0, 4, 2, 8)}}), next = report({{stage(0, 4, 2, 8)}});
  for (Shard& shard : next.placement.lanes[0].stages[0].shards)  // they change places
    shard.ffn_columns = {{shard.ffn_columns[0].begin == 0 ? 512 : 0, shard.ffn_columns[0].begin == 0 ? 1024 : 512}};
  const MoveCost moved = cost(now, next);
  EXPECT_EQ(moved.packed_bytes, static_cast<uint64_t>(2 * bytes));
  EXPECT_NEAR(static_cast<double>(moved.without_room_bytes), bytes, 4);
  EXPECT_NEAR(moved.pause_ns, 1000 + bytes * 0.5, 4);
  EXPECT_NEAR(moved.prepare_ns, moved.pause_ns, 8);
}

TEST_F(MoveCostOf, AHead_TakesItsWeightsAndItsKv) {
  const MoveCost moved = cost(report({{stage(0, 4, 2, 8)}}), report({{stage(0, 4, 3, 8)}}));
  const LayerShape& layer = shape_.layers[0];
  EXPECT_EQ(moved.packed_bytes, 4 * (8 * layer.query_head_bytes + 4 * layer.kv_head_bytes));
  EXPECT_EQ(moved.kv_bytes, static_cast<uint64_t>(kv_bytes(3, 4)) + static_cast<uint64_t>(kv_bytes(1, 4)));
  // Two heads each go to the host beside one another, and beside the steps; then three and one come back.
  EXPECT_DOUBLE_EQ(moved.saving_ns, 1000 + 0.5 * kv_bytes(2, 4));
  EXPECT_EQ(moved.late_ns, 0);
  EXPECT_DOUBLE_EQ(moved.pause_ns, 1000 + 0.5 * kv_bytes(3, 4));
}

TEST_F(MoveCostOf, ABorderOfLayers_TakesThoseLayers) {
  const PlanReport now = report({{stage(0, 2, 4, 16), stage(2, 4, 0, 0)}});
  const PlanReport next = report({{stage(0, 3, 4, 16), stage(3, 4, 0, 0)}});
  const MoveCost moved = cost(now, next);
  EXPECT_NEAR(static_cast<double>(moved.packed_bytes), static_cast<double>(shape_.layer_bytes(2)), 1);
  EXPECT_DOUBLE_EQ(moved.pause_ns, 1000 + 0.5 * kv_bytes(4, 3));
}

// However slow the link is: what does not load within the pause comes beside the steps.
TEST_F(MoveCostOf, MuchKv_DoesNotMakeALongPause) {
  for (DeviceProfile& device : input_.devices) device.copy = {1000, 5000};
  const PlanReport now = report({{stage(0, 2, 4, 16), stage(2, 4, 0, 0)}});
  const PlanReport next = report({{stage(0, 3, 4, 16), stage(3, 4, 0, 0)}});
  const MoveCost moved = cost(now, next);
  EXPECT_EQ(moved.pause_ns, kKvPauseNs);
  EXPECT_DOUBLE_EQ(moved.saving_ns, 1000 + 5000 * kv_bytes(4, 2));
  EXPECT_DOUBLE_EQ(moved.late_ns, 1000 + 5000 * kv_bytes(4, 3) - kKvPauseNs);
  const double horizon_ns = 100 * (moved.saving_ns + moved.late_ns);
  MoveCost none;
  none.prepare_ns = moved.prepare_ns + moved.saving_ns, none.pause_ns = moved.pause_ns + moved.late_ns / 2;
  EXPECT_DOUBLE_EQ(moved.gain_over(2, horizon_ns), none.gain_over(2, horizon_ns));
}

TEST_F(MoveCostOf, APoolOfAnotherSize_IsCopied_ButOnlyWhatIsWritten) {
  const LanePlan plan{{stage(0, 4, 4, 16)}};
  const MoveCost moved = cost(report(plan, 4096), report(plan, 512));
  EXPECT_EQ(moved.packed_bytes, 0u);
  EXPECT_EQ(moved.kv_bytes, static_cast<uint64_t>(kv_bytes(4, 4) * 512 / used_tokens()));
}

TEST_F(MoveCostOf, ADeviceThatTheHostSees_IsBoundByTheHostsMemory) {
  for (DeviceProfile& device : input_.devices) device.copy = {};
  const MoveCost moved = cost(report({{stage(0, 4, 2, 8)}}), report({{stage(0, 4, 2, 9)}}));
  EXPECT_DOUBLE_EQ(moved.prepare_ns, static_cast<double>(moved.packed_bytes) * 0.02);
}

// A lane of one stage has a step ahead of the one under way; three micro-batches in two stages end one behind the other
// in the slower one. Lanes end beside one another.
TEST_F(MoveCostOf, StepsUnderWay_AreWaitedFor) {
  PlanReport now = report({{stage(0, 4, 2, 8)}});
  now.lanes[0].stages = {{50, 0}};
  EXPECT_EQ(cost(now, now).under_way_ns, 2 * 50);
  now.lanes[0].stages = {{50, 5}, {70, 0}};
  now.lanes[0].predicted.micro_batches = 3;
  EXPECT_EQ(cost(now, now).under_way_ns, 50 + 5 + 70 + 2 * 70);
  now.lanes.push_back(now.lanes[0]);
  now.lanes[1].stages = {{400, 0}};
  now.lanes[1].predicted.micro_batches = 1;
  EXPECT_EQ(cost(now, now).under_way_ns, 2 * 400);
  EXPECT_EQ(cost(now, now).pause_ns, 2 * 400);
}

// The first device has memory of its own, the second the host's.
TEST_F(MoveCostOf, TheHostsMemory_IsAskedForWhatItsDevicesPackAndTheirPoolsGrowBy) {
  input_.devices[0].own_memory = true, input_.devices[1].own_memory = false;
  const auto need = [&](const PlanReport& now, const PlanReport& next) {
    return host_need(shape_, input_, request_, now, next);
  };
  PlanReport now = report({{stage(0, 2, 4, 16), stage(2, 4, 0, 0)}});
  const double layer_kv = kv_head_bytes(shape_, request_) * static_cast<double>(shape_.kv_heads);
  // A layer more on the second device, in a pool of twice the blocks; its steps' buffers.
  PlanReport next = report({{stage(0, 1, 4, 16), stage(1, 4, 0, 0)}}, 8192);
  next.devices[1].step_bytes = 1000, next.devices[0].step_bytes = 70000;
  const HostNeed more = need(now, next);
  EXPECT_NEAR(static_cast<double>(more.packed_bytes), static_cast<double>(shape_.layer_bytes(1)) + 1000, 1);
  EXPECT_EQ(more.grown_bytes, static_cast<uint64_t>((8192 * 3 - 4096 * 2) * layer_kv));
  EXPECT_EQ(more.freed_bytes, 0u);
  // And back: a pool that shrinks gives nothing, for what was not written to was never taken.
  now.devices[1].step_bytes = 1000;
  const HostNeed less = need(next, now);
  EXPECT_EQ(less.packed_bytes, 1000u);
  EXPECT_EQ(less.grown_bytes, 0u);
  EXPECT_NEAR(static_cast<double>(less.freed_bytes), static_cast<double>(shape_.layer_bytes(1)) + 1000, 1);
  EXPECT_EQ(need(now, now).beside(), 1000u);
  EXPECT_EQ(need(now, now).instead(), 0u);  // the buffers of the one's steps come free for the other's
}

// Each half of a processor has other columns, and the host has room for a part of them: the rest is packed in the
// pause.
TEST_F(MoveCostOf, WhatTheHostHasNoRoomForBesideBothPlans_IsPackedInThePause) {
  for (DeviceProfile& device : input_.devices) device.copy = {}, device.own_memory = false;
  PlanReport now = report({{stage(0, 4, 2, 8)}}), next = report({{stage(0, 4, 2, 11)}});
  now.devices[0].step_bytes = next.devices[0].step_bytes = 1000;
  const auto with_room = [&](uint64_t host_bytes) {
    const auto cost = move_cost(shape_, input_, request_, now, next, host_bytes);
    CHECK(cost.ok(), "{}", cost.error().message());
    return *cost;
  };
  const MoveCost both = with_room(0);
  const uint64_t bytes = both.packed_bytes;
  ASSERT_GT(bytes, 100'000u);
  EXPECT_EQ(both.without_room_bytes, 0u);
  EXPECT_EQ(with_room(bytes + 1000).pause_ns, 0);
  const MoveCost most = with_room(bytes * 3 / 4), little = with_room(1000);
  EXPECT_NEAR(static_cast<double>(most.without_room_bytes), 0.25 * static_cast<double>(bytes), 4);
  EXPECT_NEAR(most.pause_ns, 0.25 * both.prepare_ns, 4);
  EXPECT_NEAR(most.prepare_ns, 0.75 * both.prepare_ns, 4);
  EXPECT_NEAR(little.pause_ns, both.prepare_ns, 1000);
  // Ten seconds of packing are worth it beside the steps, and half of them in the pause are not.
  ManualClock clock;
  for (DeviceProfile& device : input_.devices) device.copy = {0, 10e9 / static_cast<double>(bytes)};
  EXPECT_TRUE(Adaptation(clock).judge(1.3, with_room(bytes + 1000)));
  EXPECT_FALSE(Adaptation(clock).judge(1.3, with_room(bytes / 2)));
}

TEST(HostRoom, IsForBothPlans_ForOneAfterTheOther_OrForNeither) {
  const HostNeed need{700, 200, 400};
  EXPECT_EQ(host_room(need, 900), HostRoom::kBeside);
  EXPECT_EQ(host_room(need, 899), HostRoom::kInstead);
  EXPECT_EQ(host_room(need, 500), HostRoom::kInstead);
  EXPECT_EQ(host_room(need, 499), HostRoom::kNone);
  EXPECT_EQ(host_room(need, 0), HostRoom::kBeside);  // unknown
  EXPECT_EQ(host_room({300, 0, 400}, 1), HostRoom::kInstead);
}

// Two equal devices, of which one becomes half as fast: what is gained is the same whatever the links.
TEST_F(MoveCostOf, TheSameGain_IsTakenWithAFastLink_AndRefusedWithASlowOne) {
  ManualClock clock;
  for (const double ns_per_byte : {0.05, 4000.0}) {
    PlanInput input = input_;
    for (DeviceProfile& device : input.devices) device.copy.ns_per_byte = ns_per_byte;
    const PlanReport next = report({{stage(0, 4, 1, 5)}}), now = report({{stage(0, 4, 2, 8)}});
    const auto of_move = move_cost(shape_, input, request_, now, next);
    ASSERT_TRUE(of_move.ok()) << of_move.error().message();
    Adaptation law(clock);
    EXPECT_EQ(law.judge(1.35, *of_move), ns_per_byte < 1) << of_move->prepare_ns << " " << of_move->pause_ns;
  }
}

TEST(Adaptation, AMove_IsToPayWithinTheHorizon) {
  ManualClock clock;
  const AdaptationOptions options;
  const auto horizon_ns = static_cast<double>(options.horizon_ns);
  const auto of = [](double prepare_ns, double pause_ns) {
    MoveCost cost;
    cost.prepare_ns = prepare_ns, cost.pause_ns = pause_ns;
    return cost;
  };
  // The longest preparation that a gain pays for: t + (h - t) g = w h.
  const double gain = 2, prepare_ns = horizon_ns * (gain - options.worth_moving) / (gain - 1);
  EXPECT_TRUE(Adaptation(clock).judge(gain, of(0.99 * prepare_ns, 0)));
  EXPECT_FALSE(Adaptation(clock).judge(gain, of(1.01 * prepare_ns, 0)));
  // And the longest pause: (h - p) g = w h.
  const double pause_ns = horizon_ns * (1 - options.worth_moving / gain);
  EXPECT_TRUE(Adaptation(clock).judge(gain, of(0, 0.99 * pause_ns)));
  EXPECT_FALSE(Adaptation(clock).judge(gain, of(0, 1.01 * pause_ns)));
  EXPECT_FALSE(Adaptation(clock).judge(100, of(horizon_ns, 0)));
}

}  // namespace
}  // namespace motley
