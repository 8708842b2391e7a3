// Any text, read as measured devices and as one device: figures within their bounds and tables that do not fall,
// printed and read back as they were, and good enough to plan with; or a refusal of one line.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.hpp"
#include "fuzz/refusal_check.hpp"
#include "planner/planner_test_fleet.hpp"
#include "planner/profile_json.hpp"
#include "planner/search.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace motley;

constexpr size_t kPlannedDevicesMax = 8;

void check_table(const CostTable& table) {
  CHECK(table.check().ok());
  for (size_t u = 0; u < table.ns.size(); ++u) {
    CHECK(std::is_sorted(table.ns[u].begin(), table.ns[u].end()));
    for (size_t r = 0; u > 0 && r < table.ns[u].size(); ++r) CHECK(table.ns[u][r] >= table.ns[u - 1][r]);
  }
}

void check_device(const DeviceProfile& device) {
  for (const CostTable* table : {&device.attention, &device.ffn, &device.experts, &device.head, &device.embed}) {
    check_table(*table);
  }
  CHECK(device.context.at(1) >= 0 && device.packed_ratio > 0 && device.together.at(1, 1) >= 1);
}

void check_plans(const PlanInput& input) {
  static const ModelShape shape = motley::testing::make_shape(
      {.layers = 4, .hidden = 256, .heads = 8, .kv_heads = 4, .head_dim = 32, .ffn = 256, .vocab = 256});
  const auto report = plan(shape, input, {}, Effort::kFirst);
  if (!report.ok()) return fuzz::check_refusal(report.error());
  CHECK(std::isfinite(report->predicted.tokens_per_s) && report->predicted.tokens_per_s >= 0);
  CHECK(report->devices.size() + report->left_out.size() == input.devices.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto device = read_device_profile(text); device.ok()) {
    check_device(*device);
  } else {
    fuzz::check_refusal(device.error());
  }
  const auto input = read_plan_input(text);
  if (!input.ok()) {
    fuzz::check_refusal(input.error());
    return 0;
  }
  CHECK(check_plan_input(*input).ok());
  for (const DeviceProfile& device : input->devices) check_device(device);
  const std::string printed = to_json(*input);
  const auto again = read_plan_input(printed);
  CHECK(again.ok(), "{}", again.error().message());
  CHECK(to_json(*again) == printed);
  if (input->devices.size() <= kPlannedDevicesMax) check_plans(*input);
  return 0;
}
