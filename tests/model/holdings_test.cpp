// What devices hold, asked for by several threads, while one of the devices hangs.
#include "runtime/holdings.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "model/random_model.hpp"
#include "model/sim_file.hpp"
#include "planner/plan.hpp"
#include "runtime/runtime_executor.hpp"

namespace motley {
namespace {

constexpr const char* kDevice = "memory_bytes = 1073741824\nbandwidth_gb_s = 40\ngflops = {f32 = 50}\n";
constexpr std::chrono::milliseconds kHangs{1500};
constexpr const char* kHangsInPack = "[[fault]]\nat_ns = 0\nwhat = \"pack\"\nfor_ms = 1500\n";

ShardWeight whole(size_t source) {
  ShardWeight weight;
  weight.source = source;
  return weight;
}

TEST(HoldingsOfDevices, OneThatHangsWhileItPacks_KeepsNobodyElseWaiting) {
  const testing::RandomModel random({});
  const testing::SimFile well_file(kDevice), ill_file(std::string(kDevice) + kHangsInPack);
  const Device well = well_file.open(), ill = ill_file.open();
  Holdings holdings(random.model());
  std::atomic<bool> packed{false};
  std::thread hanging([&] {
    EXPECT_TRUE(holdings.weight(ill, whole(0)).ok());
    packed = true;
  });
  const auto began = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - began < kHangs / 5) {  // whichever thread comes first
    const auto weight = holdings.weight(well, whole(0));
    ASSERT_TRUE(weight.ok()) << weight.error().message();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_FALSE(packed);
  hanging.join();
}

TEST(HoldingsOfDevices, SeveralThatNeedTheSameAtOnce_ShareOne) {
  const testing::RandomModel random({});
  const testing::SimFile file(std::string(kDevice) + "[[fault]]\nat_ns = 0\nwhat = \"pack\"\nfor_ms = 100\n");
  const Device device = file.open();
  Holdings holdings(random.model());
  std::vector<std::shared_ptr<const PackedWeight>> got(4);
  std::vector<std::thread> threads;
  for (auto& each : got) {
    threads.emplace_back([&] {
      auto weight = holdings.weight(device, whole(0));
      ASSERT_TRUE(weight.ok()) << weight.error().message();
      each = *std::move(weight);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& each : got) EXPECT_EQ(each, got[0]);
}

// Ranges that follow one another are the same units, however they are cut.
TEST(HoldingsOfDevices, RowsInTwoRangesThatMeet_AreThoseOfOne) {
  const testing::RandomModel random({});
  const testing::SimFile file(kDevice);
  const Device device = file.open();
  Holdings holdings(random.model());
  const auto weights = random.model().graph().weights;
  const size_t source = static_cast<size_t>(
      std::find_if(weights.begin(), weights.end(),
                   [](const GraphWeight& weight) { return (weight.uses & MOTLEY_WEIGHT_MATMUL) != 0; }) -
      weights.begin());
  ShardWeight one = whole(source), two = whole(source), apart = whole(source);
  one.rows = {{0, 32}}, two.rows = {{0, 16}, {16, 32}}, apart.rows = {{0, 16}, {32, 48}};
  const auto a = holdings.weight(device, one), b = holdings.weight(device, two), c = holdings.weight(device, apart);
  ASSERT_TRUE(a.ok() && b.ok() && c.ok());
  EXPECT_EQ(*a, *b);
  EXPECT_NE(*a, *c);
  EXPECT_EQ(holdings.find_weight(device, two), *a);
  ShardWeight all = whole(source);
  all.rows = {{0, random.model().weight(source).rows}};
  EXPECT_EQ(holdings.find_weight(device, all), nullptr);
  const uint64_t packed = holdings.packed_bytes();
  const auto d = holdings.weight(device, whole(source));
  ASSERT_TRUE(d.ok());
  EXPECT_EQ(holdings.find_weight(device, all), *d);
  EXPECT_EQ(holdings.packed_bytes(), packed + (*d)->info.bytes);
}

// What a device has no room for is left to whoever packs it later.
TEST(HoldingsOfDevices, PackingAPlan_TakesWhatThereIsRoomFor) {
  const testing::RandomModel random({});
  size_t counts[2] = {};
  for (const bool small : {false, true}) {
    const testing::SimFile file(small ? "memory_bytes = 1048576\nbandwidth_gb_s = 40\ngflops = {f32 = 50}\n" : kDevice);
    const Device device = file.open();
    const std::vector<NamedDevice> devices = {{"D0", &device}};
    RuntimeOptions options;
    options.holdings = std::make_shared<Holdings>(random.model());
    const auto placement = plan_single_device(random.model(), {"D0", 4ull << 30, 4ull << 30, 64ull << 20, 1 << 16}, {});
    ASSERT_TRUE(placement.ok()) << placement.error().message();
    EXPECT_EQ(RuntimeExecutor::create(random.model(), *placement, devices, options).error().code(),
              small ? MOTLEY_RESOURCE_EXHAUSTED : MOTLEY_OK);
    const auto packed = RuntimeExecutor::pack(random.model(), *placement, devices, options);
    ASSERT_TRUE(packed.ok()) << packed.error().message();
    counts[small ? 1 : 0] = packed->size();
  }
  EXPECT_GT(counts[1], 0u);
  EXPECT_LT(counts[1], counts[0]);
}

}  // namespace
}  // namespace motley
