#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/config.hpp"
#include "base/log.hpp"
#include "commands.hpp"
#include "device/device_map.hpp"
#include "llm/device_figures.hpp"

namespace motley::apps {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kGiB = 1u << 30;

Json figures_json(const DeviceFigures& figures) {
  Json rates = Json::object();
  for (const auto& [dtype, gflops] : figures.gflops) rates[dtype] = gflops;
  return {{"gb_per_s", figures.gb_per_s}, {"gflops", std::move(rates)}, {"dispatch_us", figures.dispatch_us}};
}

Json device_json(const DeviceDescription& device, const DeviceFigures* figures) {
  const motley_device_desc& desc = device.desc;
  return {{"name", device.name},
          {"kind", kind_name(desc.kind)},
          {"vendor", desc.vendor},
          {"model", desc.model},
          {"variant", desc.variant},
          {"tier", tier_name(desc.tier)},
          {"simulated", desc.simulated != 0},
          {"memory_bytes", {{"total", desc.memory_total}, {"free", desc.memory_free}}},
          {"dtypes", dtype_names(desc.weight_dtypes)},
          {"capabilities", capability_names(desc.caps)},
          {"measured", figures == nullptr ? Json() : figures_json(*figures)}};
}

void print_json(const std::vector<DeviceDescription>& devices, const std::vector<AbsentDevice>& absent,
                const MachineFigures* figures) {
  Json out = {{"devices", Json::array()}, {"links", Json::array()}, {"absent", Json::array()}};
  for (size_t i = 0; i < devices.size(); ++i)
    out["devices"].push_back(device_json(devices[i], figures == nullptr ? nullptr : &figures->devices[i]));
  if (figures != nullptr) {
    for (const LinkFigures& link : figures->links)
      out["links"].push_back({{"a", link.a},
                              {"b", link.b},
                              {"latency_us", link.latency_us},
                              {"gb_per_s", link.gb_per_s},
                              {"route", route_name(link.route)}});
  }
  for (const AbsentDevice& each : absent) out["absent"].push_back({{"kind", each.kind}, {"reason", each.reason}});
  std::printf("%s\n", out.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
}

void print_device(const DeviceDescription& device, const DeviceFigures* figures) {
  const motley_device_desc& desc = device.desc;
  const std::string tier(tier_name(desc.tier));
  std::printf("%-18s %s, %s kernels, %.1f GiB free of %.1f, tier %s%s\n", device.name.c_str(), desc.model,
              desc.variant[0] != '\0' ? desc.variant : "plain", static_cast<double>(desc.memory_free) / kGiB,
              static_cast<double>(desc.memory_total) / kGiB, tier.c_str(), desc.simulated != 0 ? ", SIMULATED" : "");
  if (figures == nullptr) return;
  std::printf("%18s %.1f GB/s, dispatch %.1f us", "", figures->gb_per_s, figures->dispatch_us);
  for (const auto& [dtype, gflops] : figures->gflops) std::printf(", %s %.0f GFLOP/s", dtype.c_str(), gflops);
  std::printf("\n");
}

}  // namespace

Status devices(const DevicesCommand& command) {
  DeviceRegistry registry = DeviceRegistry::scan(plugin_directory());
  RETURN_IF_ERROR(map_devices(command.device_map, &registry));
  std::vector<DeviceDescription> described;
  for (const auto& entry : registry.devices()) described.push_back(entry.description);
  std::optional<MachineFigures> figures;
  if (command.measure || command.measure_again) {
    const auto progress = [](const std::string& what) { log_info("{}", what); };
    ASSIGN_OR_RETURN(figures, machine_figures(registry, progress, command.measure_again));
  }
  const MachineFigures* known = figures ? &*figures : nullptr;
  if (command.json) {
    print_json(described, registry.absent(), known);
    return ok_status();
  }
  for (size_t i = 0; i < described.size(); ++i)
    print_device(described[i], known == nullptr ? nullptr : &known->devices[i]);
  if (known != nullptr) {
    for (const LinkFigures& link : known->links)
      std::printf("%s - %s: %.1f us, %.1f GB/s over %s\n", link.a.c_str(), link.b.c_str(), link.latency_us,
                  link.gb_per_s, std::string(route_name(link.route)).c_str());
  }
  for (const auto& absent : registry.absent()) {
    std::printf("absent   %s: %s\n", absent.kind.c_str(), absent.reason.c_str());
  }
  return ok_status();
}

}  // namespace motley::apps
