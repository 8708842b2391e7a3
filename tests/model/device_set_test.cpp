// What devices that are opened together leave one another.
#include "llm/device_set.hpp"

#include <gtest/gtest.h>

#include "base/config.hpp"
#include "device/device_list.hpp"

namespace motley {
namespace {

class DeviceSets : public ::testing::Test {
 protected:
  // Threads of the first device listed, a processor.
  uint32_t threads(const std::string& list, const DeviceSetOptions& options = {}) {
    auto listed = parse_device_list(registry_, list);
    EXPECT_TRUE(listed.ok()) << listed.error().message();
    auto set = DeviceSet::open(*std::move(listed), options);
    EXPECT_TRUE(set.ok()) << set.error().message();
    return set->listed(0).description.desc.threads;
  }
  DeviceRegistry registry_ = DeviceRegistry::scan(plugin_directory());
};

TEST_F(DeviceSets, Processor_LeavesSimulatedDevicesACoreEach_AndKeepsOne) {
  const uint32_t all = threads("CPU:0");
  EXPECT_EQ(threads("CPU:0,SIM:gpu-like"), std::max(2u, all) - 1);
  EXPECT_EQ(threads("CPU:0,SIM:gpu-like,SIM:xdna-like"), std::max(3u, all) - 2);
}

TEST_F(DeviceSets, Processor_KeepsWhatItWasGiven) {
  DeviceSetOptions options;
  options.threads = threads("CPU:0") + 3;
  EXPECT_EQ(threads("CPU:0,SIM:gpu-like", options), threads("CPU:0"));  // as described; it is opened with the others
  EXPECT_EQ(threads("CPU:0/cores=0,SIM:gpu-like,SIM:xdna-like"), 1u);
}

}  // namespace
}  // namespace motley
