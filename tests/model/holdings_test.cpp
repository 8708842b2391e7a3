// What devices hold, asked for by several threads, while one of the devices hangs.
#include "runtime/holdings.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "model/random_model.hpp"
#include "model/sim_file.hpp"

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

}  // namespace
}  // namespace motley
