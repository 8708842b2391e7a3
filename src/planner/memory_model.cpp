#include "planner/memory_model.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "planner/plan.hpp"

namespace motley {
namespace {

constexpr double kF32 = 4;

double file_bytes(const ModelShape& shape, const LanePlan& plan, size_t s, const ShardPlan& shard) {
  const StagePlan& stage = plan.stages[s];
  double bytes = 0;
  for (size_t l = stage.begin; l < stage.end && shard.in_layers(); ++l) {
    const LayerShape& layer = shape.layers[l];
    bytes += static_cast<double>(layer.replicated_bytes);
    bytes += static_cast<double>(layer.query_head_bytes) * static_cast<double>(shard.query_heads);
    bytes += static_cast<double>(layer.kv_head_bytes) * static_cast<double>(shard.kv_heads);
    if (layer.has_ffn) bytes += layer.ffn_column_bytes * static_cast<double>(shard.ffn_columns);
    if (layer.has_experts) bytes += static_cast<double>(layer.expert_bytes) * static_cast<double>(shard.experts);
  }
  if (shard.vocab_rows == 0) return bytes;
  const double part = static_cast<double>(shard.vocab_rows) / static_cast<double>(shape.vocab);
  const bool first = s == 0, last = s + 1 == plan.stages.size();
  if (last) bytes += static_cast<double>(shape.final_norm_bytes);
  if (first) bytes += part * static_cast<double>(shape.embedding_bytes);
  if (last && !(first && shape.tied_head)) bytes += part * static_cast<double>(shape.head_bytes);
  return bytes;
}

// Queries, keys, values and outputs of a step.
double attention_bytes(const ModelShape& shape, const PlanRequest& request, const ShardPlan& shard) {
  const double rows = double{1} * request.chunk_rows + request.concurrency;
  return kF32 * rows * static_cast<double>((2 * shard.query_heads + 2 * shard.kv_heads) * shape.head_dim);
}

double step_bytes(const ModelShape& shape, const PlanRequest& request, bool last, const ShardPlan& shard) {
  if (request.step_bytes > 0) return static_cast<double>(request.step_bytes);
  const double rows = double{1} * request.chunk_rows + request.concurrency;
  const auto heads = static_cast<double>((2 * shard.query_heads + 2 * shard.kv_heads) * shape.head_dim);
  const auto columns = static_cast<double>(4 * std::max(shard.ffn_columns, shard.experts > 0 ? shape.expert_ffn : 0));
  double floats = rows * (static_cast<double>(3 * shape.hidden) + heads + columns);
  if (last) floats += static_cast<double>(request.concurrency) * static_cast<double>(shard.vocab_rows);
  return kF32 * floats;
}

// Bytes for KV pools on a device that has `left` after weights and steps.
uint64_t pool_bytes(const PlanRequest& request, bool own_memory, uint64_t left, uint64_t usable, uint64_t load_bytes) {
  if (request.kv.bytes > 0) return left;  // the cap of all pools is applied to tokens
  return std::min(left, std::max(load_bytes, default_pool_bytes(own_memory, usable, left)));
}

}  // namespace

double kv_head_bytes(const ModelShape& shape, const PlanRequest& request) {
  return 2 * static_cast<double>(shape.head_dim) * request.kv.element_bytes;
}

ShardMemory shard_memory(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                         const LanePlan& plan, size_t s, const ShardPlan& shard) {
  const StagePlan& stage = plan.stages[s];
  ShardMemory memory;
  memory.weight_bytes =
      static_cast<uint64_t>(std::llround(file_bytes(shape, plan, s, shard) * input.devices[shard.device].packed_ratio));
  memory.step_bytes = static_cast<uint64_t>(step_bytes(shape, request, s + 1 == plan.stages.size(), shard));
  memory.kv_bytes_per_token =
      static_cast<uint64_t>(std::ceil(kv_head_bytes(shape, request) * static_cast<double>(shard.kv_heads) *
                                      static_cast<double>(stage.end - stage.begin)));
  return memory;
}

LaneMemory lane_memory(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                       const LanePlan& plan) {
  std::map<size_t, DeviceMemory> devices;
  struct Group {
    uint64_t usable = 0, fixed = 0, per_token = 0;
    size_t device = 0;
  };
  std::map<std::string, Group> groups;
  uint64_t per_token = 0;
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    for (const ShardPlan& shard : plan.stages[s].shards) {
      const ShardMemory part = shard_memory(shape, input, request, plan, s, shard);
      DeviceMemory& device = devices[shard.device];
      device.device = shard.device;
      device.weight_bytes += part.weight_bytes;
      device.step_bytes = std::max(device.step_bytes, part.step_bytes);
      device.usable_bytes = usable_bytes(input, shard.device);
      DeviceMemory& owner = devices[shard.kv_owner()];
      owner.device = shard.kv_owner();
      owner.kv_bytes_per_token += part.kv_bytes_per_token;
      owner.usable_bytes = usable_bytes(input, shard.kv_owner());
      if (shard.partner != kNoPartner)
        owner.step_bytes = std::max(owner.step_bytes, static_cast<uint64_t>(attention_bytes(shape, request, shard)));
      per_token += part.kv_bytes_per_token;
    }
  }
  LaneMemory memory;
  uint64_t tokens = per_token > 0 && request.kv.bytes > 0 ? request.kv.bytes / per_token : UINT64_MAX;
  const uint64_t least = least_kv_tokens(shape, request), load = load_kv_tokens(shape, request);
  const auto fit = [&](uint64_t usable, uint64_t fixed, uint64_t per, size_t device) {
    const bool own_memory = input.devices[device].own_memory;
    const uint64_t needed = fixed + per * least;
    if (needed > usable && needed - usable > memory.missing_bytes) {
      memory.missing_bytes = needed - usable, memory.short_device = device;
    }
    if (fixed < usable && per > 0)
      tokens = std::min(tokens, pool_bytes(request, own_memory, usable - fixed, usable, per * load) / per);
  };
  for (const auto& [index, device] : devices) {
    fit(device.usable_bytes, device.weight_bytes + device.step_bytes, device.kv_bytes_per_token, index);
    memory.devices.push_back(device);
    const std::string& name = input.devices[index].memory_group;
    if (name.empty()) continue;
    Group& group = groups[name];
    group.usable = std::max(group.usable, device.usable_bytes);
    group.fixed += device.weight_bytes + device.step_bytes;
    group.per_token += device.kv_bytes_per_token;
    group.device = index;
  }
  for (const auto& [name, group] : groups) fit(group.usable, group.fixed, group.per_token, group.device);
  tokens = std::min<uint64_t>(tokens, uint64_t{INT32_MAX});
  memory.kv_tokens = memory.missing_bytes > 0 ? 0 : tokens / request.kv.block_size * request.kv.block_size;
  if (memory.missing_bytes == 0 && memory.kv_tokens < least) {  // the cap of all pools
    memory.missing_bytes = std::max<uint64_t>(1, per_token * least - std::min(per_token * least, request.kv.bytes));
    memory.kv_tokens = 0;
  }
  return memory;
}

bool memory_holds(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                  std::span<const size_t> devices, double kv_tokens) {
  constexpr double kSlack = 1 + 1e-9;  // what rounding makes of it
  std::map<std::string_view, double> groups;
  double memory = 0, ratio = std::numeric_limits<double>::max();
  for (const size_t d : devices) {
    const DeviceProfile& device = input.devices[d];
    const auto usable = static_cast<double>(usable_bytes(input, d));
    ratio = std::min(ratio, device.packed_ratio);
    if (device.memory_group.empty()) {
      memory += usable;
    } else {
      groups[device.memory_group] = std::max(groups[device.memory_group], usable);
    }
  }
  for (const auto& [name, usable] : groups) memory += usable;
  const double kv = kv_head_bytes(shape, request) * static_cast<double>(shape.kv_heads) *
                    static_cast<double>(shape.layers.size()) * kv_tokens;
  if (request.kv.bytes > 0 && kv > static_cast<double>(request.kv.bytes) * kSlack) return false;
  return static_cast<double>(shape.weight_bytes()) * ratio + kv <= memory * kSlack;
}

}  // namespace motley
