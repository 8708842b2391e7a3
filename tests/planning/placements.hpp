// Placements by hand: relative shares of every axis, by device.
#pragma once

#include <vector>

#include "llm/device_set.hpp"
#include "planner/model_shape.hpp"
#include "planner/placement.hpp"

namespace motley::testing {

// Parts of a stage: of device `device` of the set, in the order of the shards.
struct Part {
  size_t device = 0;
  double heads = 1, ffn = 1, vocab = 1;  // relative; 0 = none
  size_t partner = SIZE_MAX;             // who attends for it, as `device`; SIZE_MAX = itself
};

struct StageParts {
  double layers = 1;  // relative
  std::vector<Part> parts;
  bool replicates = false;  // who has heads holds every KV head, and takes its share of the queries of each
};

// Each axis is cut into whole units nearest to the shares; every stage has at least one layer.
Placement place(const ModelShape& shape, const DeviceSet& devices, const std::vector<StageParts>& stages);
Placement on_one(const ModelShape& shape, const DeviceSet& devices, size_t device);
// One stage; heads, columns and vocabulary by the same shares.
Placement in_parallel(const ModelShape& shape, const DeviceSet& devices, const std::vector<double>& shares);
// One stage a device, by shares of the layers.
Placement in_line(const ModelShape& shape, const DeviceSet& devices, const std::vector<double>& shares);

}  // namespace motley::testing
