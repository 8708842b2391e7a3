#include "device/registry.hpp"

#include <algorithm>
#include <array>
#include <cctype>

namespace motley {
namespace {

std::string canonical_name(std::string_view text) {
  std::string name;
  for (const char c : text) {
    if (c != ' ' && c != '\t') name.push_back(static_cast<char>(std::toupper(static_cast<unsigned char>(c))));
  }
  if (!name.empty() && name.find(':') == std::string::npos) name += ":0";
  return name;
}

// Which kind a plugin file of that name would have brought, for the message when it does not load.
// Of a file `cuda.so` or `libmotley_cuda.so`.
std::string kind_of_file(const std::filesystem::path& file) {
  constexpr std::string_view kPrefix = "libmotley_";
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 5> kKinds = {
      {{"cpu", "cpu"}, {"ref", "cpu"}, {"cuda", "gpu"}, {"vulkan", "gpu"}, {"openvino", "npu"}}};
  std::string name = file.stem().string();
  if (name.compare(0, kPrefix.size(), kPrefix) == 0) name.erase(0, kPrefix.size());
  for (const auto& [stem, kind] : kKinds) {
    if (name == stem) return std::string(kind);
  }
  return name;
}

}  // namespace

std::string shown_name(const DeviceDescription& device) {
  const bool says_so = device.desc.simulated == 0 || device.name.starts_with("SIM:");
  return says_so ? device.name : device.name + " SIMULATED";
}

std::string_view kind_name(int32_t kind) {
  static constexpr std::array<std::string_view, 3> kNames = {"cpu", "gpu", "npu"};
  return kind >= 0 && kind < 3 ? kNames[static_cast<size_t>(kind)] : "unknown";
}

std::string_view tier_name(int32_t tier) {
  static constexpr std::array<std::string_view, 3> kNames = {"measured", "vendor-runtime", "contract-tested"};
  return tier >= 0 && tier < 3 ? kNames[static_cast<size_t>(tier)] : "unknown";
}

DeviceRegistry DeviceRegistry::scan(const std::filesystem::path& folder) {
  DeviceRegistry registry;
  std::vector<std::filesystem::path> files;
  std::error_code failed;
  for (const auto& entry : std::filesystem::directory_iterator(folder, failed)) {
    if (entry.path().extension() == ".so") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  for (const auto& file : files) registry.add_plugin(file);
  registry.name_absent_kinds(folder);
  return registry;
}

void DeviceRegistry::add_plugin(const std::filesystem::path& file) {
  auto plugin = Plugin::open(file);
  if (!plugin.ok()) {
    absent_.push_back({kind_of_file(file), plugin.error().message()});
    return;
  }
  std::string left_out;
  auto found = (*plugin)->enumerate(&left_out);
  if (!found.ok()) {
    absent_.push_back({kind_of_file(file), found.error().message()});
    return;
  }
  for (const auto& desc : *found) {
    const std::string name = desc.label[0] != '\0' ? fmt::format("{}:{}", desc.family, desc.label)
                                                   : fmt::format("{}:{}", desc.family, desc.index);
    const bool taken = std::any_of(devices_.begin(), devices_.end(),
                                   [&](const Entry& entry) { return entry.description.name == name; });
    if (taken) {
      absent_.push_back({std::string(kind_name(desc.kind)),
                         fmt::format("{}: {} is already driven by another plugin", file.filename().string(), name)});
      continue;
    }
    devices_.push_back({{name, desc}, plugin->get(), {}, {}});
  }
  if (!left_out.empty()) absent_.push_back({kind_of_file(file), left_out});
  plugins_.push_back(*std::move(plugin));
}

void DeviceRegistry::name_absent_kinds(const std::filesystem::path& folder) {
  static constexpr std::array<std::string_view, 3> kFamilies = {"CPU", "GPU", "NPU"};
  for (size_t kind = 0; kind < kFamilies.size(); ++kind) {
    const std::string word(kind_name(static_cast<int32_t>(kind)));
    const bool present = std::any_of(devices_.begin(), devices_.end(), [&](const Entry& entry) {
      return entry.description.desc.family == kFamilies[kind];
    });
    const bool explained =
        std::any_of(absent_.begin(), absent_.end(), [&](const AbsentDevice& absent) { return absent.kind == word; });
    if (!present && !explained) {
      absent_.push_back({word, fmt::format("no plugin for {} devices in {}", word, folder.string())});
    }
  }
}

Result<const DeviceRegistry::Entry*> DeviceRegistry::find(std::string_view name) const {
  const std::string wanted = canonical_name(name);
  std::string known;
  for (const Entry& entry : devices_) {
    if (entry.description.name == wanted) return &entry;
    known += (known.empty() ? "" : ", ") + entry.description.name;
  }
  std::string reasons;
  for (const AbsentDevice& absent : absent_) reasons += fmt::format("; {}: {}", absent.kind, absent.reason);
  return error(MOTLEY_NOT_FOUND, "device {} is not there; this machine has {}{}", wanted.empty() ? "''" : wanted,
               known.empty() ? "none" : known, reasons);
}

Result<DeviceRegistry::Entry> DeviceRegistry::describe(std::string_view family, std::string_view spec) const {
  for (const Entry& entry : devices_) {
    const motley_backend& api = entry.plugin->api();
    if (family != entry.description.desc.family || api.describe == nullptr) continue;
    const std::string text(spec);
    const auto desc = entry.plugin->describe(text);
    if (!desc.ok()) {  // which the plugin may have named already
      const Status& status = desc.error();
      const bool twice = status.message().starts_with(fmt::format("{0}: {0}", text));
      return Status(status.code(), fmt::format("{}:{}", family, status.message().substr(twice ? text.size() + 2 : 0)));
    }
    std::string name = fmt::format("{}:{}", family, spec);
    return Entry{{name, *desc}, entry.plugin, name, {}};
  }
  return error(MOTLEY_NOT_FOUND, "device {}:{} is not there, and no plugin can make it", family, spec);
}

}  // namespace motley
