// Simulated devices under names of devices that are not there: --device-map "GPU:0=SIM:gpu-like,NPU:1=SIM:FILE.toml".
#pragma once

#include <string_view>

#include "base/status.hpp"
#include "device/registry.hpp"

namespace motley {

// Adds the names of `map` (empty: none) to the registry. They are simulated devices, and always shown as such; "auto"
// leaves them out. INVALID_ARGUMENT for a text that is no such list, a name given twice, one that a device of this
// machine has, one of another kind than its device, and a device behind it that is not simulated; NOT_FOUND says which
// presets there are.
Status map_devices(std::string_view map, DeviceRegistry* registry);

}  // namespace motley
