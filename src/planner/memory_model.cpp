#include "planner/memory_model.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <string_view>

#include "planner/plan.hpp"

namespace motley {
namespace {

constexpr double kF32 = 4;

// Of a shard's layers, embedding and head, in the file.
enum { kLayers, kEmbedding, kHead, kParts };
using PartBytes = std::array<double, kParts>;

PartBytes file_bytes(const ModelShape& shape, const LanePlan& plan, size_t s, const ShardPlan& shard) {
  const StagePlan& stage = plan.stages[s];
  PartBytes parts{};
  double& bytes = parts[kLayers];
  for (size_t l = stage.begin; l < stage.end && shard.in_layers(); ++l) {
    const LayerShape& layer = shape.layers[l];
    bytes += static_cast<double>(layer.replicated_bytes);
    bytes += static_cast<double>(layer.query_head_bytes) * static_cast<double>(shard.query_heads);
    bytes += static_cast<double>(layer.kv_head_bytes) * static_cast<double>(shard.kv_heads);
    if (layer.has_ffn) bytes += layer.ffn_column_bytes * static_cast<double>(shard.ffn_columns);
    if (layer.has_experts) bytes += static_cast<double>(layer.expert_bytes) * static_cast<double>(shard.experts);
  }
  if (shard.vocab_rows == 0) return parts;
  const double part = static_cast<double>(shard.vocab_rows) / static_cast<double>(shape.vocab);
  const bool first = s == 0, last = s + 1 == plan.stages.size();
  if (first) parts[kEmbedding] = part * static_cast<double>(shape.embedding_bytes);
  if (last) parts[kHead] = static_cast<double>(shape.final_norm_bytes);
  if (last && !(first && shape.tied_head)) parts[kHead] += part * static_cast<double>(shape.head_bytes);
  return parts;
}

// Queries, keys, values and outputs of a step.
double attention_bytes(const ModelShape& shape, double rows, const ShardPlan& shard) {
  return kF32 * rows * static_cast<double>((2 * shard.query_heads + 2 * shard.kv_heads) * shape.head_dim);
}

// The buffers that the runtime makes of a shard on its own device, and those of each who attends for it.
struct PartBuffers {
  double own = 0, attendant = 0;
};

PartBuffers part_buffers(const ModelShape& shape, const StepBuffers& buffers, const LanePlan& plan, size_t s,
                         const ShardPlan& shard) {
  const StagePlan& stage = plan.stages[s];
  const double rows = buffers.rows, residual = kF32 * rows * static_cast<double>(shape.hidden);
  const bool first = s == 0, last = s + 1 == plan.stages.size(), alone = plan.stages.size() == 1;
  PartBuffers part;
  part.own = residual;
  if (splits_layers(stage) && shard.in_layers()) part.own += 2 * residual;  // summands
  const auto others = static_cast<double>(plan.sections.size()) + (shard.partner == kNoPartner ? 0 : 1);
  if (shard.kv_heads > 0 && others > 0) {
    const double heads = kF32 * rows * static_cast<double>(shard.query_heads);
    const double sums = plan.sections.empty() ? 0 : heads;  // a log-sum-exp of each result
    part.attendant = attention_bytes(shape, rows, shard) + sums;
    part.own += part.attendant + (others - 1) * (heads * static_cast<double>(shape.head_dim) + sums);
  }
  if (shard.vocab_rows == 0) return part;
  if (first || last) part.own += static_cast<double>(sizeof(int32_t) * buffers.slots);
  if (!last) return part;
  const auto& drawer = *std::find_if(stage.shards.begin(), stage.shards.end(),
                                     [](const ShardPlan& each) { return each.vocab_rows > 0; });
  if (shard.vocab_rows < shape.vocab) part.own += kF32 * buffers.logit_rows * static_cast<double>(shard.vocab_rows);
  if (drawer.device != shard.device) return part;
  const double sets = alone && !has_partners(plan) ? 2 : 1;  // one step ahead
  part.own += kF32 * buffers.logit_rows * static_cast<double>(shape.vocab);
  part.own += sets * static_cast<double>(result_bytes(buffers));
  return part;
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
  const PartBytes parts = file_bytes(shape, plan, s, shard);
  memory.weight_bytes = static_cast<uint64_t>(
      std::llround(std::accumulate(parts.begin(), parts.end(), 0.0) * input.devices[shard.device].packed_ratio));
  memory.step_bytes = static_cast<uint64_t>(step_bytes(shape, request, s + 1 == plan.stages.size(), shard));
  memory.kv_bytes_per_token =
      static_cast<uint64_t>(std::ceil(kv_head_bytes(shape, request) * static_cast<double>(shard.kv_heads) *
                                      static_cast<double>(stage.end - stage.begin)));
  return memory;
}

namespace {

// A part of a shard, wherever it is: equal ones are packed once.
using PartKey = std::array<int64_t, 11>;

PartKey key_of(const LanePlan& plan, size_t s, size_t index, int64_t part) {
  const StagePlan& stage = plan.stages[s];
  ShardPlan before;
  for (size_t i = 0; i < index; ++i) {
    const ShardPlan& shard = stage.shards[i];
    before.query_heads += shard.query_heads, before.ffn_columns += shard.ffn_columns;
    before.experts += shard.experts, before.vocab_rows += shard.vocab_rows;
  }
  const ShardPlan& own = stage.shards[index];
  const auto device = static_cast<int64_t>(own.device);
  if (part != kLayers) return {part, device, before.vocab_rows, own.vocab_rows};
  return {part,
          device,
          static_cast<int64_t>(stage.begin),
          static_cast<int64_t>(stage.end),
          before.query_heads,
          own.query_heads,
          own.kv_heads,
          before.ffn_columns,
          own.ffn_columns,
          before.experts,
          own.experts};
}

// What devices hold of lanes, one thing after another.
class MemoryCount {
 public:
  MemoryCount(const ModelShape& shape, const PlanInput& input, const PlanRequest& request)
      : shape_(shape), input_(input), request_(request) {}

  // Weights that are not counted yet, and step buffers: where others attend, two steps are under way.
  void add(const LanePlan& plan) {
    for (size_t s = 0; s < plan.stages.size(); ++s) {
      for (size_t i = 0; i < plan.stages[s].shards.size(); ++i)
        device(plan.stages[s].shards[i].device).weight_bytes += new_bytes(plan, s, i);
    }
    const uint64_t ways = has_partners(plan) ? 2 : 1;
    if (request_.buffers.rows > 0) {
      add_buffers(plan, static_cast<double>(ways));
    } else {
      add_steps(plan, ways);
    }
  }

  // The lane's pool, of `most` positions (0: as many as fit), at least of `least`; where nobody says how large, of what
  // `load` positions need. Its positions.
  PoolTokens add_pool(const LanePlan& plan, uint64_t least, uint64_t load, const PoolTokens& most) {
    std::map<size_t, uint64_t> per_token;
    uint64_t all = 0;
    for (size_t s = 0; s < plan.stages.size(); ++s) {
      for (const ShardPlan& shard : plan.stages[s].shards) {
        const uint64_t bytes = shard_memory(shape_, input_, request_, plan, s, shard).kv_bytes_per_token;
        per_token[shard.kv_owner()] += bytes;
        all += bytes;
      }
    }
    PoolTokens pool;
    if (plan.sections.empty()) {
      pool.first = add_section(per_token, least, load, most.first);
      return pool;
    }
    const uint64_t block = request_.kv.block_size;  // one at least of each; the last has what is left of a sequence
    pool.first = add_section(per_token, block, std::max(load, block), most.first);
    for (size_t s = 0; s < plan.sections.size(); ++s) {
      const uint64_t left = load - std::min(load, pool.all());
      const uint64_t most_here = s < most.further.size() ? most.further[s] : 0;
      const bool last = s + 1 == plan.sections.size();
      const uint64_t least_here = last ? std::max(block, least - std::min(least, pool.all())) : block;
      pool.further.push_back(
          add_section({{plan.sections[s].owner, all}}, least_here, std::max(left, least_here), most_here));
    }
    return pool;
  }

  std::vector<DeviceMemory> devices() const {
    std::vector<DeviceMemory> all;
    for (const auto& [index, device] : devices_) all.push_back(device);
    return all;
  }
  uint64_t missing_bytes() const { return missing_bytes_; }
  size_t short_device() const { return short_device_; }

 private:
  // A memory: a device's, or what a group shares.
  struct Part {
    uint64_t usable = 0, held = 0, per_token = 0;
    size_t device = 0;
  };

  void add_buffers(const LanePlan& plan, double ways) {
    const auto add = [&](size_t index, double bytes) {
      if (with_workspace_.insert(index).second) device(index).step_bytes += request_.buffers.workspace_bytes;
      device(index).step_bytes += static_cast<uint64_t>(ways * bytes);
    };
    for (size_t s = 0; s < plan.stages.size(); ++s) {
      for (const ShardPlan& shard : plan.stages[s].shards) {
        const PartBuffers part = part_buffers(shape_, request_.buffers, plan, s, shard);
        add(shard.device, part.own);
        if (part.attendant == 0) continue;
        if (shard.partner != kNoPartner) add(shard.partner, part.attendant);
        for (const SectionPlan& section : plan.sections) add(section.owner, part.attendant);
      }
    }
  }

  // Where nobody knows what buffers are made for.
  void add_steps(const LanePlan& plan, uint64_t ways) {
    const double rows = double{1} * request_.chunk_rows + request_.concurrency;
    std::map<size_t, uint64_t> steps;
    const auto step = [&steps](size_t device, uint64_t bytes) { steps[device] = std::max(steps[device], bytes); };
    for (size_t s = 0; s < plan.stages.size(); ++s) {
      for (const ShardPlan& shard : plan.stages[s].shards) {
        step(shard.device, shard_memory(shape_, input_, request_, plan, s, shard).step_bytes);
        const auto attention = static_cast<uint64_t>(attention_bytes(shape_, rows, shard));
        for (const SectionPlan& section : plan.sections) step(section.owner, attention);
        if (shard.partner != kNoPartner) step(shard.partner, attention);
      }
    }
    for (const auto& [index, bytes] : steps) device(index).step_bytes += ways * bytes;
  }

  // Blocks with owners that keep so many bytes each of a position.
  uint64_t add_section(const std::map<size_t, uint64_t>& per_token, uint64_t least, uint64_t load, uint64_t most) {
    uint64_t all = 0;
    for (const auto& [index, bytes] : per_token) all += bytes;
    uint64_t tokens = uint64_t{INT32_MAX};
    if (all > 0 && request_.kv.bytes > 0) tokens = std::min(tokens, (request_.kv.bytes - pools_bytes_) / all);
    if (most > 0) tokens = std::min(tokens, std::max(most, least));
    for (const Part& part : parts(per_token)) {
      const uint64_t needed = part.held + part.per_token * least;
      if (needed > part.usable) miss(needed - part.usable, part.device);
      if (part.held >= part.usable || part.per_token == 0) continue;
      const uint64_t left = part.usable - part.held;
      const bool own_memory = input_.devices[part.device].own_memory;
      tokens =
          std::min(tokens, pool_bytes(request_, own_memory, left, part.usable, part.per_token * load) / part.per_token);
    }
    tokens = missing_bytes_ > 0 ? 0 : tokens / request_.kv.block_size * request_.kv.block_size;
    if (missing_bytes_ == 0 && tokens < least) {  // the cap of all pools
      miss(std::max<uint64_t>(1, all * least - std::min(all * least, request_.kv.bytes - pools_bytes_)), short_device_);
      tokens = 0;
    }
    pools_bytes_ += all * tokens;
    for (const auto& [index, bytes] : per_token) devices_[index].kv_bytes += bytes * tokens;
    return tokens;
  }

  std::vector<Part> parts(const std::map<size_t, uint64_t>& per_token) const {
    std::vector<Part> all;
    std::map<std::string_view, Part> groups;
    for (const auto& [index, device] : devices_) {
      const auto at = per_token.find(index);
      const Part part{device.usable_bytes, device.weight_bytes + device.step_bytes + device.kv_bytes,
                      at == per_token.end() ? 0 : at->second, index};
      all.push_back(part);
      const std::string& name = input_.devices[index].memory_group;
      if (name.empty()) continue;
      Part& group = groups[name];
      group.usable = std::max(group.usable, part.usable);
      group.held += part.held, group.per_token += part.per_token;
      group.device = index;
    }
    for (const auto& [name, group] : groups) all.push_back(group);
    return all;
  }

  uint64_t new_bytes(const LanePlan& plan, size_t s, size_t index) {
    const ShardPlan& shard = plan.stages[s].shards[index];
    const PartBytes parts = file_bytes(shape_, plan, s, shard);
    double bytes = 0;
    for (int64_t part = 0; part < kParts; ++part)
      if (counted_.insert(key_of(plan, s, index, part)).second) bytes += parts[static_cast<size_t>(part)];
    return static_cast<uint64_t>(std::llround(bytes * input_.devices[shard.device].packed_ratio));
  }

  void miss(uint64_t bytes, size_t device) {
    if (bytes > missing_bytes_) missing_bytes_ = bytes, short_device_ = device;
  }

  DeviceMemory& device(size_t index) {
    DeviceMemory& device = devices_[index];
    device.device = index;
    device.usable_bytes = usable_bytes(input_, index);
    return device;
  }

  const ModelShape& shape_;
  const PlanInput& input_;
  const PlanRequest& request_;
  std::map<size_t, DeviceMemory> devices_;
  std::set<PartKey> counted_;
  std::set<size_t> with_workspace_;
  uint64_t pools_bytes_ = 0, missing_bytes_ = 0;
  size_t short_device_ = 0;
};

}  // namespace

LaneMemory lane_memory(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                       const LanePlan& plan) {
  MemoryCount count(shape, input, request);
  count.add(plan);
  LaneMemory memory;
  memory.kv_tokens = count.add_pool(plan, least_kv_tokens(shape, request), load_kv_tokens(shape, request), {}).all();
  memory.devices = count.devices();
  memory.missing_bytes = count.missing_bytes(), memory.short_device = count.short_device();
  return memory;
}

LanesMemory lanes_memory(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                         std::span<const LaneOfSet> lanes, std::span<const PoolTokens> kv_most) {
  MemoryCount count(shape, input, request);
  for (const LaneOfSet& lane : lanes) count.add(lane.plan);
  LanesMemory memory;
  const uint64_t least = least_kv_tokens(shape, request);
  const uint64_t all = load_kv_tokens(shape, request);
  const double per_token = kv_bytes_per_token(shape, request);
  uint64_t load = all;
  for (const LaneOfSet& lane : lanes) {
    if (lane.pool < memory.kv_tokens.size()) continue;
    PoolTokens most = lane.pool < kv_most.size() ? kv_most[lane.pool] : PoolTokens();
    if (lane.share > 0) {
      load = static_cast<uint64_t>(std::llround(lane.share * static_cast<double>(all)));
      if (request.kv.bytes > 0 && most.first == 0)
        most.first = static_cast<uint64_t>(lane.share * static_cast<double>(request.kv.bytes) / per_token);
    }
    memory.kv_tokens.push_back(count.add_pool(lane.plan, least, std::max(load, least), most));
    load -= std::min(load, memory.kv_tokens.back().all());
  }
  memory.devices = count.devices();
  memory.missing_bytes = count.missing_bytes(), memory.short_device = count.short_device();
  return memory;
}

std::map<std::string, double> kv_bytes_of(const ModelShape& shape, const PlanRequest& request,
                                          const Placement& placement, const Lane& lane,
                                          std::span<const double> section_tokens) {
  const double each = kv_head_bytes(shape, request);
  std::map<std::string, double> bytes;
  for (const auto& [owner, layer_begin, layer_end, begin, end] : kv_parts(placement, lane.pool))
    bytes[owner] += section_tokens[0] * each * static_cast<double>(end - begin) * (layer_end - layer_begin);
  for (size_t i = 0; i < lane.sections.size(); ++i)
    bytes[lane.sections[i].owner] += section_tokens[i + 1] * kv_bytes_per_token(shape, request);
  return bytes;
}

double kv_bytes_per_token(const ModelShape& shape, const PlanRequest& request) {
  return kv_head_bytes(shape, request) * static_cast<double>(shape.kv_heads) * static_cast<double>(shape.layers.size());
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
  const double kv = kv_bytes_per_token(shape, request) * kv_tokens;
  if (request.kv.bytes > 0 && kv > static_cast<double>(request.kv.bytes) * kSlack) return false;
  return static_cast<double>(shape.weight_bytes()) * ratio + kv <= memory * kSlack;
}

}  // namespace motley
