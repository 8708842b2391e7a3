#include "planning/sharing.hpp"

#include <algorithm>

#include "base/check.hpp"
#include "planner/search.hpp"
#include "planning/placements.hpp"

namespace motley::testing {
namespace {

constexpr uint32_t kRowsMax = 64;
constexpr Load kParallelLoad{.requests = 8, .concurrency = 8, .prompt_len = 12, .output_len = 16, .step_rows = 56};
constexpr Load kPipelineLoad{.requests = 48, .concurrency = 24, .prompt_len = 8, .output_len = 16, .step_rows = 40};

Served serve(const Model& model, const VirtualMachine& machine, const Placement& placement, const Load& load) {
  return VirtualRun(model, machine, placement, kRowsMax).serve(load);
}

PlanReport forced(const ModelShape& shape, const PlanInput& input, PlanRequest request, uint32_t tensor,
                  uint32_t pipeline) {
  request.tensor_parallel_size = tensor;
  request.pipeline_parallel_size = pipeline;
  auto report = plan(shape, input, request);
  CHECK(report.ok(), "{}", report.error().message());
  return *std::move(report);
}

// Of one step's sums: to the host, between, and back.
double communication_ns(const ModelShape& shape, double rows) {
  const double bytes = rows * static_cast<double>(shape.hidden) * 4;
  const SimDevice device = sharing_device(1);
  const double copy = device.link_latency_us * 1e3 + bytes / device.link_gb_s;
  const double meet = 2 * (sharing_link().latency_ns + bytes * sharing_link().ns_per_byte);
  return (2 * static_cast<double>(shape.layers.size()) + 1) * (2 * copy + meet);
}

}  // namespace

make_model::ModelSpec sharing_model() {
  make_model::ModelSpec spec;
  spec.type = "F32";
  spec.seed = 5;
  spec.layers = 6;
  spec.hidden = 64;
  spec.heads = 22;
  spec.kv_heads = 22;
  spec.head_dim = 16;
  spec.ffn = 704;
  spec.vocab = 320;
  return spec;
}

SimDevice sharing_device(double speed) {
  SimDevice device;
  device.half_rows = 2;
  device.dispatch_us = 2;
  return scaled(device, speed);
}

VirtualLink sharing_link() { return {.latency_ns = 2000, .ns_per_byte = 0.1}; }

SharingRow share(const Model& model, const ModelShape& shape, double r) {
  const VirtualMachine machine({sharing_device(1), sharing_device(1 / r)}, sharing_link());
  const PlanInput input = machine.measure(model, kRowsMax);
  const PlanReport report = forced(shape, input, request_of(kParallelLoad), 2, 0);
  const Served fast = serve(model, machine, on_one(shape, machine.devices(), 0), kParallelLoad);
  const Served slow = serve(model, machine, on_one(shape, machine.devices(), 1), kParallelLoad);
  SharingRow row;
  row.r = r;
  row.fast = fast.tokens_per_s();
  row.slow = slow.tokens_per_s();
  row.predicted = report.predicted.tokens_per_s;
  row.together = serve(model, machine, report.placement, kParallelLoad).tokens_per_s();
  row.even = serve(model, machine, in_parallel(shape, machine.devices(), {1, 1}), kParallelLoad).tokens_per_s();
  const auto tokens = static_cast<double>(fast.tokens), steps = static_cast<double>(fast.steps);
  const double communication = steps * communication_ns(shape, static_cast<double>(fast.rows) / steps);
  row.bound = tokens / (tokens / row.sum() + communication / 1e9);
  return row;
}

std::string text_of(const SharingRow& row) {
  return fmt::format(
      "{:>4.0f}:1  alone {:>6.0f} + {:>6.0f}  less communication {:>6.0f}  predicted {:>6.0f}  measured {:>6.0f} "
      "({:.0f} %)  even split {:>6.0f} ({:.0f} %)",
      row.r, row.fast, row.slow, row.bound, row.predicted, row.together, 100 * row.together / row.bound, row.even,
      100 * row.even / row.bound);
}

PipelineRow pipeline(const Model& model, const ModelShape& shape, double r) {
  const VirtualMachine machine({sharing_device(1), sharing_device(1 / r)}, sharing_link());
  const PlanInput input = machine.measure(model, kRowsMax);
  const PlanReport report = forced(shape, input, request_of(kPipelineLoad), 1, 2);
  const Served served = serve(model, machine, report.placement, kPipelineLoad);
  PipelineRow row;
  row.r = r;
  row.predicted = report.predicted.tokens_per_s;
  row.together = served.tokens_per_s();
  const auto [least, most] = std::minmax(served.devices[0].busy_ns, served.devices[1].busy_ns);
  row.bound = row.together * static_cast<double>(served.ns) / static_cast<double>(most);
  row.overlap = static_cast<double>(least + most - served.ns) / static_cast<double>(least);
  for (const Stage& stage : report.placement.lanes[0].stages)
    row.layers += fmt::format("{}{}", row.layers.empty() ? "" : " + ", stage.layer_end - stage.layer_begin);
  row.layers += fmt::format(" in {}", report.placement.lanes[0].micro_batches);
  return row;
}

std::string text_of(const PipelineRow& row) {
  return fmt::format(
      "{:>4.0f}:1  layers {}  bottleneck {:>6.0f}  predicted {:>6.0f}  measured {:>6.0f} ({:.0f} %)  overlap {:.0f} %",
      row.r, row.layers, row.bound, row.predicted, row.together, 100 * row.together / row.bound, 100 * row.overlap);
}

}  // namespace motley::testing
