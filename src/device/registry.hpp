// DeviceRegistry: every device of this machine that some plugin drives, by name.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.hpp"
#include "device/description.hpp"
#include "device/plugin.hpp"

namespace motley {

// Immutable once it is scanned and its names are mapped; safe from any thread. Must outlive the devices opened through
// it.
class DeviceRegistry {
 public:
  struct Entry {
    DeviceDescription description;
    const Plugin* plugin = nullptr;
    std::string spec;        // "FAMILY:spec" of a device that is described, not enumerated; else ""
    std::string stands_for;  // "SIM:gpu-like": of a name that device_map.hpp gave; else ""
  };

  // Loads every plugin of the folder. Never fails: what did not load stands in absent().
  static DeviceRegistry scan(const std::filesystem::path& folder);

  // One more name, which no device has.
  void add(Entry entry) { devices_.push_back(std::move(entry)); }

  const std::vector<Entry>& devices() const { return devices_; }
  const std::vector<AbsentDevice>& absent() const { return absent_; }
  // By name in any case ("cpu:0"; "cpu" means "CPU:0"). NOT_FOUND says what there is.
  Result<const Entry*> find(std::string_view name) const;
  // A device that no plugin lists but one can describe ("FAMILY:spec"). The plugin's words on failure; NOT_FOUND where
  // no plugin has the family.
  Result<Entry> describe(std::string_view family, std::string_view spec) const;

 private:
  void add_plugin(const std::filesystem::path& file);
  void name_absent_kinds(const std::filesystem::path& folder);

  std::vector<std::unique_ptr<Plugin>> plugins_;
  std::vector<Entry> devices_;
  std::vector<AbsentDevice> absent_;
};

}  // namespace motley
