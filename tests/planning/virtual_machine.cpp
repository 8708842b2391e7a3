#include "planning/virtual_machine.hpp"

#include <cstdlib>
#include <fstream>

#include "base/check.hpp"
#include "base/config.hpp"

namespace motley::testing {
namespace {

std::string toml_of(const SimDevice& device) {
  return fmt::format(
      "kind = \"{}\"\nmemory_bytes = {}\nbandwidth_gb_s = {}\ngflops = {{f32 = {}, attention = {}}}\nhalf_rows = {}\n"
      "dispatch_us = {}\nlink_gb_s = {}\nlink_latency_us = {}\nmemory_group = {}\ncontention = {}\njitter = {}\n"
      "seed = {}\nqueue_depth = 64\ndeclared = {{gflops = {}, bandwidth_gb_s = {}}}\n{}",
      device.kind, device.memory_bytes, device.bandwidth_gb_s, device.gflops, device.attention_gflops, device.half_rows,
      device.dispatch_us, device.link_gb_s, device.link_latency_us, device.memory_group, device.contention,
      device.jitter, device.seed, device.gflops * device.declared_factor,
      device.bandwidth_gb_s * device.declared_factor, device.rules);
}

}  // namespace

SimDevice scaled(SimDevice device, double speed) {
  device.gflops *= speed;
  device.attention_gflops *= speed;
  device.bandwidth_gb_s *= speed;
  return device;
}

VirtualMachine::VirtualMachine(const std::vector<SimDevice>& devices, const VirtualLink& link) : link_(link) {
  std::string pattern = (std::filesystem::temp_directory_path() / "motley-machine-XXXXXX").string();
  CHECK(mkdtemp(pattern.data()) != nullptr);
  folder_ = pattern;
  std::string list;
  for (size_t i = 0; i < devices.size(); ++i) {
    if (i > 0) list += ",";
    if (!devices[i].preset.empty()) {
      list += "SIM:" + devices[i].preset;
      continue;
    }
    const std::filesystem::path file = folder_ / fmt::format("device{}.toml", i);
    std::ofstream(file) << toml_of(devices[i]);
    list += fmt::format("SIM:{}", file.string());
  }
  registry_ = std::make_unique<DeviceRegistry>(DeviceRegistry::scan(plugin_directory()));
  auto listed = parse_device_list(*registry_, list);
  CHECK(listed.ok(), "{}", listed.error().message());
  DeviceSetOptions options;
  options.virtual_time = true;
  auto opened = DeviceSet::open(*std::move(listed), options);
  CHECK(opened.ok(), "{}", opened.error().message());
  devices_.emplace(*std::move(opened));
}

VirtualMachine::~VirtualMachine() {
  devices_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

PlanInput VirtualMachine::measure(const Model& model, uint32_t rows_max) const {
  MeasureOptions options;
  options.rows_max = rows_max;
  options.kv_dtype = MOTLEY_F32;
  options.virtual_time = true;
  options.virtual_link = link_;
  auto input = measured_input(model, *devices_, options, [](const std::string&) {});
  CHECK(input.ok(), "{}", input.error().message());
  return std::move(input->input);
}

}  // namespace motley::testing
