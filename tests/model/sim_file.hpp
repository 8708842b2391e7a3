// A simulated device that a test makes up: a device file in a temporary folder.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/check.hpp"
#include "base/config.hpp"
#include "device/device_list.hpp"
#include "device/handles.hpp"
#include "device/registry.hpp"

namespace motley::testing {

// Every device that it opens is closed before it goes.
class SimFile {
 public:
  // `text`: as docs/devices.md has it.
  explicit SimFile(const std::string& text) : registry_(DeviceRegistry::scan(plugin_directory())) {
    std::string pattern = (std::filesystem::temp_directory_path() / "motley-sim-XXXXXX").string();
    CHECK(mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
    std::ofstream(path()) << text;
    auto listed = parse_device_list(registry_, "SIM:" + path().string());
    CHECK(listed.ok(), "{}", listed.error().message());
    listed_ = std::move(listed->front());
  }
  ~SimFile() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  SimFile(const SimFile&) = delete;
  SimFile& operator=(const SimFile&) = delete;

  Device open() const {
    auto device = Device::open(*listed_.plugin, listed_.description.desc.index, {});
    CHECK(device.ok(), "{}", device.error().message());
    return *std::move(device);
  }

 private:
  std::filesystem::path path() const { return folder_ / "device.toml"; }

  DeviceRegistry registry_;
  std::filesystem::path folder_;
  ListedDevice listed_;
};

}  // namespace motley::testing
