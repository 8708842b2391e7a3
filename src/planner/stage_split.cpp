#include "planner/stage_split.hpp"

#include <algorithm>
#include <cmath>

#include "planner/split.hpp"

namespace motley {
namespace {

constexpr double kF32 = 4;
constexpr size_t kWholeAxesDevicesMax = 3;
constexpr int64_t kVocabularyUnits = 256;  // about so many pieces

// Of any size: rows of the head are no part of a quantised block.
int64_t vocabulary_unit(int64_t vocab) { return std::max<int64_t>(1, (vocab / kVocabularyUnits + 63) / 64 * 64); }

int64_t whole_ns(double ns) { return static_cast<int64_t>(std::llround(std::min(ns, 1e17))); }

bool same(const StagePlan& a, const StagePlan& b) {
  return std::equal(a.shards.begin(), a.shards.end(), b.shards.begin(), b.shards.end(),
                    [](const ShardPlan& x, const ShardPlan& y) {
                      return x.device == y.device && x.query_heads == y.query_heads && x.experts == y.experts &&
                             x.ffn_columns == y.ffn_columns && x.vocab_rows == y.vocab_rows;
                    });
}

}  // namespace

size_t StageSplitter::active(std::span<const size_t> devices, size_t device) const {
  return static_cast<size_t>(std::count_if(devices.begin(), devices.end(), [&](size_t other) {
    return costs_.decode.group_of(other) == costs_.decode.group_of(device);
  }));
}

int64_t StageSplitter::axis_units(Axis axis, const SplitNeed& need) const {
  const ModelShape& shape = predictor_.shape();
  const auto any = [&](auto of) {
    for (size_t l = need.begin; l < need.end; ++l) {
      if (of(shape.layers[l])) return true;
    }
    return false;
  };
  switch (axis) {
    case Axis::kHeads: return shape.kv_heads;
    case Axis::kQueryHeads: return shape.heads;
    case Axis::kFfn: return shape.ffn_columns / shape.ffn_unit;
    case Axis::kExperts: return any([](const LayerShape& layer) { return layer.has_experts; }) ? shape.experts : 0;
  }
  return 0;
}

// Bytes of one more unit: weights as packed, KV, and its part of a step's buffers.
double StageSplitter::unit_bytes(Axis axis, size_t device, const SplitNeed& need) const {
  const ModelShape& shape = predictor_.shape();
  const PlanRequest& request = predictor_.request();
  const double rows = request.step_bytes > 0 ? 0 : double{1} * request.chunk_rows + request.concurrency;
  const auto group = static_cast<double>(shape.query_heads_per_kv());
  double file = 0, more = 0;
  for (size_t l = need.begin; l < need.end; ++l) {
    const LayerShape& layer = shape.layers[l];
    const auto query = static_cast<double>(layer.query_head_bytes), kv = static_cast<double>(layer.kv_head_bytes);
    const double pool = kv_head_bytes(shape, request) * static_cast<double>(need.kv_tokens);
    switch (axis) {
      case Axis::kHeads: file += group * query + kv, more += pool; break;
      case Axis::kQueryHeads: file += query + kv, more += pool; break;  // at worst each holds a KV head of its own
      case Axis::kFfn: file += layer.has_ffn ? layer.ffn_column_bytes * static_cast<double>(shape.ffn_unit) : 0; break;
      case Axis::kExperts: file += layer.has_experts ? static_cast<double>(layer.expert_bytes) : 0; break;
    }
  }
  const auto dim = static_cast<double>(shape.head_dim);
  if (axis == Axis::kHeads) more += kF32 * rows * dim * (2 * group + 2);
  if (axis == Axis::kQueryHeads) more += kF32 * rows * dim * 4;
  if (axis == Axis::kFfn) more += kF32 * rows * 4 * static_cast<double>(shape.ffn_unit);
  return file * predictor_.input().devices[device].packed_ratio + more;
}

const StageSplitter::UnitTimes& StageSplitter::times_of(Axis axis, size_t device, uint32_t kind, int64_t units) const {
  const auto [at, is_new] = unit_times_.try_emplace({axis, predictor_.twins()[device], kind});
  UnitTimes& times = at->second;
  if (!is_new) return times;
  const ModelShape& shape = predictor_.shape();
  const int64_t group = shape.query_heads_per_kv();
  const auto ns = [&](const StepCosts& costs, int64_t u) {
    switch (axis) {
      case Axis::kHeads: return costs.attention_ns(device, kind, u * group, u);
      case Axis::kQueryHeads: return costs.attention_ns(device, kind, u, (u + group - 1) / group);
      case Axis::kFfn: return costs.ffn_ns(device, kind, u * shape.ffn_unit, 0);
      case Axis::kExperts: return costs.ffn_ns(device, kind, 0, u);
    }
    return 0.0;
  };
  for (int64_t u = 0; u <= units; ++u) {
    times.decode_ns.push_back(ns(costs_.decode, u));
    times.mixed_ns.push_back(ns(costs_.mixed, u));
  }
  return times;
}

std::vector<int64_t> StageSplitter::stage_times(Axis axis, size_t device, int64_t units, int64_t most, size_t active,
                                                Weights weights, std::span<const double> of_kind) const {
  const StepCosts &decode = costs_.decode, &mixed = costs_.mixed;
  const double slow_decode = weights.decode * decode.slowdown(device, active),
               slow_mixed = weights.mixed * mixed.slowdown(device, active);
  const double copy = weights.decode * decode.copy_residual_ns(device) + weights.mixed * mixed.copy_residual_ns(device);
  // Who has no unit gets the sum all the same: a copy and a program that adds it.
  const double idle = weights.decode * decode.program_ns(device) + weights.mixed * mixed.program_ns(device) + copy;
  std::vector<double> sums(static_cast<size_t>(most) + 1, 0);
  for (uint32_t kind = 0; kind < of_kind.size(); ++kind) {
    if (of_kind[kind] == 0) continue;
    const UnitTimes& times = times_of(axis, device, kind, units);
    sums[0] += of_kind[kind] * idle;
    for (size_t u = 1; u < sums.size(); ++u) {
      sums[u] += of_kind[kind] * (slow_decode * times.decode_ns[u] + slow_mixed * times.mixed_ns[u] + 2 * copy);
    }
  }
  std::vector<int64_t> ns;
  ns.reserve(sums.size());
  for (const double sum : sums) ns.push_back(std::max(whole_ns(sum), ns.empty() ? 0 : ns.back()));
  return ns;
}

const std::vector<int64_t>& StageSplitter::vocabulary_times(size_t device, bool first, bool last, bool shared) const {
  const auto [at, is_new] = vocabulary_times_.try_emplace({predictor_.twins()[device], first, last, shared});
  std::vector<int64_t>& times = at->second;
  if (!is_new) return times;
  const int64_t vocab = predictor_.shape().vocab, unit = shared ? vocabulary_unit(vocab) : vocab;
  for (int64_t u = 0; u <= (vocab + unit - 1) / unit; ++u) {
    const int64_t rows = std::min(u * unit, vocab);
    double sum = 0;
    if (first) sum += costs_.load.mean(costs_.decode.embed_ns(device, rows), costs_.mixed.embed_ns(device, rows));
    if (last) sum += costs_.load.mean(costs_.decode.head_ns(device, rows), costs_.mixed.head_ns(device, rows));
    if (last && shared && rows > 0) sum += costs_.decode.copy_logits_ns(device, rows);
    times.push_back(std::max(whole_ns(sum), times.empty() ? 0 : times.back()));
  }
  return times;
}

double StageSplitter::least_layer_ns(std::span<const size_t> devices, uint32_t kind) const {
  const ModelShape& shape = predictor_.shape();
  const double q = costs_.load.chunk_share;
  std::vector<double> of_kind(shape.kinds(), 0);
  of_kind[kind] = 1;
  const auto least = [&](Axis axis, int64_t units) {
    std::vector<SplitDevice> times;
    for (const size_t d : devices)
      times.push_back({stage_times(axis, d, units, units, active(devices, d), {1 - q, q}, of_kind), 0});
    const auto split = split_units(units, times);
    return split.ok() ? std::max(static_cast<double>(split->time_ns) - 0.5, 0.0) : 0;  // as rounded
  };
  const LayerShape& layer =
      *std::find_if(shape.layers.begin(), shape.layers.end(), [&](const LayerShape& l) { return l.kind == kind; });
  double ns = shape.kv_heads == 1 ? least(Axis::kQueryHeads, shape.heads) : least(Axis::kHeads, shape.kv_heads);
  double ffn = layer.has_ffn ? least(Axis::kFfn, shape.ffn_columns / shape.ffn_unit) : 0;
  if (layer.has_experts) {  // one program of both: each alone is a bound
    double program = 0;
    for (const size_t d : devices)
      program = std::max(program, costs_.load.mean(costs_.decode.program_ns(d), costs_.mixed.program_ns(d)));
    ffn = std::max(ffn, least(Axis::kExperts, shape.experts) - (layer.has_ffn ? program : 0));
  }
  return ns + ffn;
}

bool StageSplitter::split_axis(Axis axis, std::span<const size_t> devices, const SplitNeed& need, Weights weights,
                               int64_t least, Budget* budget, StagePlan* stage) const {
  const int64_t units = axis_units(axis, need);
  if (units == 0) return true;
  std::vector<double> of_kind(predictor_.shape().kinds(), 0);
  for (size_t l = need.begin; l < need.end; ++l) of_kind[predictor_.shape().layers[l].kind] += 1;
  std::vector<SplitDevice> times;
  std::vector<double> bytes;
  for (size_t i = 0; i < devices.size(); ++i) {
    bytes.push_back(unit_bytes(axis, devices[i], need));
    const double room = bytes[i] > 0 ? std::floor(budget->bytes[i] / bytes[i]) : static_cast<double>(units);
    const int64_t most = std::clamp<int64_t>(static_cast<int64_t>(std::min(room, 1e15)), 0, units);
    if (least > most) return false;
    times.push_back({stage_times(axis, devices[i], units, most, active(devices, devices[i]), weights, of_kind), least});
  }
  const auto split = split_units(units, times);
  if (!split.ok()) return false;
  const int64_t group = predictor_.shape().query_heads_per_kv();
  for (size_t i = 0; i < devices.size(); ++i) {
    const int64_t u = split->units[i];
    budget->bytes[i] -= static_cast<double>(u) * bytes[i];
    ShardPlan& shard = stage->shards[i];
    switch (axis) {
      case Axis::kHeads: shard.query_heads = u * group; break;
      case Axis::kQueryHeads: shard.query_heads = u; break;
      case Axis::kFfn: shard.ffn_columns = u * predictor_.shape().ffn_unit; break;
      case Axis::kExperts: shard.experts = u; break;
    }
  }
  return true;
}

StageSplitter::Budget StageSplitter::budget_of(std::span<const size_t> devices, const SplitNeed& need,
                                               bool limited) const {
  const ModelShape& shape = predictor_.shape();
  const PlanRequest& request = predictor_.request();
  Budget budget;
  double replicated = 0;
  for (size_t l = need.begin; l < need.end; ++l) replicated += static_cast<double>(shape.layers[l].replicated_bytes);
  if (need.end == shape.layers.size()) replicated += static_cast<double>(shape.final_norm_bytes);
  const double rows = double{1} * request.chunk_rows + request.concurrency;
  const double step = request.step_bytes > 0 ? static_cast<double>(request.step_bytes)
                                             : kF32 * rows * static_cast<double>(3 * shape.hidden);
  for (const size_t d : devices) {
    const double share = static_cast<double>(active(devices, d));
    const double usable = static_cast<double>(usable_bytes(predictor_.input(), d)) / share;
    const double left = usable - step - replicated * predictor_.input().devices[d].packed_ratio - 64;
    budget.bytes.push_back(limited ? std::max(left, 0.0) : 1e18);
  }
  return budget;
}

double StageSplitter::vocabulary_row_bytes(size_t device, const SplitNeed& need) const {
  const ModelShape& shape = predictor_.shape();
  const bool first = need.begin == 0, last = need.end == shape.layers.size();
  double file = 0;
  if (first) file += static_cast<double>(shape.embedding_bytes);
  if (last && !(first && shape.tied_head)) file += static_cast<double>(shape.head_bytes);
  const double logits = last && predictor_.request().step_bytes == 0 ? kF32 * predictor_.request().concurrency : 0;
  return file / static_cast<double>(shape.vocab) * predictor_.input().devices[device].packed_ratio + logits;
}

bool StageSplitter::place_vocabulary(std::span<const size_t> devices, const SplitNeed& need, bool shared,
                                     Budget* budget, StagePlan* stage) const {
  const ModelShape& shape = predictor_.shape();
  const bool first = need.begin == 0, last = need.end == shape.layers.size();
  if (!first && !last) return true;
  const int64_t unit = shared ? vocabulary_unit(shape.vocab) : shape.vocab;
  const int64_t units = (shape.vocab + unit - 1) / unit;
  std::vector<SplitDevice> times;
  for (size_t i = 0; i < devices.size(); ++i) {
    const double row = vocabulary_row_bytes(devices[i], need);
    const double room = row > 0 ? budget->bytes[i] / (row * static_cast<double>(unit)) : static_cast<double>(units);
    const int64_t most = std::clamp<int64_t>(static_cast<int64_t>(std::min(room, 1e15)), 0, units);
    const std::vector<int64_t>& all = vocabulary_times(devices[i], first, last, shared);
    times.push_back({{all.begin(), all.begin() + most + 1}, 0});
  }
  const auto split = split_units(units, times);
  if (!split.ok()) return false;
  int64_t left = shape.vocab;
  for (size_t i = 0; i < devices.size(); ++i) {
    stage->shards[i].vocab_rows = std::min(split->units[i] * unit, left);
    left -= stage->shards[i].vocab_rows;
    budget->bytes[i] -= static_cast<double>(stage->shards[i].vocab_rows) * vocabulary_row_bytes(devices[i], need);
  }
  return left == 0;
}

double StageSplitter::axis_bytes(Axis axis, size_t device, const SplitNeed& need) const {
  return static_cast<double>(axis_units(axis, need)) * unit_bytes(axis, device, need);
}

bool StageSplitter::split_layers(std::span<const size_t> devices, const SplitNeed& need, Weights weights,
                                 bool replicate, Memory memory, StagePlan* stage, Budget* budget) const {
  *stage = {need.begin, need.end, {}};
  for (const size_t d : devices) stage->shards.push_back({d, 0, 0, 0, 0, 0});
  *budget = budget_of(devices, need, memory != Memory::kEnough);
  const Axis heads = replicate ? Axis::kQueryHeads : Axis::kHeads;
  std::vector<Axis> order = {heads, Axis::kExperts, Axis::kFfn};
  if (memory == Memory::kFfnFirst) order = {Axis::kExperts, Axis::kFfn, heads};
  // Where each device must take part, it does in the axis of most units.
  Axis widest = heads;
  for (const Axis axis : order) {
    if (axis_units(axis, need) > axis_units(widest, need)) widest = axis;
  }
  double all_bytes = 0;
  for (const Axis axis : order) all_bytes += axis_bytes(axis, devices[0], need);
  if (need.begin == 0 || need.end == predictor_.shape().layers.size()) {
    all_bytes += vocabulary_row_bytes(devices[0], need) * static_cast<double>(predictor_.shape().vocab);
  }
  const Budget whole = *budget;
  for (const Axis axis : order) {
    const double part = memory == Memory::kEven ? axis_bytes(axis, devices[0], need) / std::max(all_bytes, 1.0) : 1;
    Budget share = memory == Memory::kEven ? whole : *budget;
    for (double& bytes : share.bytes) bytes *= part;
    const Budget before = share;
    if (!split_axis(axis, devices, need, weights, need.everybody && axis == widest ? 1 : 0, &share, stage))
      return false;
    for (size_t i = 0; i < devices.size(); ++i) budget->bytes[i] -= before.bytes[i] - share.bytes[i];
  }
  settle_heads(predictor_.shape(), stage);
  return true;
}

void StageSplitter::add_all(std::span<const size_t> devices, const SplitNeed& need, Memory memory,
                            std::vector<StagePlan>* plans) const {
  const ModelShape& shape = predictor_.shape();
  const double q = costs_.load.chunk_share;
  std::vector<Weights> loads = {{1 - q, q}, {1, 0}, {0, 1}};
  if (need.few || devices.size() == 1) loads.resize(1);
  // Attention pairs queries and KV heads evenly, so only a head that all share can be divided freely.
  const bool may_replicate = devices.size() > 1 && shape.query_heads_per_kv() > 1 && shape.kv_heads == 1 &&
                             shape.kv_heads < 4 * static_cast<int64_t>(devices.size()) &&
                             !(need.few && shape.kv_heads >= static_cast<int64_t>(devices.size()));
  for (const Weights& weights : loads) {
    for (int replicate = 0; replicate <= (may_replicate ? 1 : 0); ++replicate) {
      for (int shared = 0; shared <= (devices.size() > 1 ? 1 : 0); ++shared) {
        StagePlan stage;
        Budget budget;
        if (!split_layers(devices, need, weights, replicate == 1, memory, &stage, &budget)) continue;
        if (!place_vocabulary(devices, need, shared == 1, &budget, &stage)) continue;
        std::erase_if(stage.shards, [](const ShardPlan& shard) { return shard.empty(); });
        if (std::none_of(plans->begin(), plans->end(), [&](const StagePlan& plan) { return same(plan, stage); })) {
          plans->push_back(std::move(stage));
        }
      }
    }
  }
}

// Each axis whole on one device: where memory is short, no even mix comes near it.
void StageSplitter::add_whole_axes(std::span<const size_t> devices, const SplitNeed& need,
                                   std::vector<StagePlan>* plans) const {
  const ModelShape& shape = predictor_.shape();
  const size_t n = devices.size();
  const bool outer = need.begin == 0 || need.end == shape.layers.size();
  for (size_t choice = 0; choice < n * n * n; ++choice) {
    StagePlan stage{need.begin, need.end, {}};
    for (const size_t d : devices) stage.shards.push_back({d, 0, 0, 0, 0, 0});
    stage.shards[choice % n].query_heads = shape.heads;
    stage.shards[choice / n % n].ffn_columns = shape.ffn_columns;
    stage.shards[choice / n % n].experts = shape.experts;
    if (outer) stage.shards[choice / n / n].vocab_rows = shape.vocab;
    std::erase_if(stage.shards, [](const ShardPlan& shard) { return shard.empty(); });
    settle_heads(shape, &stage);
    plans->push_back(std::move(stage));
  }
}

std::vector<StagePlan> StageSplitter::split(std::span<const size_t> devices, const SplitNeed& need) const {
  std::vector<StagePlan> plans;
  if (devices.empty()) return plans;
  add_all(devices, need, Memory::kEnough, &plans);
  if (need.unlimited) return plans;
  const auto holds = [&](const StagePlan& stage) {
    LanePlan lane;  // a stage at the same end of the model
    const size_t last = predictor_.shape().layers.size();
    if (stage.begin > 0) lane.stages.push_back({0, stage.begin, {}});
    lane.stages.push_back(stage);
    if (stage.end < last) lane.stages.push_back({stage.end, last, {}});
    const size_t at = stage.begin > 0 ? 1 : 0;
    for (const ShardPlan& shard : stage.shards) {
      const ShardMemory memory =
          shard_memory(predictor_.shape(), predictor_.input(), predictor_.request(), lane, at, shard);
      const uint64_t bytes = memory.weight_bytes + memory.step_bytes + memory.kv_bytes_per_token * need.kv_tokens;
      if (bytes > usable_bytes(predictor_.input(), shard.device)) return false;
    }
    return true;
  };
  if (std::all_of(plans.begin(), plans.end(), holds) && !plans.empty()) {
    // Groups that share memory are checked by whoever puts the stages together.
    bool grouped = false;
    for (const size_t d : devices) grouped = grouped || active(devices, d) > 1;
    if (!grouped) return plans;  // memory is no matter
  }
  std::erase_if(plans, [&](const StagePlan& stage) { return !holds(stage); });
  for (const Memory memory : {Memory::kHeadsFirst, Memory::kFfnFirst, Memory::kEven}) {
    add_all(devices, need, memory, &plans);
  }
  if (!need.few && devices.size() > 1 && devices.size() <= kWholeAxesDevicesMax) {
    add_whole_axes(devices, need, &plans);
  }
  return plans;
}

}  // namespace motley
