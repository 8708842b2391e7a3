#include "device/device_map.hpp"

#include <algorithm>
#include <cctype>

#include "base/quote.hpp"
#include "device/device_list.hpp"

namespace motley {
namespace {

constexpr size_t kNumberDigitsMax = 4;

std::string upper(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c != ' ' && c != '\t') out.push_back(static_cast<char>(std::toupper(static_cast<unsigned char>(c))));
  }
  return out;
}

std::string_view trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

// "GPU:0" and the like.
bool is_name(std::string_view name) {
  const size_t colon = name.find(':');
  const std::string_view family = name.substr(0, colon);
  if (colon == std::string_view::npos || (family != "CPU" && family != "GPU" && family != "NPU")) return false;
  const std::string_view number = name.substr(colon + 1);
  return !number.empty() && number.size() <= kNumberDigitsMax && (number.size() == 1 || number[0] != '0') &&
         std::all_of(number.begin(), number.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
}

const DeviceRegistry::Entry* find_name(const DeviceRegistry& registry, const std::string& name) {
  for (const auto& entry : registry.devices()) {
    if (entry.description.name == name) return &entry;
  }
  return nullptr;
}

std::string presets_of(const DeviceRegistry& registry) {
  std::string names;
  for (const auto& entry : registry.devices()) {
    if (entry.description.name.starts_with("SIM:")) names += (names.empty() ? "" : ", ") + entry.description.name;
  }
  return names.empty() ? "none" : names;
}

Status map_device(std::string_view item, DeviceRegistry* registry) {
  const size_t at = item.find('=');
  if (at == std::string_view::npos)
    return invalid_argument("{} is not NAME=SIM:PRESET, as in GPU:0=SIM:gpu-like", in_quotes(item));
  const std::string name = upper(item.substr(0, at));
  const std::string_view device = trim(item.substr(at + 1));
  if (!is_name(name))
    return invalid_argument("{} is not a name to give; take one such as GPU:0 or NPU:1", in_quotes(item.substr(0, at)));
  if (!upper(device).starts_with("SIM:")) {
    return invalid_argument("{}: {} is not simulated; only a simulated device can stand for another, such as {}=SIM:{}",
                            name, in_quotes(device), name, "gpu-like");
  }
  if (const DeviceRegistry::Entry* there = find_name(*registry, name); there != nullptr) {
    if (!there->stands_for.empty()) return invalid_argument("{} is given twice", name);
    return invalid_argument("{} is a device of this machine, which would be hidden; take another number", name);
  }
  auto found = find_simulated(*registry, device.substr(4));
  if (!found.ok()) {
    const bool unknown = found.error().code() == MOTLEY_NOT_FOUND;
    return found.error().annotate(unknown ? fmt::format("{} (presets: {})", name, presets_of(*registry)) : name);
  }
  DeviceRegistry::Entry entry = *std::move(found);
  const std::string kind = upper(kind_name(entry.description.desc.kind));
  if (!name.starts_with(kind + ":"))
    return invalid_argument("{}: {} is of the kind {}; name it {}:0 or the like", name, device, kind, kind);
  entry.stands_for = entry.description.name;
  entry.description.name = name;
  registry->add(std::move(entry));
  return ok_status();
}

}  // namespace

Status map_devices(std::string_view map, DeviceRegistry* registry) {
  if (trim(map).empty()) return ok_status();
  size_t begin = 0;
  while (begin <= map.size()) {
    const size_t end = std::min(map.find(',', begin), map.size());
    const Status status = map_device(trim(map.substr(begin, end - begin)), registry);
    if (!status.ok()) return Status(status.code(), "--device-map " + status.message());
    begin = end + 1;
  }
  return ok_status();
}

}  // namespace motley
