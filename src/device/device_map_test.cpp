#include "device/device_map.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/config.hpp"
#include "device/device_list.hpp"

namespace motley {
namespace {

class DeviceMap : public ::testing::Test {
 protected:
  // What is wrong with a map; "" for nothing.
  std::string fault(std::string_view map) {
    registry_ = DeviceRegistry::scan(plugin_directory());
    return map_devices(map, &registry_).message();
  }
  std::string names(std::string_view map, std::string_view list) {
    const std::string wrong = fault(map);
    if (!wrong.empty()) return wrong;
    const auto devices = parse_device_list(registry_, list);
    if (!devices.ok()) return devices.error().message();
    std::string out;
    for (const auto& device : *devices) out += (out.empty() ? "" : " ") + device.description.name;
    return out;
  }
  DeviceRegistry registry_ = DeviceRegistry::scan(plugin_directory());
};

TEST_F(DeviceMap, MappedNames_AreSimulatedDevicesThatCanBeListed) {
  EXPECT_EQ(names("gpu:0=sim:GPU-like, GPU:3 = SIM:slow-gpu-like", "GPU:0,cpu:0,gpu:3"), "GPU:0 CPU:0 GPU:3");
  EXPECT_EQ(names("gpu:0=SIM:gpu-like,GPU:1=SIM:gpu-like", "GPU:0-1,SIM:gpu-like"), "GPU:0 GPU:1 SIM:gpu-like");
  const auto devices = parse_device_list(registry_, "GPU:0,GPU:1,SIM:gpu-like");
  ASSERT_TRUE(devices.ok());
  EXPECT_EQ((*devices)[0].description.desc.simulated, 1);
  EXPECT_EQ((*devices)[0].description.desc.index, (*devices)[2].description.desc.index);
  EXPECT_EQ(shown_name((*devices)[0].description), "GPU:0 SIMULATED");
  EXPECT_EQ(shown_name((*devices)[2].description), "SIM:gpu-like");
}

TEST_F(DeviceMap, DeviceFile_KeepsItsSpec) {
  const std::filesystem::path file = std::filesystem::path(::testing::TempDir()) / "map.toml";
  std::ofstream(file) << "kind = \"npu\"\nmemory_bytes = 1073741824\nbandwidth_gb_s = 40\ngflops = {f32 = 50}\n";
  ASSERT_EQ(fault("NPU:1=SIM:" + file.string()), "");
  const auto devices = parse_device_list(registry_, "NPU:1");
  ASSERT_TRUE(devices.ok()) << devices.error().message();
  EXPECT_EQ((*devices)[0].spec, "SIM:" + file.string());
  EXPECT_EQ((*devices)[0].description.name, "NPU:1");
}

TEST_F(DeviceMap, NamesOfAMap_AreDevicesLikeOthers) {
  const std::string map = "GPU:0=SIM:gpu-like";
  EXPECT_EQ(names(map, "GPU:0,gpu:0"), "device GPU:0 is listed twice");
  EXPECT_EQ(names(map, "auto"),
            "--device-map GPU:0=SIM:gpu-like: GPU:0 is not listed in --devices; list it, or leave it out of the map");
  EXPECT_EQ(names(map, "auto,GPU:0"), "CPU:0 GPU:0");
  EXPECT_EQ(names("", "GPU:0").substr(0, 25), "device GPU:0 is not there");
}

TEST_F(DeviceMap, WhatIsNoMap_IsRefusedWithWhatToDo) {
  const auto starts = [](const std::string& text, std::string_view with) {
    EXPECT_EQ(text.substr(0, with.size()), with);
    EXPECT_EQ(text.find('\n'), std::string::npos);
  };
  starts(fault("GPU:0"), "--device-map 'GPU:0' is not NAME=SIM:PRESET, as in GPU:0=SIM:gpu-like");
  starts(fault("GPU:0=SIM:gpu-like,"), "--device-map '' is not NAME=SIM:PRESET");
  for (const char* name :
       {"", "GPU", "GPU:", "GPU:x", "GPU:-1", "GPU:01", "GPU:0-1", "TPU:0", "SIM:0", "GPU:99999", "GPU:0/cores=1"}) {
    const std::string map = std::string(name) + "=SIM:gpu-like";
    const std::string wanted = std::string(name) == "GPU:0/cores=1" ? "--device-map GPU" : "--device-map '";
    if (std::string(name).find('=') == std::string::npos) starts(fault(map), wanted);
    EXPECT_FALSE(fault(map).empty()) << name;
  }
  starts(fault("GPU:0=CPU:0"), "--device-map GPU:0: 'CPU:0' is not simulated; only a simulated device can stand for");
  starts(fault("GPU:0="), "--device-map GPU:0: '' is not simulated");
  starts(fault("GPU:0=SIM:gpu-like,gpu:0=SIM:igpu-like"), "--device-map GPU:0 is given twice");
  starts(fault("CPU:0=SIM:gpu-like"), "--device-map CPU:0 is a device of this machine, which would be hidden");
  starts(fault("NPU:0=SIM:gpu-like"), "--device-map NPU:0: SIM:gpu-like is of the kind GPU; name it GPU:0");
  starts(fault("GPU:0=SIM:no-such"), "--device-map GPU:0 (presets: SIM:gpu-like, ");
  starts(fault("GPU:0=SIM:gpu-like/1"), "--device-map GPU:0 (presets: ");
  EXPECT_NE(fault("GPU:0=SIM:no-such").find("SIM:no-such: "), std::string::npos);
}

}  // namespace
}  // namespace motley
