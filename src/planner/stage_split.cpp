#include "planner/stage_split.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "planner/split.hpp"

namespace motley {
namespace {

constexpr double kF32 = 4;
constexpr size_t kTightDevicesMax = 4;
constexpr double kTightWaysMax = 200;
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
      times.push_back(
          {stage_times(axis, d, units, can_hold(axis, d) ? units : 0, active(devices, d), {1 - q, q}, of_kind), 0});
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
    const int64_t most =
        std::clamp<int64_t>(static_cast<int64_t>(std::min(room, 1e15)), 0, can_hold(axis, devices[i]) ? units : 0);
    if (least > most) return false;
    times.push_back({stage_times(axis, devices[i], units, most, active(devices, devices[i]), weights, of_kind), least});
  }
  const auto split = split_units(units, times);
  if (!split.ok()) return false;
  for (size_t i = 0; i < devices.size(); ++i) {
    const int64_t u = split->units[i];
    budget->bytes[i] -= static_cast<double>(u) * bytes[i];
    set_units(axis, u, &stage->shards[i]);
  }
  return true;
}

void StageSplitter::set_units(Axis axis, int64_t units, ShardPlan* shard) const {
  switch (axis) {
    case Axis::kHeads: shard->query_heads = units * predictor_.shape().query_heads_per_kv(); break;
    case Axis::kQueryHeads: shard->query_heads = units; break;
    case Axis::kFfn: shard->ffn_columns = units * predictor_.shape().ffn_unit; break;
    case Axis::kExperts: shard->experts = units; break;
  }
}

StageSplitter::Budget StageSplitter::budget_of(std::span<const size_t> devices, const SplitNeed& need,
                                               bool shared) const {
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
    const double share = shared ? static_cast<double>(active(devices, d)) : 1;
    const double usable = static_cast<double>(usable_bytes(predictor_.input(), d)) / share;
    const double left = usable - step - replicated * predictor_.input().devices[d].packed_ratio - 64;
    budget.bytes.push_back(std::max(left, 0.0));
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
    const bool can = predictor_.input().devices[devices[i]].holds_vocabulary;
    const int64_t most = std::clamp<int64_t>(static_cast<int64_t>(std::min(room, 1e15)), 0, can ? units : 0);
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

bool StageSplitter::can_hold(Axis axis, size_t device) const {
  return predictor_.input().devices[device].attends || (axis != Axis::kHeads && axis != Axis::kQueryHeads);
}

double StageSplitter::axis_bytes(Axis axis, size_t device, const SplitNeed& need) const {
  return static_cast<double>(axis_units(axis, need)) * unit_bytes(axis, device, need);
}

bool StageSplitter::split_layers(std::span<const size_t> devices, const SplitNeed& need, Weights weights,
                                 bool replicate, Memory memory, StagePlan* stage, Budget* budget) const {
  *stage = {need.begin, need.end, {}};
  for (const size_t d : devices) stage->shards.push_back({d, 0, 0, 0, 0, 0});
  *budget =
      memory == Memory::kEnough ? Budget{std::vector<double>(devices.size(), 1e18)} : budget_of(devices, need, true);
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

std::vector<StageSplitter::Weights> StageSplitter::loads_of(const SplitNeed& need, size_t devices) const {
  const double q = costs_.load.chunk_share;
  std::vector<Weights> loads = {{1 - q, q}, {1, 0}, {0, 1}};
  if (need.few || devices == 1) loads.resize(1);
  return loads;
}

void StageSplitter::add_all(std::span<const size_t> devices, const SplitNeed& need, Memory memory,
                            std::vector<StagePlan>* plans) const {
  const ModelShape& shape = predictor_.shape();
  // Attention pairs queries and KV heads evenly, so only a head that all share can be divided freely.
  const bool may_replicate = devices.size() > 1 && shape.query_heads_per_kv() > 1 && shape.kv_heads == 1 &&
                             shape.kv_heads < 4 * static_cast<int64_t>(devices.size()) &&
                             !(need.few && shape.kv_heads >= static_cast<int64_t>(devices.size()));
  for (const Weights& weights : loads_of(need, devices.size())) {
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

StageSplitter::Room StageSplitter::room_of(std::span<const size_t> devices, const SplitNeed& need) const {
  const ModelShape& shape = predictor_.shape();
  const PlanInput& input = predictor_.input();
  const PlanRequest& request = predictor_.request();
  // A device with experts has the buffers of one.
  const double rows = request.step_bytes > 0 ? 0 : double{1} * request.chunk_rows + request.concurrency;
  const double expert =
      axis_units(Axis::kExperts, need) > 0 ? 4 * kF32 * rows * static_cast<double>(shape.expert_ffn) : 0;
  Room room;
  std::map<std::string_view, size_t> pools;
  const Budget budget = budget_of(devices, need, false);
  for (size_t i = 0; i < devices.size(); ++i) {
    room.bytes.push_back(std::max(budget.bytes[i] - expert, 0.0));
    const std::string& name = input.devices[devices[i]].memory_group;
    if (name.empty()) continue;
    const auto [at, is_new] = pools.emplace(name, room.pools.size());
    if (is_new) room.pools.emplace_back(), room.pool_bytes.push_back(0);
    room.pools[at->second].devices.push_back(i);
  }
  for (size_t p = 0; p < room.pools.size(); ++p) {
    double most = 0, fixed = 0;
    for (const size_t i : room.pools[p].devices) {
      const auto usable = static_cast<double>(usable_bytes(input, devices[i]));
      most = std::max(most, usable), fixed += usable - room.bytes[i];
    }
    room.pool_bytes[p] = std::max(most - fixed, 0.0);
  }
  return room;
}

StageSplitter::AxisTable StageSplitter::axis_table(Axis axis, std::span<const size_t> devices, const SplitNeed& need,
                                                   Weights weights) const {
  std::vector<double> of_kind(predictor_.shape().kinds(), 0);
  for (size_t l = need.begin; l < need.end; ++l) of_kind[predictor_.shape().layers[l].kind] += 1;
  AxisTable table{axis, axis_units(axis, need), {}, {}};
  for (const size_t d : devices) {
    SplitDevice device;
    const int64_t most = can_hold(axis, d) ? table.units : 0;
    device.time_ns = stage_times(axis, d, table.units, most, active(devices, d), weights, of_kind);
    table.devices.push_back(std::move(device));
    table.unit_bytes.push_back(unit_bytes(axis, d, need));
  }
  return table;
}

bool StageSplitter::take(size_t device, double bytes, Room* room) {
  bool enough = (room->bytes[device] -= bytes) >= 0;
  for (size_t p = 0; p < room->pools.size(); ++p) {
    const std::vector<size_t>& members = room->pools[p].devices;
    if (std::find(members.begin(), members.end(), device) == members.end()) continue;
    enough = (room->pool_bytes[p] -= bytes) >= 0 && enough;
  }
  return enough;
}

// The split of the axis into what room there is, and takes it.
std::optional<Split> StageSplitter::fill(AxisTable* table, Room* room) {
  const auto units_in = [&](double bytes, double unit) {
    return unit > 0 ? static_cast<int64_t>(std::min(std::max(bytes, 0.0) / unit, 1e15)) : table->units;
  };
  for (size_t i = 0; i < table->devices.size(); ++i) {
    SplitDevice& device = table->devices[i];
    device.units_max = units_in(room->bytes[i], table->unit_bytes[i]);
    if (device.units_max < device.units_min) return std::nullopt;
  }
  for (size_t p = 0; p < room->pools.size(); ++p) {
    double unit = 0;  // of who packs least
    for (const size_t i : room->pools[p].devices) unit = std::max(unit, table->unit_bytes[i]);
    room->pools[p].units_max = units_in(room->pool_bytes[p], unit);
  }
  const auto split = split_units(table->units, table->devices, room->pools);
  if (!split.ok()) return std::nullopt;
  for (size_t i = 0; i < table->devices.size(); ++i) {
    take(i, static_cast<double>(split->units[i]) * table->unit_bytes[i], room);
  }
  return *split;
}

namespace {

// Every way to give `units` to devices from the `next` on, in steps of `step`; the last takes what is left.
template <typename Found>
void each_way(int64_t units, int64_t step, size_t next, std::vector<int64_t>* ways, const Found& found) {
  if (next + 1 == ways->size()) {
    (*ways)[next] = units;
    return found();
  }
  for (int64_t u = 0;; u = std::min(u + step, units)) {
    (*ways)[next] = u;
    each_way(units - u, step, next + 1, ways, found);
    if (u == units) return;
  }
}

// So that there are at most about kTightWaysMax.
int64_t step_of_ways(int64_t units, size_t devices) {
  for (int64_t step = 1;; ++step) {
    double ways = 1;
    for (size_t i = 1; i < devices; ++i)
      ways *= static_cast<double>(units / step + static_cast<int64_t>(i)) / static_cast<double>(i);
    if (ways <= kTightWaysMax || step >= units) return step;
  }
}

}  // namespace

// [who holds the vocabulary: each, or all], of the least time; without shards where there is none.
std::vector<StageSplitter::Tight> StageSplitter::tight_splits(std::span<const size_t> devices, const SplitNeed& need,
                                                              Weights weights) const {
  const ModelShape& shape = predictor_.shape();
  const size_t n = devices.size();
  const bool outer = need.begin == 0 || need.end == shape.layers.size();
  const AxisTable heads = axis_table(Axis::kHeads, devices, need, weights);
  std::vector<AxisTable> rest;
  double rest_ns = 0;  // at least
  for (const Axis axis : {Axis::kExperts, Axis::kFfn}) {
    if (axis_units(axis, need) == 0) continue;
    rest.push_back(axis_table(axis, devices, need, weights));
    const auto split = split_units(rest.back().units, rest.back().devices);
    rest_ns += split.ok() ? static_cast<double>(split->time_ns) : 0;
  }
  const Room whole = room_of(devices, need);
  std::vector<Tight> best(outer ? n + 1 : 1);
  std::vector<int64_t> ways(n);
  each_way(heads.units, step_of_ways(heads.units, n), 0, &ways, [&] {
    Room room = whole;
    double heads_ns = 0;
    for (size_t i = 0; i < n; ++i) {
      if (ways[i] > 0 && !can_hold(Axis::kHeads, devices[i])) return;
      if (!take(i, static_cast<double>(ways[i]) * heads.unit_bytes[i], &room)) return;
      heads_ns = std::max(heads_ns, static_cast<double>(heads.devices[i].time_ns[static_cast<size_t>(ways[i])]));
    }
    for (size_t holder = 0; holder < best.size(); ++holder) {
      if (!best[holder].stage.shards.empty() && heads_ns + rest_ns >= best[holder].ns) continue;
      const bool one = outer && holder < n;
      Room left = room;
      const double rows = static_cast<double>(shape.vocab);
      if (one && !predictor_.input().devices[devices[holder]].holds_vocabulary) continue;
      if (one && !take(holder, rows * vocabulary_row_bytes(devices[holder], need), &left)) continue;
      Tight tight{{need.begin, need.end, {}}, heads_ns};
      for (size_t i = 0; i < n; ++i) {
        tight.stage.shards.push_back({devices[i], 0, 0, 0, 0, one && i == holder ? shape.vocab : 0});
        set_units(Axis::kHeads, ways[i], &tight.stage.shards[i]);
      }
      bool fits = true;
      for (AxisTable& table : rest) {
        for (size_t i = 0; i < n; ++i) {
          table.devices[i].units_min = need.everybody && &table == &rest.back() && tight.stage.shards[i].empty();
        }
        const auto split = fill(&table, &left);
        fits = split.has_value();
        if (!fits) break;
        tight.ns += static_cast<double>(split->time_ns);
        for (size_t i = 0; i < n; ++i) set_units(table.axis, split->units[i], &tight.stage.shards[i]);
      }
      if (!fits || (!best[holder].stage.shards.empty() && tight.ns >= best[holder].ns)) continue;
      Budget budget{left.bytes};
      if (outer && !one && !place_vocabulary(devices, need, true, &budget, &tight.stage)) continue;
      best[holder] = std::move(tight);
    }
  });
  return best;
}

void StageSplitter::add_tight(std::span<const size_t> devices, const SplitNeed& need,
                              std::vector<StagePlan>* plans) const {
  for (const Weights& weights : loads_of(need, devices.size())) {
    for (Tight& tight : tight_splits(devices, need, weights)) {
      std::erase_if(tight.stage.shards, [](const ShardPlan& shard) { return shard.empty(); });
      if (tight.stage.shards.empty()) continue;
      settle_heads(predictor_.shape(), &tight.stage);
      if (std::none_of(plans->begin(), plans->end(), [&](const StagePlan& plan) { return same(plan, tight.stage); })) {
        plans->push_back(std::move(tight.stage));
      }
    }
  }
}

// All layers on one, all vocabulary on another: nothing is summed.
void StageSplitter::add_apart(std::span<const size_t> devices, const SplitNeed& need,
                              std::vector<StagePlan>* plans) const {
  const ModelShape& shape = predictor_.shape();
  const std::vector<DeviceProfile>& profiles = predictor_.input().devices;
  if (need.begin > 0 && need.end < shape.layers.size()) return;
  if (devices.size() > kTightDevicesMax || (need.everybody && devices.size() > 2)) return;
  for (const size_t layers : devices) {
    for (const size_t vocabulary : devices) {
      if (layers == vocabulary || !profiles[layers].attends || !profiles[vocabulary].holds_vocabulary) continue;
      StagePlan stage = whole_stage(shape, layers, need.begin, need.end);
      const int64_t rows = std::exchange(stage.shards[0].vocab_rows, 0);
      stage.shards.push_back({vocabulary, 0, 0, 0, 0, rows});
      plans->push_back(std::move(stage));
    }
  }
}

bool StageSplitter::holds(const StagePlan& stage, uint64_t kv_tokens) const {
  LanePlan lane;  // a stage at the same end of the model
  const size_t last = predictor_.shape().layers.size();
  if (stage.begin > 0) lane.stages.push_back({0, stage.begin, {}});
  lane.stages.push_back(stage);
  if (stage.end < last) lane.stages.push_back({stage.end, last, {}});
  const size_t at = stage.begin > 0 ? 1 : 0;
  return std::all_of(stage.shards.begin(), stage.shards.end(), [&](const ShardPlan& shard) {
    const ShardMemory memory =
        shard_memory(predictor_.shape(), predictor_.input(), predictor_.request(), lane, at, shard);
    const uint64_t bytes = memory.weight_bytes + memory.step_bytes + memory.kv_bytes_per_token * kv_tokens;
    return bytes <= usable_bytes(predictor_.input(), shard.device);
  });
}

std::vector<StagePlan> StageSplitter::split(std::span<const size_t> devices, const SplitNeed& need) const {
  std::vector<StagePlan> plans;
  if (devices.empty()) return plans;
  add_all(devices, need, Memory::kEnough, &plans);
  add_apart(devices, need, &plans);
  if (need.unlimited) return plans;
  const auto holds = [&](const StagePlan& stage) { return this->holds(stage, need.kv_tokens); };
  if (std::all_of(plans.begin(), plans.end(), holds) && !plans.empty()) {
    // Groups that share memory are checked by whoever puts the stages together.
    bool grouped = false;
    for (const size_t d : devices) grouped = grouped || active(devices, d) > 1;
    if (!grouped) return plans;  // memory is no matter
  }
  std::erase_if(plans, [&](const StagePlan& stage) { return !holds(stage); });
  const bool tight = need.close && devices.size() > 1 && devices.size() <= kTightDevicesMax;
  if (tight) add_tight(devices, need, &plans);
  if (!tight || predictor_.shape().kv_heads == 1) {  // replicated heads are not among the tight ones
    for (const Memory memory : {Memory::kHeadsFirst, Memory::kFfnFirst, Memory::kEven}) {
      add_all(devices, need, memory, &plans);
    }
  }
  std::erase_if(plans, [&](const StagePlan& stage) { return !holds(stage); });
  return plans;
}

}  // namespace motley
