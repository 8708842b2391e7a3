#include "conformance/conformance.hpp"

#include <cstdio>

#include "commands.hpp"
#include "device/plugin.hpp"

namespace motley::apps {

Status conformance(const ConformanceCommand& command) {
  ASSIGN_OR_RETURN(const auto plugin, Plugin::open(command.plugin));
  ASSIGN_OR_RETURN(const auto devices, plugin->enumerate());
  motley::conformance::Report all;
  for (const motley_device_desc& device : devices) {
    motley::conformance::Options options;
    options.device = device.index;
    options.line = [](const std::string& line) { std::printf("%s\n", line.c_str()); };
    const auto report = motley::conformance::run_conformance(plugin->api(), options);
    all.passed += report.passed;
    all.failed += report.failed;
  }
  std::printf("%llu passed, %llu failed\n", static_cast<unsigned long long>(all.passed),
              static_cast<unsigned long long>(all.failed));
  if (all.failed == 0 && all.passed > 0) return ok_status();
  return error(MOTLEY_FAILED_PRECONDITION, "{} does not conform", command.plugin);
}

}  // namespace motley::apps
