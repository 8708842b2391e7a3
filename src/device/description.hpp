// A device as a value: what it is called and what its plugin says of it. Planner and printers read nothing else.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "motley/backend.h"

namespace motley {

struct DeviceDescription {
  std::string name;  // "CPU:0"
  motley_device_desc desc{};
};

// An expected kind of device that is not there, and why.
struct AbsentDevice {
  std::string kind;  // "cpu", "gpu", "npu"
  std::string reason;
};

// Memory that the host does not see, and no part of the host's own, as a simulated device's is.
inline bool has_own_memory(const motley_device_desc& desc) {
  return desc.kind != MOTLEY_KIND_CPU && desc.simulated == 0 && (desc.caps & MOTLEY_CAP_HOST_MEMORY) == 0;
}

// The name, and "SIMULATED" where the name does not tell.
std::string shown_name(const DeviceDescription& device);

std::string_view kind_name(int32_t kind);  // "cpu", "gpu", "npu"
std::string_view tier_name(int32_t tier);  // "measured", "vendor-runtime", "contract-tested"

}  // namespace motley
