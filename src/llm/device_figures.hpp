// What the devices of this machine can do, for `motley devices`: measured once and kept beside the plans' figures.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "device/registry.hpp"
#include "llm/planning.hpp"
#include "runtime/device_figures.hpp"

namespace motley {

struct MachineFigures {
  std::vector<DeviceFigures> devices;  // in the registry's order
  std::vector<LinkFigures> links;      // between devices that are not simulated
};

// From the cache, or measured now and kept (with `again` in any case): a few seconds a device.
Result<MachineFigures> machine_figures(const DeviceRegistry& registry, const Progress& progress, bool again = false);

std::vector<std::string> dtype_names(uint64_t mask);       // of motley_device_desc.weight_dtypes
std::vector<std::string> capability_names(uint64_t caps);  // of motley_device_desc.caps

}  // namespace motley
