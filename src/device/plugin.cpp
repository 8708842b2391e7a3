#include "device/plugin.hpp"

#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <span>

namespace motley {
namespace {

constexpr uint32_t kDevicesPerPluginMax = 256;

// Entries without which a plugin cannot run a single segment.
bool has_required_entries(const motley_backend& api) {
  return api.enumerate && api.open && api.close && api.queue_create && api.queue_destroy && api.alloc && api.free &&
         api.pack && api.weight_free && api.query && api.compile && api.programs_free && api.enqueue &&
         api.event_status && api.event_wait && api.event_notify && api.event_release;
}

// The loader maps what a library's program headers say and touches it, and where the file ends before that the process
// dies of it (SIGBUS). So they are held against the file's size first. Null: the file is as long as it says. Layout:
// the System V ABI, "Object Files".
const char* damage_of(const std::filesystem::path& file) {
  constexpr const char* kTruncated = "the file is cut short; build or install it again";
  std::error_code failed;
  const uint64_t size = std::filesystem::file_size(file, failed);
  std::ifstream in(file, std::ios::binary);
  Elf64_Ehdr header{};
  if (failed || !in.read(reinterpret_cast<char*>(&header), sizeof header)) return "cannot be read as a library";
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
      header.e_phentsize != sizeof(Elf64_Phdr)) {
    return "not a shared library of this kind of machine";
  }
  in.seekg(static_cast<std::streamoff>(std::min<uint64_t>(header.e_phoff, size)));
  for (int i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr part{};
    if (!in.read(reinterpret_cast<char*>(&part), sizeof part)) return kTruncated;
    if (part.p_offset > size || part.p_filesz > size - part.p_offset) return kTruncated;
  }
  return nullptr;
}

// A plugin's text is not trusted to end.
void end_texts(motley_device_desc* device) {
  for (const std::span<char> text :
       {std::span<char>(device->family), std::span<char>(device->label), std::span<char>(device->vendor),
        std::span<char>(device->model), std::span<char>(device->variant), std::span<char>(device->driver)})
    text.back() = '\0';
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
  if (const char* damage = damage_of(file)) return error(MOTLEY_FAILED_PRECONDITION, "{}: {}", file.string(), damage);
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

Result<std::vector<motley_device_desc>> Plugin::enumerate(std::string* left_out) const {
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
      if (left_out != nullptr && failure.text[0] != '\0') {
        *left_out = to_status(MOTLEY_NOT_FOUND, failure, api_->name).message();
      }
      break;
    }
    if (count > kDevicesPerPluginMax) return error(MOTLEY_OUT_OF_RANGE, "{}: claims {} devices", api_->name, count);
    devices.resize(count);
  }
  for (auto& device : devices) end_texts(&device);
  return devices;
}

Result<motley_device_desc> Plugin::describe(const std::string& spec) const {
  if (api_->describe == nullptr) return error(MOTLEY_UNIMPLEMENTED, "{} describes no devices", api_->name);
  motley_device_desc device{};
  device.struct_size = sizeof device;
  motley_error failure{};
  RETURN_IF_ERROR(to_status(api_->describe(spec.c_str(), &device, &failure), failure, spec));
  end_texts(&device);
  return device;
}

}  // namespace motley
