// The Prometheus page: vLLM's series, by name and label, for what exists here. Text format 0.0.4.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.hpp"

namespace motley {

// What the server counts itself. One thread owns it.
struct ServerCounters {
  explicit ServerCounters(uint32_t max_model_len);
  Histogram params_n, params_max_tokens;
};

// What a device counts itself since it was opened, measuring included: programs, rows and arithmetic of real rows, and
// run, the padding of buckets included; programs taken from blobs, and those that had to be loaded anew.
struct OwnCounters {
  uint64_t programs = 0, rows = 0, padded_rows = 0;
  double flops = 0, padded_flops = 0;
  uint64_t bytes_copied = 0, bytes_resident = 0, blob_hits = 0, reloads = 0;
  double busy_s = 0, compile_s = 0;
};

// What a device has done since start, for /v1/devices and the series by device.
struct DeviceCounters {
  std::string device;
  std::string state;  // "serving", "idle" or "lost"
  uint64_t programs = 0, rows = 0, bytes_moved = 0;
  double busy_s = 0;
  bool simulated = false;      // its series have a label that says so
  std::string weight_formats;  // that weights were made, "F16,Q8_0"; empty: all are as in the file
  double weight_error = 0;     // of those: root mean square, relative
  OwnCounters own;
};

struct MetricsInput {
  const EngineStats& stats;
  const ServerCounters& counters;
  std::string model_name;
  std::vector<std::pair<std::string, std::string>> cache_config;
  std::vector<DeviceCounters> devices;
};

// 1, 2, 5, 10, ... up to `max`: vLLM's bounds for counts of tokens.
std::vector<double> one_two_five_bounds(uint64_t max);

std::string metrics_page(const MetricsInput& input);

}  // namespace motley
