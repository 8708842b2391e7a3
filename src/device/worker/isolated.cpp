#include "device/worker/isolated.hpp"

#include "device/worker/remote_device.hpp"

namespace motley {

Result<std::vector<motley_device_desc>> enumerate_isolated(const std::filesystem::path& plugin_file,
                                                           const WorkerOptions& options) {
  ASSIGN_OR_RETURN(const auto device, worker::RemoteDevice::start(plugin_file, options, nullptr, nullptr));
  return device->devices();
}

Result<IsolatedDevice> open_isolated(const std::filesystem::path& plugin_file, uint32_t index,
                                     const motley_open_options& options, const WorkerOptions& worker) {
  if (options.struct_size < sizeof options) return invalid_argument("open: the options are of another version");
  ASSIGN_OR_RETURN(auto device, worker::RemoteDevice::start(plugin_file, worker, options.log, options.log_user));
  RETURN_IF_ERROR(device->open(index, options));
  IsolatedDevice opened{&device->table(), reinterpret_cast<motley_device*>(device.get()), &device->process()};
  static_cast<void>(device.release());  // now close()'s
  return opened;
}

}  // namespace motley
