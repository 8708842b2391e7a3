// Any text, read as a plan of a small model on three devices: a sound lane that is printed and read back as it was, or
// a refusal of one line.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.hpp"
#include "fuzz/refusal_check.hpp"
#include "planner/plan_json.hpp"
#include "planner/planner_test_fleet.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace motley;

const PlanIdentity kIdentity = {"sha256:abc", "machine-1"};

struct World {
  explicit World(int64_t experts)
      : shape(motley::testing::make_shape({.layers = 4,
                                           .hidden = 256,
                                           .heads = 8,
                                           .kv_heads = 4,
                                           .head_dim = 32,
                                           .ffn = 256,
                                           .vocab = 256,
                                           .experts = experts})) {
    for (const char* name : {"GPU:0", "GPU:1", "CPU:0"})
      input.devices.push_back(motley::testing::make_device(name, "gpu", {}, shape));
  }
  ModelShape shape;
  PlanInput input;
};

void check_plan(std::string_view text, const World& world) {
  const PlanRequest request;
  const auto placement = read_plan(text, world.shape, world.input, request, kIdentity);
  if (!placement.ok()) return fuzz::check_refusal(placement.error());
  CHECK(lane_plan_of(world.shape, world.input, *placement).ok());
  const auto report = report_on(world.shape, world.input, request, *placement);
  if (!report.ok()) return fuzz::check_refusal(report.error());
  CHECK(report->predicted.tokens_per_s > 0 && report->predicted.tokens_per_s <= report->bound_tokens_per_s);
  const std::string printed = to_json(*report, world.shape, kIdentity);
  const auto again = read_plan(printed, world.shape, world.input, request, kIdentity);
  CHECK(again.ok(), "{}", again.error().message());
  PlanReport same = *report;
  same.placement = *again;
  CHECK(to_json(same, world.shape, kIdentity) == printed);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const World dense(0), of_experts(4);
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  check_plan(text, dense);
  check_plan(text, of_experts);
  return 0;
}
