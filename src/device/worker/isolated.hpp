// Devices in worker processes, as values and for the table's users (Device::open_isolated is in handles.hpp).
#pragma once

#include <filesystem>
#include <vector>

#include "base/status.hpp"
#include "device/worker/worker_options.hpp"
#include "device/worker/worker_process.hpp"
#include "motley/backend.h"

namespace motley {

// The plugin's devices, asked in a process of its own, so that nothing of the plugin runs in this one.
Result<std::vector<motley_device_desc>> enumerate_isolated(const std::filesystem::path& plugin_file,
                                                           const WorkerOptions& options);

// Behind `api` a device like any other; api->close(device) frees all three. Every object made of it goes first.
struct IsolatedDevice {
  const motley_backend* api;
  motley_device* device;
  WorkerProcess* process;
};
Result<IsolatedDevice> open_isolated(const std::filesystem::path& plugin_file, uint32_t index,
                                     const motley_open_options& options, const WorkerOptions& worker);

}  // namespace motley
