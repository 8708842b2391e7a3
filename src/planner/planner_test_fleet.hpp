// Made-up models and devices for tests: a device is a bandwidth, an arithmetic rate and an overhead; its tables follow.
#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "planner/adaptation.hpp"
#include "planner/model_shape.hpp"
#include "planner/profile.hpp"
#include "planner/replay.hpp"
#include "planner/search.hpp"

namespace motley::testing {

struct SizedShape {
  int64_t layers = 8, hidden = 1024, heads = 16, kv_heads = 4, head_dim = 64, ffn = 4096, vocab = 32000, experts = 0;
  double weight_bytes = 1;  // of a weight in the file
};

inline ModelShape make_shape(const SizedShape& size) {
  ModelShape shape;
  shape.name = "made-up";
  shape.hidden = size.hidden;
  shape.heads = size.heads;
  shape.kv_heads = size.kv_heads;
  shape.head_dim = size.head_dim;
  shape.context_length = 8192;
  shape.vocab = size.vocab;
  shape.ffn_columns = size.experts > 0 ? 0 : size.ffn;
  shape.ffn_unit = size.ffn % 64 == 0 ? 64 : 32;
  shape.experts = size.experts;
  shape.expert_ffn = size.experts > 0 ? size.ffn : 0;
  const double row = static_cast<double>(size.hidden) * size.weight_bytes;
  shape.embedding_bytes = shape.head_bytes = static_cast<uint64_t>(row * static_cast<double>(size.vocab));
  for (int64_t l = 0; l < size.layers; ++l) {
    LayerShape layer;
    layer.has_ffn = size.experts == 0;
    layer.has_experts = size.experts > 0;
    layer.query_head_bytes = layer.kv_head_bytes = static_cast<uint64_t>(2 * row * static_cast<double>(size.head_dim));
    layer.ffn_column_bytes = 3 * row;
    layer.expert_bytes = static_cast<uint64_t>(3 * row * static_cast<double>(size.ffn));
    layer.replicated_bytes = static_cast<uint64_t>(8 * size.hidden);
    shape.layers.push_back(layer);
  }
  number_layer_kinds(&shape);
  return shape;
}

// The fleets of benchmarks/fleets, each with the model that it is planned for.
struct FleetFile {
  std::string name;
  ModelShape model;
};

inline std::vector<FleetFile> fleet_files() {
  const ModelShape large = make_shape(
      {.layers = 96, .hidden = 8192, .heads = 64, .kv_heads = 8, .head_dim = 128, .ffn = 28672, .vocab = 128256});
  const ModelShape small = make_shape(
      {.layers = 32, .hidden = 4096, .heads = 32, .kv_heads = 8, .head_dim = 128, .ffn = 14336, .vocab = 128256});
  return {{"64_of_4_kinds.json", large}, {"five_mixed.json", small}, {"two_gpus_and_a_cpu.json", small}};
}

// Tokens/s of a plan event by event: of one lane, or of replicas, which meet nowhere.
inline double replayed_tokens_per_s(const ModelShape& shape, const PlanInput& input, PlanRequest request,
                                    const PlanReport& report, uint32_t steps) {
  double sum = 0;
  for (size_t i = 0; i < report.lanes.size(); ++i) {
    request.concurrency = report.lanes[i].predicted.concurrency;
    Predictor predictor(shape, input, request);
    const Candidate candidate =
        predictor.evaluate(*lane_plan_of(shape, input, report.placement, i),
                           {report.placement.lanes[i].micro_batches, report.lanes[i].kv_tokens});
    sum += replay(&predictor, candidate, steps).tokens_per_s;
  }
  return sum;
}

struct Speed {
  double gb_per_s = 100, gflops = 4000, overhead_ns = 5000;
  double gib = 16;
  double element_bytes = 1;  // of a weight as packed
};

inline CostTable make_table(const Speed& speed, double weights_per_unit, std::vector<int64_t> units) {
  CostTable table;
  table.rows = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048};
  table.units = std::move(units);
  for (const int64_t u : table.units) {
    std::vector<double> line;
    for (const int64_t rows : table.rows) {
      const double weights = weights_per_unit * static_cast<double>(u);
      line.push_back(speed.overhead_ns + std::max(weights * speed.element_bytes / speed.gb_per_s,
                                                  2 * weights * static_cast<double>(rows) / speed.gflops));
    }
    table.ns.push_back(std::move(line));
  }
  return table;
}

inline std::vector<int64_t> few_units(int64_t all) {
  std::vector<int64_t> units;
  for (const int64_t u : {int64_t{1}, all / 4, all / 2, all}) {
    if (u > 0 && (units.empty() || u > units.back())) units.push_back(u);
  }
  return units;
}

inline DeviceProfile make_device(const std::string& name, const std::string& kind, const Speed& speed,
                                 const ModelShape& shape) {
  DeviceProfile device;
  device.name = name;
  device.kind = kind;
  device.memory_total = device.memory_free = static_cast<uint64_t>(speed.gib * 1024 * 1024 * 1024);
  const auto hidden = static_cast<double>(shape.hidden);
  const auto group = static_cast<double>(shape.query_heads_per_kv());
  const auto dim = static_cast<double>(shape.head_dim);
  device.attention = make_table(speed, hidden * dim * (2 * group + 2), few_units(shape.kv_heads));
  if (shape.ffn_columns > 0) device.ffn = make_table(speed, 3 * hidden, few_units(shape.ffn_columns));
  if (shape.experts > 0) {
    device.experts = make_table(speed, 3 * hidden * static_cast<double>(shape.expert_ffn), few_units(shape.experts));
  }
  device.head = make_table(speed, hidden, few_units(shape.vocab));
  Speed lookup = speed;
  lookup.gflops = 1e9;
  device.embed = make_table(lookup, 1e-3, few_units(shape.vocab));
  device.context = {{1}, {4 * dim / speed.gb_per_s}};
  device.sample_ns = 2000;
  for (CostTable* table : {&device.attention, &device.ffn, &device.experts, &device.head, &device.embed}) {
    table->make_monotone();
  }
  return device;
}

// Of fixed row counts: it does not attend and holds no vocabulary, and between two meetings with a partner runs one
// program of what two do where the parts are measured apart.
inline DeviceProfile with_fixed_rows(DeviceProfile device, const Speed& speed, const ModelShape& shape) {
  device.attends = device.holds_vocabulary = false;
  device.buckets = {16, 64, 256, 512};
  device.head = device.embed = {};
  device.context = {};
  device.layer.rows = device.ffn.rows, device.layer.units = {1};
  device.layer.ns.emplace_back();
  const auto heads = static_cast<double>(shape.kv_heads), columns = static_cast<double>(shape.ffn_columns);
  for (const int64_t rows : device.ffn.rows) {
    const auto r = static_cast<double>(rows);
    device.layer.ns[0].push_back(device.attention.at(r, heads) + device.ffn.at(r, columns) - speed.overhead_ns);
  }
  return device;
}

// A fleet of 1 to `devices_max` devices of any speed, some sharing memory.
inline PlanInput random_fleet(std::mt19937_64& random, const ModelShape& shape, size_t devices_max) {
  const auto uniform = [&](double low, double high) {
    return low + (high - low) * static_cast<double>(random() % 10000) / 9999;
  };
  PlanInput input;
  const size_t devices = 1 + random() % devices_max;
  for (size_t d = 0; d < devices; ++d) {
    Speed speed{uniform(20, 400), uniform(200, 20000), uniform(200, 20000), uniform(0.05, 2)};
    input.devices.push_back(make_device("SIM:" + std::to_string(d), random() % 2 == 0 ? "gpu" : "cpu", speed, shape));
    if (random() % 4 == 0) {
      input.devices.back().memory_group = "host";
      input.devices.back().together = {{1, 512}, {uniform(1, 2.5), uniform(1, 1.5)}};
    }
  }
  input.host_memory = {"", "", uniform(500, 30000), uniform(0.02, 0.5)};
  if (devices > 1 && random() % 2 == 0)
    input.links.push_back({"SIM:0", "SIM:1", uniform(500, 5000), uniform(0.01, 0.1)});
  return input;
}

// The best plan with these factors beside the one in force.
inline Result<Move> better_plan(const ModelShape& shape, const PlanInput& measured, const PlanRequest& request,
                                const Placement& now, const DriftFactors& factors) {
  ASSIGN_OR_RETURN(PlanReport best, plan(shape, with_drift(measured, factors), request));
  return move_to(shape, measured, request, now, std::move(best), factors);
}

}  // namespace motley::testing
