// Which devices are alike, and how fast each is: the search counts types instead of names. Values.
#pragma once

#include <cstddef>
#include <vector>

#include "planner/prediction.hpp"

namespace motley {

struct DeviceTypes {
  std::vector<size_t> type_of;               // [device]
  std::vector<std::vector<size_t>> members;  // [type], ascending
  std::vector<size_t> by_speed;              // devices, the one fastest through all layers first
  std::vector<double> model_ns;              // [device], of all layers under the mean load
};

DeviceTypes find_types(const PlanInput& input, const LinkTable& links, const ModelShape& shape,
                       const Predictor::Costs& costs);

}  // namespace motley
