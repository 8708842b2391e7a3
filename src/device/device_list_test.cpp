#include "device/device_list.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/config.hpp"

namespace motley {
namespace {

class DeviceList : public ::testing::Test {
 protected:
  std::string names(std::string_view list) {
    const auto devices = parse_device_list(registry_, list);
    if (!devices.ok()) return devices.error().message();
    std::string out;
    for (const auto& device : *devices) out += (out.empty() ? "" : " ") + device.description.name;
    return out;
  }
  motley_code code(std::string_view list) { return parse_device_list(registry_, list).error().code(); }
  DeviceRegistry registry_ = DeviceRegistry::scan(plugin_directory());
};

TEST_F(DeviceList, NamesInAnyCaseWithBlanks_AreCanonical) {
  EXPECT_EQ(names("cpu:0, Ref:0"), "CPU:0 REF:0");
  EXPECT_EQ(names("cpu"), "CPU:0");
  EXPECT_EQ(names("CPU:0-0"), "CPU:0");
  EXPECT_EQ(names("ALL"), "CPU:0");
  EXPECT_EQ(names("auto"), "CPU:0");
}

TEST_F(DeviceList, PartsOfTheCpu_KeepTheirCoresTogether) {
  EXPECT_EQ(names("CPU:0/cores=0,cpu:0/CORES=1"), "CPU:0/cores=0 CPU:0/cores=1");
  EXPECT_EQ(names("CPU:0/cores=0,2-3,REF:0"), "CPU:0/cores=0,2-3 REF:0");
  const auto parts = parse_device_list(registry_, "CPU:0/cores=0,2-3");
  ASSERT_TRUE(parts.ok());
  EXPECT_EQ((*parts)[0].cores, "0,2-3");
  EXPECT_EQ((*parts)[0].description.desc.threads, 3u);
}

TEST_F(DeviceList, SimulatedOnesOfOneName_AreNumbered) {
  EXPECT_EQ(names("sim:GPU-like"), "SIM:gpu-like");
  EXPECT_EQ(names("SIM:gpu-like,sim:GPU-LIKE,SIM:igpu-like"), "SIM:gpu-like/0 SIM:gpu-like/1 SIM:igpu-like");
  EXPECT_EQ(names("SIM:gpu-like/1"), "SIM:gpu-like/1");
  EXPECT_EQ(names("SIM:gpu-like,SIM:gpu-like/0"), "SIM:gpu-like/1 SIM:gpu-like/0");
  EXPECT_EQ(names("SIM:gpu-like/0,sim:gpu-like/0"), "device SIM:gpu-like/0 is listed twice");
  EXPECT_EQ(code("SIM:gpu-like/0-1"), MOTLEY_NOT_FOUND);
}

TEST_F(DeviceList, DeviceFiles_AreOneHoweverSpelled) {
  const std::filesystem::path folder = ::testing::TempDir();
  const std::string file = folder / "a.toml", other = folder / "." / "a.toml";
  std::ofstream(file) << "memory_bytes = 1073741824\nbandwidth_gb_s = 40\ngflops = {f32 = 50}\n";
  EXPECT_EQ(names("SIM:" + file + ",SIM:" + file), "SIM:" + file + "/0 SIM:" + file + "/1");
  EXPECT_EQ(names("SIM:" + file + "/3"), "SIM:" + file + "/3");
  EXPECT_EQ(names("SIM:" + file + "/0,SIM:" + file + "/0"), "device SIM:" + file + "/0 is listed twice");
  EXPECT_EQ(names("SIM:" + file + ",SIM:" + other),
            "devices SIM:" + file + " and SIM:" + other + " are one file; write it alike where several are meant");
}

TEST_F(DeviceList, BesideWhatIsThere_NumbersGoOn) {
  const std::vector<std::string> present = {"CPU:0", "SIM:gpu-like"};
  const auto more = parse_device_lists(registry_, {"SIM:gpu-like", "sim:gpu-like,SIM:igpu-like"}, present);
  ASSERT_TRUE(more.ok()) << more.error().message();
  EXPECT_EQ((*more)[0].description.name, "SIM:gpu-like/1");
  EXPECT_EQ((*more)[1].description.name, "SIM:gpu-like/2");
  EXPECT_EQ((*more)[2].description.name, "SIM:igpu-like");
  const auto taken = parse_device_lists(registry_, {"SIM:gpu-like/0"}, present);
  EXPECT_EQ(taken.error().code(), MOTLEY_ALREADY_EXISTS);
  EXPECT_EQ(taken.error().message(), "device SIM:gpu-like/0 is in use already, as SIM:gpu-like");
}

TEST_F(DeviceList, WhatContradictsItself_IsRefusedInOneLine) {
  EXPECT_EQ(names("CPU:0,cpu:0"), "device CPU:0 is listed twice");
  EXPECT_EQ(names("CPU:0/cores=0,CPU:0"), "devices CPU:0/cores=0 and CPU:0 share cores");
  EXPECT_EQ(names("CPU:0/cores=0-1,CPU:0/cores=1-2"), "devices CPU:0/cores=0-1 and CPU:0/cores=1-2 share cores");
  EXPECT_EQ(code(""), MOTLEY_NOT_FOUND);
  EXPECT_EQ(code("CPU:0,,"), MOTLEY_NOT_FOUND);
  EXPECT_EQ(code("GPU:0-3"), MOTLEY_NOT_FOUND);
  for (const char* cores : {"", "x", "3-1", "1-", "-1", "1,,2", "99999999999", "0-5000"})
    EXPECT_EQ(code(std::string("CPU:0/cores=") + cores),
              cores[0] == '1' && cores[1] == ',' ? MOTLEY_NOT_FOUND : MOTLEY_INVALID_ARGUMENT)
        << cores;
  EXPECT_EQ(code("SIM:no-such"), MOTLEY_NOT_FOUND);
}

}  // namespace
}  // namespace motley
