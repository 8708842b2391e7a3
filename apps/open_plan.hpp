// What `motley plan` and `motley bench plan` begin with: a model, its devices, and the plan over them.
#pragma once

#include <memory>
#include <vector>

#include "base/status.hpp"
#include "llm/instance.hpp"
#include "llm/placing.hpp"

namespace motley::apps {

struct OpenPlan {
  std::unique_ptr<const Model> model;
  DeviceSet devices;
  RuntimeOptions runtime;
  PlannedModel planned;
};

// Opens the devices and measures those that were not measured before; progress goes to the log. The devices' registry
// outlives it.
Result<OpenPlan> open_plan(const InstanceOptions& options, std::vector<ListedDevice> listed);

// Writes the file whole; PERMISSION_DENIED names it.
Status write_file(const std::string& path, std::string_view text);

}  // namespace motley::apps
