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

// A comma-separated list, in its order, in any case, blanks allowed:
//   CPU:0, cpu           a device (0 if no number is given)
//   GPU:0-3              several
//   CPU:0/cores=0-3,8    a part of a host device; parts may not share a core
//   all, auto            every device that is not simulated and not a reference
//   SIM:gpu-like         a simulated device; several of one name are SIM:gpu-like/0, SIM:gpu-like/1, ...
//   SIM:FILE.toml        one that a file describes
// INVALID_ARGUMENT for an empty list, a doubled device or parts that overlap; NOT_FOUND says what there is.
Result<std::vector<ListedDevice>> parse_device_list(const DeviceRegistry& registry, std::string_view list);

// INVALID_ARGUMENT for two parts of one device, or a part and the whole, that share cores.
Status check_apart(const ListedDevice& a, const ListedDevice& b);

// The numbers of "0-3,8"; empty for any other text.
std::vector<int> cores_of(std::string_view text);

}  // namespace motley
