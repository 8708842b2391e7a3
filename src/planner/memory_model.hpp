// What a shard holds: weights as packed, the buffers of a step, KV per position. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "planner/lane_plan.hpp"

namespace motley {

struct ShardMemory {
  uint64_t weight_bytes = 0, step_bytes = 0;
  uint64_t kv_bytes_per_token = 0;
};

// Step buffers, where the request does not give them: for chunk_rows + concurrency rows of f32, three residual widths
// (residual, normed, part sum), its heads' queries, keys, values and outputs, gate and up columns twice; for
// `concurrency` rows, its logits.
ShardMemory shard_memory(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                         const LanePlan& plan, size_t stage, const ShardPlan& shard);

// Of all shards of a device.
struct DeviceMemory {
  size_t device = 0;
  uint64_t weight_bytes = 0, step_bytes = 0, kv_bytes = 0;
  uint64_t usable_bytes = 0;
};

struct LaneMemory {
  std::vector<DeviceMemory> devices;  // ascending
  uint64_t kv_tokens = 0;             // that its pool holds; whole blocks
  uint64_t missing_bytes = 0;         // > 0: it does not fit; of weights, steps and the least KV
  size_t short_device = 0;            // where they are missing
};

LaneMemory lane_memory(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                       const LanePlan& plan);

struct LanesMemory {
  std::vector<DeviceMemory> devices;  // ascending
  std::vector<PoolTokens> kv_tokens;  // [pool] whole blocks
  uint64_t missing_bytes = 0;         // > 0: they do not fit
  size_t short_device = 0;            // where they are missing
};

// Of all lanes: weights that several need alike once, a device's workspace once, the buffers of each part of each lane
// (where they are not known, the step of each lane, as of shard_memory), and the pools one after another: each
// takes what the ones before leave, and so does each section of a pool; with shares, each its share of what the load
// needs, and of the bytes that are asked for. kv_most: [pool] positions, at most; 0 or none =
// as many as fit.
LanesMemory lanes_memory(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                         std::span<const LaneOfSet> lanes, std::span<const PoolTokens> kv_most = {});

// Whether all memory of these devices can hold the weights and KV of so many positions, however they are parted.
bool memory_holds(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                  std::span<const size_t> devices, double kv_tokens);

// Bytes of KV of one layer for one position and KV head.
double kv_head_bytes(const ModelShape& shape, const PlanRequest& request);
// By device: of so many positions of a pool, in each of its sections. `lane`: of that pool.
std::map<std::string, double> kv_bytes_of(const ModelShape& shape, const PlanRequest& request,
                                          const Placement& placement, const Lane& lane,
                                          std::span<const double> section_tokens);
// Of all layers and heads.
double kv_bytes_per_token(const ModelShape& shape, const PlanRequest& request);

}  // namespace motley
