#include "device/device_list.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/quote.hpp"

namespace motley {
namespace {

constexpr std::string_view kCores = "/cores=";
constexpr std::string_view kDeviceFile = ".toml";
constexpr size_t kDevicesMax = 64;
constexpr int kCoreMax = 4095;

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

struct Span {
  int first = 0, last = 0;
};

// "3" or "0-3".
std::optional<Span> parse_span(std::string_view text) {
  Span span;
  const char* end = text.data() + text.size();
  auto [at, failure] = std::from_chars(text.data(), end, span.first);
  if (failure != std::errc() || span.first < 0) return std::nullopt;
  span.last = span.first;
  if (at != end) {
    if (*at != '-') return std::nullopt;
    const auto second = std::from_chars(at + 1, end, span.last);
    if (second.ec != std::errc() || second.ptr != end || at + 1 == end) return std::nullopt;
  }
  if (span.last < span.first || span.last > kCoreMax) return std::nullopt;
  return span;
}

struct Numbered {
  std::string name;
  std::optional<int> number;
};

// "gpu-like/1" to "gpu-like" and 1; any other text stays whole.
Numbered split_number(const std::string& text) {
  const size_t at = text.rfind('/');
  if (at == std::string::npos || at == 0) return {text, std::nullopt};
  const auto span = parse_span(std::string_view(text).substr(at + 1));
  if (!span || text.find('-', at) != std::string::npos) return {text, std::nullopt};
  return {text.substr(0, at), span->first};
}

std::optional<std::set<int>> parse_cores(std::string_view text) {
  std::set<int> cores;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const auto span = parse_span(text.substr(begin, end - begin));
    if (!span) return std::nullopt;
    for (int core = span->first; core <= span->last; ++core) cores.insert(core);
    begin = end + 1;
  }
  return cores;
}

// The list's items: a number or span behind "cores=" belongs to it, commas included.
std::vector<std::string> items_of(std::string_view list) {
  std::vector<std::string> items;
  size_t begin = 0;
  while (begin <= list.size()) {
    const size_t end = std::min(list.find(',', begin), list.size());
    const std::string_view item = trim(list.substr(begin, end - begin));
    const bool more_cores = !items.empty() && lower(items.back()).find(kCores) != std::string::npos && parse_span(item);
    if (more_cores) {
      items.back() += "," + std::string(item);
    } else {
      items.emplace_back(item);
    }
    begin = end + 1;
  }
  return items;
}

ListedDevice listed(const DeviceRegistry::Entry& entry) { return {entry.description, entry.plugin, {}, entry.spec}; }

// One that is named by its preset or file, of which there may be several.
bool named_by_spec(const DeviceDescription& device) { return device.name.starts_with("SIM:"); }

class ListParser {
 public:
  explicit ListParser(const DeviceRegistry& registry) : registry_(registry) {}

  Status add(const std::string& item) {
    if (lower(item) == "all" || lower(item) == "auto") return add_all();
    if (lower(item).starts_with("sim:")) return add_simulated(item.substr(4));
    const size_t cores = lower(item).find(kCores);
    if (cores != std::string::npos) return add_part(item.substr(0, cores), item.substr(cores + kCores.size()));
    const size_t colon = item.find(':');
    const auto span = colon == std::string::npos ? std::nullopt : parse_span(std::string_view(item).substr(colon + 1));
    if (!span || item.find('-') == std::string::npos) return add_named(item);
    for (int index = span->first; index <= span->last; ++index)
      RETURN_IF_ERROR(add_named(item.substr(0, colon + 1) + std::to_string(index)));
    return ok_status();
  }

  // Several of one simulated name are numbered, as they say or by the first numbers that are free; nothing is doubled.
  Result<std::vector<ListedDevice>> finish(const std::vector<std::string>& present) {
    std::map<std::string, std::map<int, std::string>> taken;  // numbers of a name, and who has them
    for (const std::string& name : present) {
      const Numbered one = split_number(name);
      taken[one.name][one.number.value_or(0)] = name;
    }
    std::map<std::string, int> count;
    for (size_t i = 0; i < devices_.size(); ++i) {
      const std::string& name = devices_[i].description.name;
      ++count[name];
      if (const auto number = numbers_.find(i); number != numbers_.end())
        RETURN_IF_ERROR(take_number(name, number->second, &taken[name]));
    }
    for (size_t i = 0; i < devices_.size(); ++i) {
      std::string& name = devices_[i].description.name;
      const bool several = named_by_spec(devices_[i].description), numbered = numbers_.contains(i);
      if (!several && count[name] > 1) return invalid_argument("device {} is listed twice", name);
      if (!several || (!numbered && count[name] == 1 && !taken.contains(name))) continue;
      int number = numbered ? numbers_[i] : 0;
      while (!numbered && !taken[name].emplace(number, name).second) ++number;
      name += "/" + std::to_string(number);
    }
    RETURN_IF_ERROR(check_parts());
    if (devices_.size() > kDevicesMax)
      return invalid_argument("{} devices are listed; at most {} work together", devices_.size(), kDevicesMax);
    return std::move(devices_);
  }

 private:
  static Status take_number(const std::string& name, int number, std::map<int, std::string>* taken) {
    const std::string numbered = fmt::format("{}/{}", name, number);
    const auto [holder, free] = taken->emplace(number, "");
    if (free) return ok_status();
    if (holder->second.empty()) return invalid_argument("device {} is listed twice", numbered);
    return error(MOTLEY_ALREADY_EXISTS, "device {} is in use already{}", numbered,
                 holder->second == numbered ? "" : ", as " + holder->second);
  }

  Status add_all() {
    const size_t before = devices_.size();
    for (const auto& entry : registry_.devices()) {
      const std::string_view family = entry.description.desc.family;
      if (entry.description.desc.simulated == 0 && family != "REF") devices_.push_back(listed(entry));
    }
    if (devices_.size() > before) return ok_status();
    return registry_.find("CPU:0").error();
  }

  Status add_named(const std::string& name) {
    ASSIGN_OR_RETURN(const DeviceRegistry::Entry* entry, registry_.find(name));
    devices_.push_back(listed(*entry));
    return ok_status();
  }

  Status add_part(const std::string& name, const std::string& cores) {
    ASSIGN_OR_RETURN(const DeviceRegistry::Entry* entry, registry_.find(name));
    const auto parsed = parse_cores(cores);
    if (!parsed) {
      return invalid_argument("{}: cores are named as in {}/cores=0-3,8, not {}", entry->description.name,
                              entry->description.name, in_quotes(cores));
    }
    if (entry->description.desc.threads == 0)
      return invalid_argument("{} has no cores to name; list it whole", entry->description.name);
    ListedDevice part = listed(*entry);
    part.cores = cores;
    part.description.name += std::string(kCores) + cores;
    part.description.desc.threads = static_cast<uint32_t>(parsed->size());
    devices_.push_back(std::move(part));
    return ok_status();
  }

  // A preset or a file, which may have a number behind it.
  Status add_simulated(const std::string& spec) {
    const Numbered one = split_number(spec);
    const auto preset = find_simulated(registry_, one.name);
    const bool numbered =
        one.number && ((preset.ok() && preset->spec.empty()) || lower(one.name).ends_with(kDeviceFile));
    ASSIGN_OR_RETURN(const auto entry, find_simulated(registry_, numbered ? one.name : spec));
    if (numbered) numbers_[devices_.size()] = *one.number;
    devices_.push_back(listed(entry));
    return ok_status();
  }

  // Parts of one device may not share a core with one another or with the whole.
  Status check_parts() const {
    for (size_t i = 0; i < devices_.size(); ++i) {
      for (size_t j = i + 1; j < devices_.size(); ++j) RETURN_IF_ERROR(check_apart(devices_[i], devices_[j]));
    }
    return ok_status();
  }

  const DeviceRegistry& registry_;
  std::vector<ListedDevice> devices_;
  std::map<size_t, int> numbers_;  // that devices have been given, by their place in the list
};

// Two spellings of one device file.
bool same_file(const std::string& a, const std::string& b) {
  std::error_code failed;
  return a != b && !a.empty() && !b.empty() &&
         std::filesystem::equivalent(a.substr(a.find(':') + 1), b.substr(b.find(':') + 1), failed);
}

}  // namespace

Result<DeviceRegistry::Entry> find_simulated(const DeviceRegistry& registry, std::string_view name) {
  const std::string wanted = "sim:" + lower(name);
  for (const auto& entry : registry.devices()) {
    if (lower(entry.description.name) == wanted) return entry;
  }
  return registry.describe("SIM", name);
}

Result<std::vector<ListedDevice>> parse_device_list(const DeviceRegistry& registry, std::string_view list) {
  ASSIGN_OR_RETURN(auto devices, parse_device_lists(registry, {std::string(list)}, {}));
  for (const auto& entry : registry.devices()) {
    const std::string& name = entry.description.name;
    const bool used = std::any_of(devices.begin(), devices.end(),
                                  [&](const ListedDevice& device) { return device.description.name == name; });
    if (entry.stands_for.empty() || used) continue;
    return invalid_argument("--device-map {}={}: {} is not listed in --devices; list it, or leave it out of the map",
                            name, entry.stands_for, name);
  }
  return devices;
}

Result<std::vector<ListedDevice>> parse_device_lists(const DeviceRegistry& registry,
                                                     const std::vector<std::string>& lists,
                                                     const std::vector<std::string>& present) {
  ListParser parser(registry);
  for (const std::string& list : lists) {
    for (const std::string& item : items_of(list)) RETURN_IF_ERROR(parser.add(item));
  }
  return parser.finish(present);
}

Status check_apart(const ListedDevice& a, const ListedDevice& b) {
  if (same_file(a.spec, b.spec)) {
    return invalid_argument("devices {} and {} are one file; write it alike where several are meant",
                            a.description.name, b.description.name);
  }
  if (a.plugin != b.plugin || a.description.desc.index != b.description.desc.index) return ok_status();
  if (a.description.desc.simulated != 0) return ok_status();
  const auto first = parse_cores(a.cores), second = parse_cores(b.cores);  // none: all of them
  const bool apart =
      first && second && std::none_of(first->begin(), first->end(), [&](int core) { return second->contains(core); });
  if (apart) return ok_status();
  return invalid_argument("devices {} and {} share cores", a.description.name, b.description.name);
}

std::vector<int> cores_of(std::string_view text) {
  const auto cores = parse_cores(text);
  return cores ? std::vector<int>(cores->begin(), cores->end()) : std::vector<int>();
}

}  // namespace motley
