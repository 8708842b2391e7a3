#include <algorithm>
#include <cstdio>

#include "base/config.hpp"
#include "commands.hpp"
#include "device/device_list.hpp"
#include "device/device_map.hpp"
#include "open_plan.hpp"
#include "planner/plan_picture.hpp"

namespace motley::apps {
namespace {

// The list with what is to be added ("+NAME") and left away ("-NAME").
Result<std::vector<ListedDevice>> devices_of(const DeviceRegistry& registry, const PlanCommand& command) {
  std::string list = command.instance.devices;
  std::vector<std::string> removed;
  size_t begin = 0;
  while (begin < command.what_if.size()) {
    const size_t end = std::min(command.what_if.find(',', begin), command.what_if.size());
    const std::string item = command.what_if.substr(begin, end - begin);
    begin = end + 1;
    if (item.size() < 2 || (item[0] != '+' && item[0] != '-'))
      return invalid_argument("--what-if {}: devices are named as in \"+SIM:gpu-like,-CPU:0\"", command.what_if);
    if (item[0] == '+') {
      list += "," + item.substr(1);
      continue;
    }
    removed.push_back(item.substr(1));
  }
  ASSIGN_OR_RETURN(std::vector<ListedDevice> devices, parse_device_list(registry, list));
  for (const std::string& name : removed) {
    const auto same = [&](const ListedDevice& device) {
      const std::string& known = device.description.name;
      return known.size() == name.size() &&
             std::equal(known.begin(), known.end(), name.begin(),
                        [](unsigned char a, unsigned char b) { return std::tolower(a) == std::tolower(b); });
    };
    if (std::erase_if(devices, same) == 0)
      return invalid_argument("--what-if -{}: the device is not among {}", name, command.instance.devices);
  }
  if (devices.empty()) return invalid_argument("--what-if {}: no device is left", command.what_if);
  return devices;
}

}  // namespace

Status plan(const PlanCommand& command) {
  const InstanceOptions& options = command.instance;
  DeviceRegistry registry = DeviceRegistry::scan(plugin_directory());
  RETURN_IF_ERROR(map_devices(options.device_map, &registry));
  ASSIGN_OR_RETURN(auto listed, devices_of(registry, command));
  ASSIGN_OR_RETURN(const OpenPlan opened, open_plan(options, std::move(listed)));
  const PlannedModel& planned = opened.planned;
  if (!command.svg_file.empty()) RETURN_IF_ERROR(write_file(command.svg_file, plan_svg(planned.report, planned.shape)));
  if (command.json) {
    std::printf("%s\n", to_json(planned.report, planned.shape, planned.identity).c_str());
  } else if (command.svg_file.empty()) {
    std::printf("%s", plan_text(planned.report, planned.shape).c_str());
  }
  return ok_status();
}

}  // namespace motley::apps
