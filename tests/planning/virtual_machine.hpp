// VirtualMachine: one machine of simulated devices on virtual time. Tests and benchmarks see the devices' true rates,
// because they made them up; the runtime and the planner see what they measure through the plugin interface.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "device/registry.hpp"
#include "llm/device_set.hpp"
#include "llm/planning.hpp"
#include "model/model.hpp"

namespace motley::testing {

// Written as a device file (backends/sim/README.md); true rates.
struct SimDevice {
  std::string kind = "gpu";
  double gflops = 10, attention_gflops = 10;  // of f32 weights
  double bandwidth_gb_s = 1;
  double half_rows = 0;
  double dispatch_us = 5;
  double link_gb_s = 8, link_latency_us = 2;
  uint32_t memory_group = 0;
  double contention = 1;
  double jitter = 0;
  uint64_t seed = 1;
  uint64_t memory_bytes = uint64_t{1} << 30;
  double declared_factor = 1;  // what it says of itself, of what is true
  std::string rules = {};      // further lines of its file
  std::string preset = {};     // its name; then nothing above counts
};

SimDevice scaled(SimDevice device, double speed);  // computes and reads so many times as fast

// Not thread-safe.
class VirtualMachine {
 public:
  // Aborts on what cannot be opened. `link`: what a message between two drivers takes.
  explicit VirtualMachine(const std::vector<SimDevice>& devices, const VirtualLink& link = {});
  ~VirtualMachine();
  VirtualMachine(const VirtualMachine&) = delete;
  VirtualMachine& operator=(const VirtualMachine&) = delete;

  const DeviceSet& devices() const { return *devices_; }
  const VirtualLink& link() const { return link_; }
  std::string name(size_t device) const { return devices_->listed(device).description.name; }
  size_t size() const { return devices_->size(); }
  PlanInput measure(const Model& model, uint32_t rows_max) const;

 private:
  std::filesystem::path folder_;
  const VirtualLink link_;
  std::unique_ptr<DeviceRegistry> registry_;
  std::optional<DeviceSet> devices_;
};

}  // namespace motley::testing
