#include "device/device_list.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/quote.hpp"

namespace motley {
namespace {

constexpr std::string_view kCores = "/cores=";
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

  // Several of one simulated name are numbered; nothing is doubled.
  Result<std::vector<ListedDevice>> finish() {
    std::map<std::string, int> count, number;
    for (const ListedDevice& device : devices_) ++count[device.description.name];
    for (ListedDevice& device : devices_) {
      std::string& name = device.description.name;
      if (count[name] == 1) continue;
      if (device.description.desc.simulated == 0) return invalid_argument("device {} is listed twice", name);
      name += "/" + std::to_string(number[name]++);
    }
    RETURN_IF_ERROR(check_parts());
    if (devices_.size() > kDevicesMax)
      return invalid_argument("{} devices are listed; at most {} work together", devices_.size(), kDevicesMax);
    return std::move(devices_);
  }

 private:
  Status add_all() {
    const size_t before = devices_.size();
    for (const auto& entry : registry_.devices()) {
      const std::string_view family = entry.description.desc.family;
      if (entry.description.desc.simulated == 0 && family != "REF")
        devices_.push_back({entry.description, entry.plugin, {}, {}});
    }
    if (devices_.size() > before) return ok_status();
    return registry_.find("CPU:0").error();
  }

  Status add_named(const std::string& name) {
    ASSIGN_OR_RETURN(const DeviceRegistry::Entry* entry, registry_.find(name));
    devices_.push_back({entry->description, entry->plugin, {}, {}});
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
    ListedDevice part{entry->description, entry->plugin, cores, {}};
    part.description.name += std::string(kCores) + cores;
    part.description.desc.threads = static_cast<uint32_t>(parsed->size());
    devices_.push_back(std::move(part));
    return ok_status();
  }

  Status add_simulated(const std::string& spec) {
    for (const auto& entry : registry_.devices()) {
      const motley_device_desc& desc = entry.description.desc;
      const std::string wanted = lower(spec), label = lower(desc.label);
      const bool numbered = wanted.starts_with(label + "/") && parse_span(wanted.substr(label.size() + 1));
      if (desc.simulated != 0 && (label == wanted || numbered)) {
        devices_.push_back({entry.description, entry.plugin, {}, {}});
        return ok_status();
      }
    }
    ASSIGN_OR_RETURN(const auto described, registry_.describe("SIM", spec));
    devices_.push_back({described.description, described.plugin, {}, "SIM:" + spec});
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
};

}  // namespace

Result<std::vector<ListedDevice>> parse_device_list(const DeviceRegistry& registry, std::string_view list) {
  ListParser parser(registry);
  for (const std::string& item : items_of(list)) RETURN_IF_ERROR(parser.add(item));
  return parser.finish();
}

Status check_apart(const ListedDevice& a, const ListedDevice& b) {
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
