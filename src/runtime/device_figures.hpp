// What a device can do whatever the model: bandwidth, arithmetic, dispatch. For people; plans are made from
// runtime/measure.hpp, which measures a model's own parts.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/route.hpp"
#include "base/status.hpp"
#include "device/handles.hpp"

namespace motley {

struct DeviceFigures {
  double gb_per_s = 0;     // of a matrix's bytes through one row's product
  double dispatch_us = 0;  // of the smallest program, until the host knows of its end
  std::vector<std::pair<std::string, double>>
      gflops;  // of a product of many rows, by weight type; multiply-adds count 2
};

// A few seconds at most. `weight_dtypes`: the types that the device packs (motley_device_desc).
Result<DeviceFigures> measure_figures(const Device& device, uint64_t weight_dtypes);

struct LinkFigures {
  std::string a, b;
  double latency_us = 0;               // of a sum over both of a few bytes, from and to their memory
  double gb_per_s = 0;                 // of a large one
  Route route = Route::kSharedMemory;  // over which both are
};

// Over the cheapest (runtime/measure.hpp) of `routes`, of which there must be one, over which they meet.
Result<LinkFigures> measure_link_figures(const Device& a, const Device& b, std::span<const Route> routes);

}  // namespace motley
