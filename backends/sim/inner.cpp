#include "sim/inner.hpp"

#include <dlfcn.h>

#include "kit/kit.hpp"

namespace motley::sim {
namespace {

using kit::fail;

const motley_backend* load() {
  Dl_info own{};
  if (!dladdr(reinterpret_cast<const void*>(&call), &own) || !own.dli_fname)
    fail(MOTLEY_INTERNAL, "cannot find this plugin's own file");
  std::string path = own.dli_fname;
  const size_t slash = path.rfind('/');
  path = (slash == std::string::npos ? std::string(".") : path.substr(0, slash)) + "/cpu.so";
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays: its table is used until the process ends
  if (!library)
    fail(MOTLEY_NOT_FOUND, "simulated devices compute with the cpu plugin, which did not load: %s", dlerror());
  const auto entry = reinterpret_cast<motley_backend_entry_fn>(dlsym(library, MOTLEY_BACKEND_ENTRY));
  const motley_backend* table = entry ? entry(MOTLEY_BACKEND_ABI) : nullptr;
  if (!table) fail(MOTLEY_FAILED_PRECONDITION, "%s is of another version; install plugins of one", path.c_str());
  return table;
}

}  // namespace

const motley_backend& inner() {
  static const motley_backend* const table = load();
  return *table;
}

motley_device_desc inner_desc() {
  motley_device_desc desc{};
  desc.struct_size = sizeof desc;
  uint32_t count = 0;
  call([&](motley_error* error) { return inner().enumerate(&desc, 1, &count, error); });
  if (count == 0) fail(MOTLEY_NOT_FOUND, "the cpu plugin found no CPU");
  return desc;
}

void call(const std::function<motley_code(motley_error*)>& entry) {
  motley_error error{};
  const motley_code code = entry(&error);
  if (code != MOTLEY_OK) throw kit::Error(code, error.text);
}

}  // namespace motley::sim
