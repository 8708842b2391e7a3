#include "planner/profile.hpp"

#include <gtest/gtest.h>

#include <random>

#include "planner/planner_test_fleet.hpp"
#include "planner/profile_json.hpp"

namespace motley {
namespace {

using testing::make_device;
using testing::make_shape;

TEST(CostTable, At_IsBilinearBetweenAndLinearBeyond) {
  const CostTable table{{1, 3}, {2, 4}, {{10, 30}, {20, 60}}};
  EXPECT_DOUBLE_EQ(table.at(1, 2), 10);
  EXPECT_DOUBLE_EQ(table.at(2, 3), 30);  // (10 + 30 + 20 + 60) / 4
  EXPECT_DOUBLE_EQ(table.at(5, 2), 50);  // 10 a row
  EXPECT_DOUBLE_EQ(table.at(1, 6), 30);  // 5 a unit
  EXPECT_DOUBLE_EQ(table.at(0, 2), 10);  // as the first row
  EXPECT_DOUBLE_EQ(table.at(1, 0), 0);
  EXPECT_DOUBLE_EQ(CostTable().at(5, 5), 0);
}

TEST(CostTable, MakeMonotone_NeitherAxisFallsAndOrderedTablesStay) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 200; ++round) {
    CostTable table{{1, 2, 4, 8}, {1, 2, 3}, {}};
    for (size_t u = 0; u < 3; ++u) {
      table.ns.emplace_back();
      for (size_t r = 0; r < 4; ++r) table.ns[u].push_back(static_cast<double>(random() % 100));
    }
    table.make_monotone();
    const CostTable once = table;
    for (size_t u = 0; u < 3; ++u) {
      for (size_t r = 0; r < 4; ++r) {
        if (r > 0) EXPECT_GE(table.ns[u][r], table.ns[u][r - 1]);
        if (u > 0) EXPECT_GE(table.ns[u][r], table.ns[u - 1][r]);
      }
    }
    table.make_monotone();
    EXPECT_EQ(table.ns, once.ns);
  }
}

TEST(IsotonicFit, PoolsWhatFalls) {
  EXPECT_EQ(isotonic_fit({1, 3, 2, 4}), (std::vector<double>{1, 2.5, 2.5, 4}));
  EXPECT_EQ(isotonic_fit({3, 2, 1}), (std::vector<double>{2, 2, 2}));
  EXPECT_TRUE(isotonic_fit({}).empty());
}

PlanInput small_input() {
  const ModelShape shape = make_shape({});
  PlanInput input;
  input.devices = {make_device("GPU:0", "gpu", {}, shape), make_device("CPU:0", "cpu", {}, shape)};
  input.devices[0].own_memory = true;
  input.devices[0].roughly_with = 1000;
  input.devices[1].memory_group = "host";
  input.devices[1].together = {{1, 16}, {2, 1.5}};
  input.devices[1].context_together = 1.25, input.devices[1].wait_ns = 4000, input.devices[1].wake_ns = 9000;
  input.devices[1].mixed = 0.75;
  input.links = {{"GPU:0", "CPU:0", 4000, 0.05}};
  input.memory_caps["GPU:0"] = 1 << 30;
  return input;
}

TEST(ProfileJson, ComesBackEqual) {
  const PlanInput input = small_input();
  const std::string text = to_json(input);
  const auto again = read_plan_input(text);
  ASSERT_TRUE(again.ok()) << again.error().message();
  EXPECT_EQ(to_json(*again), text);
  EXPECT_TRUE(again->devices[0].own_memory);
  EXPECT_EQ(again->devices[0].roughly_with, 1000u);
  EXPECT_EQ(again->devices[1].roughly_with, 0u);
  EXPECT_FALSE(again->devices[1].own_memory);
  const auto device = read_device_profile(to_json(input.devices[1]));
  ASSERT_TRUE(device.ok()) << device.error().message();
  EXPECT_EQ(to_json(*device), to_json(input.devices[1]));
  EXPECT_EQ(device->context_together, 1.25);
  EXPECT_EQ(device->wait_ns, 4000);
  EXPECT_EQ(device->wake_ns, 9000);
  EXPECT_EQ(device->mixed, 0.75);
}

TEST(ProfileJson, Route_IsSharedMemoryWhereItIsMissing) {
  PlanInput input = small_input();
  for (const Route route : kRoutes) {
    input.links[0].route = route;
    const auto again = read_plan_input(to_json(input));
    ASSERT_TRUE(again.ok()) << again.error().message();
    EXPECT_EQ(again->links[0].route, route);
  }
  std::string text = to_json(input);
  const std::string field = ",\n   \"route\": \"gloo\"";
  ASSERT_NE(text.find(field), std::string::npos) << text;
  text.erase(text.find(field), field.size());
  const auto without = read_plan_input(text);
  ASSERT_TRUE(without.ok()) << without.error().message();
  EXPECT_EQ(without->links[0].route, Route::kSharedMemory);
}

TEST(ProfileJson, Nonsense_IsRefusedWithTheField) {
  const std::string good = to_json(small_input());
  const auto expect = [&](const std::string& from, const std::string& to, const char* part) {
    std::string bad = good;
    const size_t at = bad.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    bad.replace(at, from.size(), to);
    const Status refused = read_plan_input(bad).error();
    EXPECT_EQ(refused.code(), MOTLEY_INVALID_ARGUMENT) << to;
    EXPECT_NE(refused.message().find(part), std::string::npos) << refused.message();
  };
  expect("\"GPU:0\"", "\"CPU:0\"", "there twice");
  expect("\"packed_ratio\": 1.0", "\"packed_ratio\": 0", "packed_ratio");
  expect("\"packed_ratio\": 1.0", "\"packed_ratio\": 1e400", "");
  expect("\"context\"", "\"contexts\"", "'contexts' is no field");
  expect("\"context_together\": 1.25", "\"context_together\": 0.5", "context_together");
  expect("\"wait_ns\": 4000", "\"wait_ns\": -1", "wait_ns");
  expect("\"sample_ns\": 2000", "\"sample_ns\": 2.5", "sample_ns");
  expect("\"total\": ", "\"total\": -", "total");
  expect("\"kind\": \"gpu\"", "\"kind\": 3", "kind");
  expect("\"rows\"", "\"row\"", "'row' is no field");
  expect("\"b\": \"CPU:0\"", "\"b\": \"CPU:7\"", "not two of the devices");
  for (const char* route : {"\"Gloo\"", "\"\"", "1", "null"}) {
    const char* remedy = "links[0].route must be \"shared-memory\" or \"gloo\"; leave it out";
    expect("\"route\": \"shared-memory\"", std::string("\"route\": ") + route, remedy);
  }
  expect("\"GPU:0\": 1073741824", "\"GPU:7\": 1073741824", "not listed");
  EXPECT_FALSE(read_plan_input("{\"devices\": []}").ok());
  EXPECT_FALSE(read_plan_input("").ok());
  for (size_t i = 0; i < good.size(); i += 37) EXPECT_FALSE(read_plan_input(good.substr(0, i)).ok());
}

TEST(Alike, WithinThreePercent) {
  const ModelShape shape = make_shape({});
  PlanInput input;
  input.devices = {make_device("A", "gpu", {100}, shape), make_device("B", "gpu", {101}, shape),
                   make_device("C", "gpu", {120}, shape)};
  const LinkTable links(input);
  EXPECT_TRUE(alike(input, links, 0, 1));
  EXPECT_FALSE(alike(input, links, 0, 2));
}

}  // namespace
}  // namespace motley
