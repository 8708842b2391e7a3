// The devices that a user names, as in --devices "GPU:0-1,CPU:0/cores=0-3,SIM:gpu-like".
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.hpp"
#include "device/description.hpp"
#include "device/registry.hpp"

namespace motley {

// A device under the name by which all output calls it. A value; the plugin is the registry's.
struct ListedDevice {
  DeviceDescription description;  // name: canonical, e.g. "CPU:0/cores=0-3", "SIM:gpu-like/1"
  const Plugin* plugin = nullptr;
  std::string cores;  // "" = all of the device's
  std::string spec;   // "FAMILY:spec" of a device that is described, not enumerated; else ""
};

// A preset's name in any case, or a device file, without "SIM:"; NOT_FOUND with the plugin's words.
Result<DeviceRegistry::Entry> find_simulated(const DeviceRegistry& registry, std::string_view name);

// A comma-separated list, in its order, in any case, blanks allowed:
//   CPU:0, cpu           a device (0 if no number is given)
//   GPU:0-3              several
//   CPU:0/cores=0-3,8    a part of a host device; parts may not share a core
//   all, auto            every device that is not simulated and not a reference
//   SIM:gpu-like         a simulated device; several of one name are SIM:gpu-like/0, SIM:gpu-like/1, ...
//   SIM:gpu-like/1       the same with a number of its own
//   SIM:FILE.toml        one that a file describes; several are numbered in the same way
// INVALID_ARGUMENT for an empty list, a doubled device, two spellings of a file, parts that overlap, or where a name of
// device_map.hpp is not listed; NOT_FOUND says what there is.
Result<std::vector<ListedDevice>> parse_device_list(const DeviceRegistry& registry, std::string_view list);

// Several lists as one, beside devices that are there under the names `present`: a simulated one of a name that is
// taken gets the next number that is free (one without a number counts as 0). ALREADY_EXISTS for a number that is
// taken.
Result<std::vector<ListedDevice>> parse_device_lists(const DeviceRegistry& registry,
                                                     const std::vector<std::string>& lists,
                                                     const std::vector<std::string>& present);

// INVALID_ARGUMENT for two parts of one device, or a part and the whole, that share cores; for one file spelled twice.
Status check_apart(const ListedDevice& a, const ListedDevice& b);

// The numbers of "0-3,8"; empty for any other text.
std::vector<int> cores_of(std::string_view text);

}  // namespace motley
