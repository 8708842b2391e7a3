#include "device/plugin.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>

namespace motley {
namespace {

constexpr uint32_t kDevicesPerPluginMax = 256;

// Entries without which a plugin cannot run a single segment.
bool has_required_entries(const motley_backend& api) {
  return api.enumerate && api.open && api.close && api.queue_create && api.queue_destroy && api.alloc && api.free &&
         api.pack && api.weight_free && api.query && api.compile && api.programs_free && api.enqueue &&
         api.event_status && api.event_wait && api.event_notify && api.event_release;
}

}  // namespace

Status to_status(motley_code code, const motley_error& error, std::string_view what) {
  if (code == MOTLEY_OK) return ok_status();
  const size_t length = strnlen(error.text, sizeof error.text);
  return Status(code, fmt::format("{}: {}", what, length > 0 ? std::string_view(error.text, length) : code_name(code)));
}

Result<std::unique_ptr<Plugin>> Plugin::open(const std::filesystem::path& file) {
  std::error_code failed;
  if (!std::filesystem::exists(file, failed)) return error(MOTLEY_NOT_FOUND, "{}: no such file", file.string());
  // An absolute path, so that the loader never searches elsewhere for a bare name.
  const std::filesystem::path absolute = std::filesystem::absolute(file, failed);
  void* library = dlopen(absolute.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return error(MOTLEY_FAILED_PRECONDITION, "{}", dlerror());
  const auto entry = reinterpret_cast<motley_backend_entry_fn>(dlsym(library, MOTLEY_BACKEND_ENTRY));
  const motley_backend* api = entry == nullptr ? nullptr : entry(MOTLEY_BACKEND_ABI);
  const char* why = nullptr;
  if (entry == nullptr) {
    why = "not a Motley plugin: it does not export " MOTLEY_BACKEND_ENTRY;
  } else if (api == nullptr || api->abi != MOTLEY_BACKEND_ABI || api->struct_size < sizeof(motley_backend)) {
    why = "made for another version of Motley's plugin interface; rebuild it";
  } else if (!has_required_entries(*api)) {
    why = "its table lacks a required entry";
  }
  if (why != nullptr) {
    dlclose(library);
    return error(MOTLEY_FAILED_PRECONDITION, "{}: {}", file.string(), why);
  }
  return std::unique_ptr<Plugin>(new Plugin(library, api, file));
}

Plugin::~Plugin() { dlclose(library_); }

Result<std::vector<motley_device_desc>> Plugin::enumerate() const {
  std::vector<motley_device_desc> devices(8);
  for (;;) {
    for (auto& device : devices) {
      device = {};
      device.struct_size = sizeof(motley_device_desc);
    }
    uint32_t count = 0;
    motley_error failure{};
    const motley_code code = api_->enumerate(devices.data(), static_cast<uint32_t>(devices.size()), &count, &failure);
    if (code != MOTLEY_OK) return to_status(code, failure, api_->name);
    if (count == 0) {
      failure.code = MOTLEY_NOT_FOUND;
      return to_status(MOTLEY_NOT_FOUND, failure, api_->name);
    }
    if (count <= devices.size()) {
      devices.resize(count);
      break;
    }
    if (count > kDevicesPerPluginMax) return error(MOTLEY_OUT_OF_RANGE, "{}: claims {} devices", api_->name, count);
    devices.resize(count);
  }
  for (auto& device : devices) {  // a plugin's text is not trusted to end
    device.family[sizeof device.family - 1] = '\0';
    device.vendor[sizeof device.vendor - 1] = '\0';
    device.model[sizeof device.model - 1] = '\0';
    device.variant[sizeof device.variant - 1] = '\0';
  }
  return devices;
}

}  // namespace motley
