#include "conformance/conformance.hpp"

#include <strings.h>

#include <cstdio>

#include "commands.hpp"
#include "device/plugin.hpp"

namespace motley::apps {
namespace {

std::string name_of(const motley_device_desc& desc) {
  return desc.label[0] != '\0' ? fmt::format("{}:{}", desc.family, desc.label)
                               : fmt::format("{}:{}", desc.family, desc.index);
}

// One that is enumerated, by its name in any case, or that the plugin can describe.
Result<motley_device_desc> find_device(const Plugin& plugin, const std::vector<motley_device_desc>& devices,
                                       const std::string& name) {
  std::string known;
  for (const motley_device_desc& desc : devices) {
    if (strcasecmp(name_of(desc).c_str(), name.c_str()) == 0) return desc;
    known += (known.empty() ? "" : ", ") + name_of(desc);
  }
  const size_t colon = name.find(':');
  const auto describe = plugin.api().describe;
  const bool family = colon != std::string::npos && !devices.empty() &&
                      strcasecmp(name.substr(0, colon).c_str(), devices.front().family) == 0;
  if (!family || describe == nullptr)
    return error(MOTLEY_NOT_FOUND, "--device {}: the plugin has {}", name, known.empty() ? "none" : known);
  motley_device_desc desc{};
  desc.struct_size = sizeof desc;
  motley_error failure{};
  const motley_code code = describe(name.c_str() + colon + 1, &desc, &failure);
  if (code != MOTLEY_OK) return error(code, "--device {}: {}; the plugin has {}", name, failure.text, known);
  return desc;
}

}  // namespace

Status conformance(const ConformanceCommand& command) {
  ASSIGN_OR_RETURN(const auto plugin, Plugin::open(command.plugin));
  ASSIGN_OR_RETURN(auto devices, plugin->enumerate());
  if (!command.device.empty()) {
    ASSIGN_OR_RETURN(const motley_device_desc one, find_device(*plugin, devices, command.device));
    devices = {one};
  }
  motley::conformance::Report all;
  size_t skipped = 0;
  for (const motley_device_desc& device : devices) {
    std::printf("device %s\n", name_of(device).c_str());
    motley::conformance::Options options;
    options.described = &device;
    options.line = [](const std::string& line) { std::printf("%s\n", line.c_str()); };
    const auto report = motley::conformance::run_conformance(plugin->api(), options);
    all.passed += report.passed;
    all.failed += report.failed;
    skipped += report.skipped.size();
  }
  std::printf("%llu passed, %llu failed, %zu skipped\n", static_cast<unsigned long long>(all.passed),
              static_cast<unsigned long long>(all.failed), skipped);
  if (all.failed == 0 && all.passed > 0) return ok_status();
  return error(MOTLEY_FAILED_PRECONDITION, "{} does not conform", command.plugin);
}

}  // namespace motley::apps
