#include "llm/device_figures.hpp"

#include <array>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/config.hpp"
#include "comm/communicator.hpp"
#include "llm/cost_cache.hpp"
#include "model/dtype.hpp"

namespace motley {
namespace {

nlohmann::json to_json(const MachineFigures& figures) {
  nlohmann::json out = {{"devices", nlohmann::json::array()}, {"links", nlohmann::json::array()}};
  for (const DeviceFigures& device : figures.devices)
    out["devices"].push_back(
        {{"gb_per_s", device.gb_per_s}, {"dispatch_us", device.dispatch_us}, {"gflops", device.gflops}});
  for (const LinkFigures& link : figures.links)
    out["links"].push_back({{"a", link.a},
                            {"b", link.b},
                            {"latency_us", link.latency_us},
                            {"gb_per_s", link.gb_per_s},
                            {"route", route_name(link.route)}});
  return out;
}

std::optional<MachineFigures> from_json(const std::string& text, size_t devices) {
  MachineFigures figures;
  try {
    const nlohmann::json in = nlohmann::json::parse(text);
    for (const auto& each : in.at("devices")) {
      DeviceFigures& device = figures.devices.emplace_back();
      each.at("gb_per_s").get_to(device.gb_per_s);
      each.at("dispatch_us").get_to(device.dispatch_us);
      each.at("gflops").get_to(device.gflops);
    }
    for (const auto& each : in.at("links")) {
      LinkFigures& link = figures.links.emplace_back();
      each.at("a").get_to(link.a);
      each.at("b").get_to(link.b);
      each.at("latency_us").get_to(link.latency_us);
      each.at("gb_per_s").get_to(link.gb_per_s);
      const auto route = find_route(each.at("route").get<std::string>());
      if (!route) return std::nullopt;
      link.route = *route;
    }
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;  // not what was written: measured again
  }
  if (figures.devices.size() != devices) return std::nullopt;
  return figures;
}

Result<MachineFigures> measure(const DeviceRegistry& registry, const Progress& progress) {
  MachineFigures figures;
  std::vector<std::pair<std::string, Device>> opened;  // between which links are measured
  for (const auto& entry : registry.devices()) {
    progress(fmt::format("measuring {}", entry.description.name));
    const motley_device_desc& desc = entry.description.desc;
    ASSIGN_OR_RETURN(Device device, Device::open(*entry.plugin, desc.index, {}));
    auto measured = measure_figures(device, desc.weight_dtypes);
    if (!measured.ok()) return measured.error().annotate(entry.description.name);
    figures.devices.push_back(*std::move(measured));
    if (desc.simulated == 0) opened.emplace_back(entry.description.name, std::move(device));
  }
  std::vector<Route> routes;
  if (opened.size() > 1) routes = available_routes();
  for (size_t i = 0; i < opened.size(); ++i) {
    for (size_t j = i + 1; j < opened.size(); ++j) {
      ASSIGN_OR_RETURN(LinkFigures link, measure_link_figures(opened[i].second, opened[j].second, routes));
      link.a = opened[i].first, link.b = opened[j].first;
      figures.links.push_back(std::move(link));
    }
  }
  return figures;
}

}  // namespace

Result<MachineFigures> machine_figures(const DeviceRegistry& registry, const Progress& progress, bool again) {
  std::vector<ListedDevice> listed;
  for (const auto& entry : registry.devices()) listed.push_back({entry.description, entry.plugin, {}, entry.spec});
  const CostCache cache(cache_directory() / "costs");
  const std::string machine = machine_digest(listed);
  if (const auto text = again ? std::nullopt : cache.read_text(machine, "devices")) {
    if (auto known = from_json(*text, listed.size())) return *std::move(known);
  }
  ASSIGN_OR_RETURN(MachineFigures figures, measure(registry, progress));
  cache.write_text(machine, "devices", to_json(figures).dump());
  return figures;
}

std::vector<std::string> dtype_names(uint64_t mask) {
  std::vector<std::string> names;
  for (int32_t id = 0; id < MOTLEY_DTYPE_COUNT; ++id) {
    const DtypeInfo* dtype = find_dtype(id);
    if ((mask >> id & 1) != 0 && dtype != nullptr) names.emplace_back(dtype->name);
  }
  return names;
}

std::vector<std::string> capability_names(uint64_t caps) {
  static constexpr std::array<std::pair<uint64_t, const char*>, 9> kNames = {
      {{MOTLEY_CAP_DYNAMIC_ROWS, "dynamic-rows"},
       {MOTLEY_CAP_PAGED_ATTENTION, "paged-attention"},
       {MOTLEY_CAP_WEIGHTS_AS_ARGS, "weights-as-arguments"},
       {MOTLEY_CAP_HOST_MEMORY, "host-memory"},
       {MOTLEY_CAP_IMPORT_HOST, "import-host"},
       {MOTLEY_CAP_ROW_INVARIANT, "row-invariant"},
       {MOTLEY_CAP_ONE_CLASS, "one-numeric-class"},
       {MOTLEY_CAP_COLLECTIVES, "collectives"},
       {MOTLEY_CAP_PARTIAL_ATTENTION, "partial-attention"}}};
  std::vector<std::string> names;
  for (const auto& [bit, name] : kNames) {
    if ((caps & bit) != 0) names.emplace_back(name);
  }
  return names;
}

}  // namespace motley
