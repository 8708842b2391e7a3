#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/config.hpp"
#include "commands.hpp"

namespace motley::apps {

Status devices(const DevicesCommand& command) {
  const DeviceRegistry registry = DeviceRegistry::scan(plugin_directory());
  if (command.json) {
    nlohmann::ordered_json out = {{"devices", nlohmann::json::array()}, {"absent", nlohmann::json::array()}};
    for (const auto& entry : registry.devices()) {
      const motley_device_desc& desc = entry.description.desc;
      out["devices"].push_back({{"name", entry.description.name},
                                {"kind", kind_name(desc.kind)},
                                {"vendor", desc.vendor},
                                {"model", desc.model},
                                {"variant", desc.variant},
                                {"tier", tier_name(desc.tier)},
                                {"simulated", desc.simulated != 0},
                                {"memory_bytes", {{"total", desc.memory_total}, {"free", desc.memory_free}}}});
    }
    for (const auto& absent : registry.absent()) {
      out["absent"].push_back({{"kind", absent.kind}, {"reason", absent.reason}});
    }
    std::printf("%s\n", out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return ok_status();
  }
  for (const auto& entry : registry.devices()) {
    const motley_device_desc& desc = entry.description.desc;
    std::printf("%-8s %s, %s kernels, %.1f GiB free of %.1f, tier %s%s\n", entry.description.name.c_str(), desc.model,
                desc.variant[0] != '\0' ? desc.variant : "plain", static_cast<double>(desc.memory_free) / (1u << 30),
                static_cast<double>(desc.memory_total) / (1u << 30), std::string(tier_name(desc.tier)).c_str(),
                desc.simulated != 0 ? ", SIMULATED" : "");
  }
  for (const auto& absent : registry.absent()) {
    std::printf("absent   %s: %s\n", absent.kind.c_str(), absent.reason.c_str());
  }
  return ok_status();
}

}  // namespace motley::apps
