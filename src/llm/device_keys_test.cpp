// The keys under which costs and compiled programs are kept.
#include <gtest/gtest.h>

#include <cstdio>

#include "device/registry.hpp"
#include "llm/cost_cache.hpp"
#include "llm/device_set.hpp"

namespace motley {
namespace {

TEST(DeviceKeys, ChangeWithTheDriver) {
  const DeviceRegistry registry = DeviceRegistry::scan(MOTLEY_BINARY_DIR "/lib/motley");
  auto listed = parse_device_list(registry, "SIM:intel-npu-like");
  ASSERT_TRUE(listed.ok()) << listed.error().message();
  const auto program_key = [](const std::vector<ListedDevice>& devices) {
    const auto set = DeviceSet::open(devices, {});
    return set.ok() ? set->named().at(0).identity : set.error().message();
  };
  const std::string costs = machine_digest(*listed), programs = program_key(*listed);
  EXPECT_EQ(machine_digest(*listed), costs);
  EXPECT_EQ(program_key(*listed), programs);
  motley_device_desc& desc = listed->at(0).description.desc;
  std::snprintf(desc.driver, sizeof desc.driver, "another");
  EXPECT_NE(machine_digest(*listed), costs);
  EXPECT_NE(program_key(*listed), programs);
}

}  // namespace
}  // namespace motley
