#include "planner/device_types.hpp"

#include <algorithm>
#include <numeric>

namespace motley {

DeviceTypes find_types(const PlanInput& input, const LinkTable& links, const ModelShape& shape,
                       const Predictor::Costs& costs) {
  DeviceTypes types;
  for (size_t d = 0; d < input.devices.size(); ++d) {
    size_t type = 0;
    while (type < types.members.size() && !alike(input, links, types.members[type][0], d)) ++type;
    if (type == types.members.size()) types.members.emplace_back();
    types.members[type].push_back(d);
    types.type_of.push_back(type);
    double ns = 0;
    for (const LayerShape& layer : shape.layers) {
      ns += costs.load.mean(costs.decode.layer_ns(d, layer.kind), costs.mixed.layer_ns(d, layer.kind));
    }
    types.model_ns.push_back(ns);
  }
  types.by_speed.resize(input.devices.size());
  std::iota(types.by_speed.begin(), types.by_speed.end(), size_t{0});
  std::stable_sort(types.by_speed.begin(), types.by_speed.end(),
                   [&](size_t a, size_t b) { return types.model_ns[a] < types.model_ns[b]; });
  return types;
}

}  // namespace motley
