#include "planner/plan.hpp"

#include <algorithm>
#include <array>
#include <numeric>

#include "model/axes.hpp"

namespace motley {
namespace {

uint64_t weight_bytes(const Model& model) {
  uint64_t bytes = 0;
  for (size_t i = 0; i < model.graph().weights.size(); ++i) bytes += model.weight(i).bytes;
  return bytes;
}

// The device's share of the whole model: every unit of every axis.
Shard whole_model(const Model& model, const std::string& device, uint64_t bytes) {
  const ModelAxes axes = axes_of(model);
  Shard shard;
  shard.device = device;
  shard.kv_heads = {{0, axes.kv_heads}};
  if (axes.ffn_columns > 0) shard.ffn_columns = {{0, axes.ffn_columns}};
  shard.vocab_rows = {{0, axes.vocab}};
  shard.experts.resize(static_cast<size_t>(axes.experts));
  std::iota(shard.experts.begin(), shard.experts.end(), 0);
  shard.weight_bytes = bytes;
  return shard;
}

}  // namespace

std::string bytes_text(uint64_t bytes) {
  static constexpr std::array<const char*, 4> kUnits = {"B", "KiB", "MiB", "GiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

uint64_t default_pool_bytes(bool own_memory, uint64_t free, uint64_t left) {
  return own_memory ? left / 8 * 7 : std::min({kKvPoolBytesDefaultMax, free / 4, left});
}

Result<Placement> plan_single_device(const Model& model, const PlanDevice& device, const PlanOptions& options) {
  const uint64_t weights = weight_bytes(model);
  const uint64_t fixed = weights + device.step_bytes;
  if (fixed >= device.memory_free) {
    return error(
        MOTLEY_RESOURCE_EXHAUSTED,
        "{} needs {} for its weights and {} a step; {} has {} free: {} missing. A smaller quantisation would fit, or "
        "smaller steps (--max-num-batched-tokens, --max-num-seqs)",
        model.config().name, bytes_text(weights), bytes_text(device.step_bytes), device.name,
        bytes_text(device.memory_free), bytes_text(fixed - device.memory_free));
  }
  const uint64_t left = device.memory_free - fixed;
  uint64_t pool = options.kv_bytes;
  if (pool == 0) pool = default_pool_bytes(device.own_memory, device.memory_free, left);
  if (pool > left) {
    return error(MOTLEY_RESOURCE_EXHAUSTED,
                 "a KV pool of {} does not fit beside the model: {} has {} free after the weights; lower "
                 "--kv-cache-memory-bytes",
                 bytes_text(pool), device.name, bytes_text(left));
  }
  const uint64_t blocks =
      std::min<uint64_t>(pool / std::max<uint64_t>(device.kv_bytes_per_block, 1), INT32_MAX / options.block_size);
  const uint64_t needed =
      options.max_model_len == 0 ? 1 : (uint64_t{options.max_model_len} + options.block_size - 1) / options.block_size;
  if (blocks < needed) {
    return error(MOTLEY_RESOURCE_EXHAUSTED,
                 "the KV pool of {} holds {} tokens, fewer than asked ({}); lower --max-model-len, raise "
                 "--kv-cache-memory-bytes to {} or take --kv-cache-dtype int8",
                 bytes_text(pool), blocks * options.block_size, std::max(options.max_model_len, options.block_size),
                 needed * device.kv_bytes_per_block);
  }
  Placement placement;
  placement.epoch = 1;
  placement.block_size = options.block_size;
  placement.kv_dtype = options.kv_dtype;
  Lane lane;
  lane.kv_blocks = static_cast<uint32_t>(blocks);
  lane.stages.push_back({0, model.config().layers, {whole_model(model, device.name, weights)}, {device.name}});
  placement.lanes.push_back(std::move(lane));
  return placement;
}

}  // namespace motley
