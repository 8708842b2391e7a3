#include "planner/lane_builder.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "planner/pipeline.hpp"
#include "planner/split.hpp"

namespace motley {
namespace {

constexpr size_t kShortDevicesMax = 4;  // so many are tried with fewer sequences, too, where memory is short
constexpr size_t kClosestDevicesMax = 8;
constexpr size_t kClimbsMax = 4;       // starts of a grouping whose cuts are moved
constexpr double kImpossible = -1e30;  // less than any lane is worth
constexpr size_t kOrdersAllMax = 4;    // so many islands are tried in every order

Island devices_in(const std::vector<Island>& islands) {
  Island all;
  for (const Island& island : islands) all.insert(all.end(), island.begin(), island.end());
  return all;
}

int64_t rounded(double value) { return static_cast<int64_t>(std::llround(std::clamp(value, 0.0, 1e14))); }

}  // namespace

// Of the load, then less by half (or, fine, by an eighth) and so on, down to what one sequence needs: those that all
// memory could hold.
std::vector<uint64_t> LaneBuilder::kv_levels(const Island& devices, bool fine) const {
  const ModelShape& shape = predictor_.shape();
  const PlanRequest& request = predictor_.request();
  const uint64_t least = least_kv_tokens(shape, request);
  const uint64_t load = load_kv_tokens(shape, request);
  const uint32_t part = fine ? 8 : 2;
  std::vector<uint64_t> levels;
  for (uint32_t held = request.concurrency; held > 0; held -= std::max(1u, held / part)) {
    const uint64_t tokens = load / request.concurrency * held;
    const bool holds = memory_holds(shape, predictor_.input(), request, devices, static_cast<double>(tokens));
    if (tokens > least && holds) levels.push_back(tokens);
  }
  levels.push_back(least);
  return levels;
}

// Then memory forms the split, and a plan of fewer sequences may be the faster one.
bool LaneBuilder::is_short(const Island& devices, uint64_t kv_tokens, size_t devices_max) const {
  if (devices.size() > devices_max) return false;
  const ModelShape& shape = predictor_.shape();
  return std::any_of(devices.begin(), devices.end(), [&](size_t d) {
    const LanePlan lane{{whole_stage(shape, d, 0, shape.layers.size())}};
    const ShardMemory whole =
        shard_memory(shape, predictor_.input(), predictor_.request(), lane, 0, lane.stages[0].shards[0]);
    return usable_bytes(predictor_.input(), d) <
           whole.weight_bytes + whole.step_bytes + whole.kv_bytes_per_token * kv_tokens;
  });
}

const StageSplitter& LaneBuilder::splitter(const Predictor::Costs& costs) const {
  return splitters_.try_emplace(&costs, predictor_, costs).first->second;
}

double LaneBuilder::stage_ns(const StagePlan& stage, const Predictor::Costs& costs) const {
  const size_t last = predictor_.shape().layers.size();
  LanePlan lane;
  if (stage.begin > 0) lane.stages.push_back({0, stage.begin, {}});
  lane.stages.push_back(stage);
  if (stage.end < last) lane.stages.push_back({stage.end, last, {}});
  const size_t at = stage.begin > 0 ? 1 : 0;
  return costs.load.mean(stage_cost(costs.decode, lane, at, false).ns, stage_cost(costs.mixed, lane, at, false).ns);
}

const StagePlan& LaneBuilder::best_stage(const Island& island, const Predictor::Costs& costs,
                                         const SplitNeed& need) const {
  const auto [at, is_new] = stages_.try_emplace(
      {&costs, island, need.begin, need.end, need.kv_tokens, need.everybody, need.unlimited, need.few, need.close});
  if (is_new) at->second = find_stage(island, costs, need);
  return at->second;
}

StagePlan LaneBuilder::find_stage(const Island& island, const Predictor::Costs& costs, const SplitNeed& need) const {
  if (island.size() == 1) {
    StagePlan whole = whole_stage(predictor_.shape(), island[0], need.begin, need.end);
    return need.unlimited || splitter(costs).holds(whole, need.kv_tokens) ? whole : StagePlan();
  }
  StagePlan best;
  double best_ns = 0;
  for (StagePlan& stage : splitter(costs).split(island, need)) {
    const double ns = stage_ns(stage, costs);
    if (best.shards.empty() || ns < best_ns) best = std::move(stage), best_ns = ns;
  }
  return best;
}

double LaneBuilder::add(LanePlan lane) {
  Candidate candidate = predictor_.evaluate(std::move(lane));
  const double worth =
      candidate.fits() ? predictor_.score(candidate.predicted) : -static_cast<double>(candidate.memory.missing_bytes);
  pool_.add(std::move(candidate));
  return worth;
}

double LaneBuilder::stage_at(const Island& island, uint64_t kv_tokens, bool everybody, bool close) {
  const ModelShape& shape = predictor_.shape();
  double worth = kImpossible;
  const SplitNeed need{
      .begin = 0, .end = shape.layers.size(), .kv_tokens = kv_tokens, .everybody = everybody, .close = close};
  for (const Chunks chunks : {Chunks::kWhole, Chunks::kEven}) {
    const auto& costs = predictor_.steady(held_concurrency(shape, predictor_.request(), kv_tokens), 1, chunks);
    for (StagePlan& stage : splitter(costs).split(island, need)) {
      if (!everybody || stage.shards.size() == island.size()) worth = std::max(worth, add({{std::move(stage)}}));
    }
  }
  return worth;
}

double LaneBuilder::try_stage(const Island& island, bool everybody) {
  const ModelShape& shape = predictor_.shape();
  if (island.size() == 1) return add({{whole_stage(shape, island[0], 0, shape.layers.size())}});
  double worth = kImpossible;
  for (const uint64_t tokens : kv_levels(island, false)) {
    const double now = stage_at(island, tokens, everybody, false);
    worth = std::max(worth, now);
    if (now > 0 && !is_short(island, tokens, kShortDevicesMax)) break;
  }
  return worth;
}

LaneBuilder::IslandCosts LaneBuilder::measure(const Island& island, const Predictor::Costs& costs, uint64_t kv_tokens,
                                              bool crowded) const {
  const ModelShape& shape = predictor_.shape();
  const PlanRequest& request = predictor_.request();
  const size_t layers = shape.layers.size();
  IslandCosts measured;
  const SplitNeed need{.begin = 0, .end = layers, .unlimited = true, .few = true};
  const StagePlan whole = best_stage(island, costs, need);
  std::vector<double> kind_ns(shape.kinds(), -1);
  const auto time = [&](size_t begin, size_t end) {
    StagePlan stage = whole;
    stage.begin = begin, stage.end = end;
    return stage_ns(stage, costs);
  };
  // The middle layers of a kind are alike: a stage of one of them has neither embedding nor head, but as every stage
  // what one of none would have.
  if (layers >= 3) measured.fixed_ns = time(1, 1);
  const double ends = time(0, layers) - measured.fixed_ns;
  double sum = 0;
  for (size_t l = 0; l < layers; ++l) {
    double& ns = kind_ns[shape.layers[l].kind];
    if (ns < 0) {
      size_t at = l;
      while (at + 1 < layers && (at == 0 || shape.layers[at].kind != shape.layers[l].kind)) ++at;
      ns = layers < 3 ? ends / static_cast<double>(layers)
                      : time(std::min(at, layers - 2), std::min(at, layers - 2) + 1) - measured.fixed_ns;
    }
    measured.layer_ns.push_back(ns);
    sum += ns;
  }
  const double outer = std::max(ends - sum, 0.0);
  const auto& first = costs.decode;
  const double embed = std::min(
      outer, costs.load.mean(first.embed_ns(island[0], shape.vocab), costs.mixed.embed_ns(island[0], shape.vocab)));
  measured.layer_ns.front() += embed;
  measured.layer_ns.back() += outer - embed;
  double ratio = 0, slow = 1;
  for (const size_t d : island) {
    ratio += predictor_.input().devices[d].packed_ratio / static_cast<double>(island.size());
    measured.memory_bytes += static_cast<double>(usable_bytes(predictor_.input(), d));
    if (crowded && island.size() == 1) slow = std::max(slow, costs.decode.slowdown(d, SIZE_MAX));
  }
  const auto members = static_cast<double>(island.size());
  const double rows = double{1} * request.chunk_rows + request.concurrency;
  const double step = request.step_bytes > 0
                          ? static_cast<double>(request.step_bytes) * members
                          : 4 * rows *
                                (static_cast<double>(3 * shape.hidden) * members +
                                 static_cast<double>(2 * (shape.heads + shape.kv_heads) * shape.head_dim) +
                                 static_cast<double>(4 * std::max(shape.ffn_columns, shape.expert_ffn)));
  measured.memory_bytes = std::max(measured.memory_bytes - step, 0.0);
  for (size_t l = 0; l < layers; ++l) {
    measured.layer_ns[l] *= slow;
    measured.layer_bytes.push_back((static_cast<double>(shape.layer_bytes(l)) +
                                    static_cast<double>(shape.layers[l].replicated_bytes) * (members - 1)) *
                                       ratio +
                                   kv_head_bytes(shape, request) * static_cast<double>(shape.kv_heads) *
                                       static_cast<double>(kv_tokens));
    measured.total_ns += measured.layer_ns[l];
  }
  measured.layer_bytes.front() += static_cast<double>(shape.embedding_bytes) * ratio;
  const double head = layers == 1 && shape.tied_head ? 0 : static_cast<double>(shape.head_bytes);
  measured.layer_bytes.back() += (head + static_cast<double>(shape.final_norm_bytes) * members) * ratio +
                                 4.0 * request.concurrency * static_cast<double>(shape.vocab);
  return measured;
}

std::vector<LaneBuilder::Cut> LaneBuilder::bottleneck_cuts(const std::vector<Island>& islands,
                                                           const std::vector<IslandCosts>& costs) const {
  std::map<std::vector<size_t>, size_t> index;  // devices' types -> type of island
  std::vector<StageType> stage_types;
  std::vector<std::vector<size_t>> members;
  for (size_t i = 0; i < islands.size(); ++i) {
    std::vector<size_t> key;
    for (const size_t d : islands[i]) key.push_back(types_.type_of[d]);
    const auto [at, is_new] = index.emplace(std::move(key), stage_types.size());
    if (is_new) {
      StageType type{0, rounded(costs[i].fixed_ns), {}, rounded(costs[i].memory_bytes), {}};
      for (const double ns : costs[i].layer_ns) type.layer_ns.push_back(rounded(ns));
      for (const double bytes : costs[i].layer_bytes) type.layer_bytes.push_back(rounded(bytes));
      stage_types.push_back(std::move(type));
      members.emplace_back();
    }
    StageType& type = stage_types[at->second];
    ++type.count;
    type.memory_bytes = std::min(type.memory_bytes, rounded(costs[i].memory_bytes));
    members[at->second].push_back(i);
  }
  std::vector<int64_t> bytes;
  for (const double b : costs[0].layer_bytes) bytes.push_back(rounded(b));
  const auto pipeline = plan_pipeline(bytes, stage_types);
  std::vector<Cut> cuts;
  if (!pipeline.ok()) return cuts;
  std::vector<size_t> used(stage_types.size(), 0);
  for (const PipelineStage& stage : pipeline->stages) {
    cuts.push_back({members[stage.type][used[stage.type]++], stage.layer_begin, stage.layer_end});
  }
  return cuts;
}

// The fastest first, each with all that it holds: the least sum of stages' times.
std::vector<LaneBuilder::Cut> LaneBuilder::fill_cuts(const std::vector<Island>& islands,
                                                     const std::vector<IslandCosts>& costs) const {
  std::vector<size_t> order(islands.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return costs[a].total_ns < costs[b].total_ns; });
  const size_t layers = predictor_.shape().layers.size();
  std::vector<Cut> cuts;
  size_t next = 0;
  for (const size_t i : order) {
    if (next == layers) break;
    double left = costs[i].memory_bytes;
    size_t end = next;
    while (end < layers && costs[i].layer_bytes[end] <= left) left -= costs[i].layer_bytes[end++];
    if (end > next) cuts.push_back({i, next, end});
    next = end;
  }
  return next == layers ? cuts : std::vector<Cut>();
}

// Of as many layers as each island of `order` takes.
std::vector<LaneBuilder::Cut> LaneBuilder::cuts_of(const std::vector<size_t>& order, std::span<const int64_t> layers) {
  std::vector<Cut> cuts;
  size_t next = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    const size_t end = next + static_cast<size_t>(layers[i]);
    cuts.push_back({order[i], next, end});
    next = end;
  }
  return cuts;
}

std::vector<size_t> LaneBuilder::layers_max(const std::vector<Island>& islands, const std::vector<size_t>& order,
                                            const Level& level, CapMap* known) const {
  const size_t layers = predictor_.shape().layers.size(), last = order.size() - 1;
  std::vector<size_t> most;
  for (size_t i = 0; i < order.size(); ++i) {
    const auto [at, is_new] = known->try_emplace({order[i], i == 0, i == last}, 0);
    size_t low = 0, high = is_new ? layers - last : 0;
    for (size_t count = high; low < high; count = (low + high + 1) / 2) {  // mostly it holds them all
      const size_t begin = i == 0 ? 0 : i == last ? layers - count : 1;
      SplitNeed need = level.need(begin, begin + count);
      need.few = true;
      if (best_stage(islands[order[i]], *level.costs, need).shards.empty()) {
        high = count - 1;
      } else {
        low = count;
      }
    }
    if (is_new) at->second = low;
    most.push_back(at->second);
  }
  return most;
}

// Every island of `order` takes at least one layer: so that the slowest stage is as fast as can be.
std::vector<LaneBuilder::Cut> LaneBuilder::spread_cuts(const std::vector<size_t>& order,
                                                       const std::vector<IslandCosts>& costs,
                                                       const std::vector<size_t>& layers_max) const {
  const size_t layers = predictor_.shape().layers.size(), middle = layers / 2;
  std::vector<SplitDevice> devices;
  for (size_t i = 0; i < order.size(); ++i) {
    const IslandCosts& cost = costs[order[i]];
    double ns = cost.fixed_ns;
    if (i == 0) ns += cost.layer_ns.front() - cost.layer_ns[middle];
    if (i + 1 == order.size()) ns += cost.layer_ns.back() - cost.layer_ns[middle];
    if (layers_max[i] == 0) return {};
    SplitDevice device;
    device.units_min = 1;
    device.time_ns.push_back(0);
    for (size_t u = 1; u <= layers_max[i]; ++u) {
      ns += cost.layer_ns[middle];
      device.time_ns.push_back(std::max(device.time_ns.back(), rounded(ns)));
    }
    devices.push_back(std::move(device));
  }
  const auto split = split_units(static_cast<int64_t>(layers), devices);
  return split.ok() ? cuts_of(order, split->units) : std::vector<Cut>();
}

// Every island of `order` takes at least one layer, the fastest as many as they can: the least sum.
std::vector<LaneBuilder::Cut> LaneBuilder::fast_cuts(const std::vector<size_t>& order,
                                                     const std::vector<IslandCosts>& costs,
                                                     const std::vector<size_t>& layers_max) const {
  std::vector<size_t> by_speed(order.size());
  std::iota(by_speed.begin(), by_speed.end(), size_t{0});
  std::stable_sort(by_speed.begin(), by_speed.end(),
                   [&](size_t a, size_t b) { return costs[order[a]].total_ns < costs[order[b]].total_ns; });
  std::vector<int64_t> units(order.size(), 1);
  auto left = static_cast<int64_t>(predictor_.shape().layers.size() - order.size());
  for (const size_t i : by_speed) {
    const int64_t more = std::min(left, static_cast<int64_t>(layers_max[i]) - 1);
    if (more < 0) return {};
    units[i] += more, left -= more;
  }
  return left == 0 ? cuts_of(order, units) : std::vector<Cut>();
}

std::vector<std::vector<size_t>> LaneBuilder::orders(const std::vector<IslandCosts>& costs) const {
  std::vector<size_t> order(costs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::vector<std::vector<size_t>> all;
  if (costs.size() <= kOrdersAllMax) {
    do all.push_back(order);
    while (std::next_permutation(order.begin(), order.end()));
    return all;
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return costs[a].total_ns < costs[b].total_ns; });
  all.push_back(order);
  std::reverse(order.begin(), order.end());
  all.push_back(order);
  return all;
}

double LaneBuilder::add(const std::vector<Island>& islands, const std::vector<Cut>& cuts, const Level& level) {
  LanePlan lane;
  for (const Cut& cut : cuts) {
    const Island& island = islands[cut.island];
    StagePlan stage = best_stage(island, *level.costs, level.need(cut.begin, cut.end));
    if (stage.shards.empty() || (level.everybody && stage.shards.size() != island.size())) return kImpossible;
    lane.stages.push_back(std::move(stage));
  }
  if (lane.stages.empty()) return kImpossible;
  Candidate candidate = predictor_.evaluate(std::move(lane));
  const double worth =
      candidate.fits() ? predictor_.score(candidate.predicted) : -static_cast<double>(candidate.memory.missing_bytes);
  pool_.add(std::move(candidate));
  return worth;
}

void LaneBuilder::climb(const std::vector<Island>& islands, Start start) {
  for (bool better = true; better;) {
    better = false;
    for (size_t s = 0; s + 1 < start.cuts.size(); ++s) {
      for (const bool forward : {false, true}) {
        for (;;) {
          std::vector<Cut> tried = start.cuts;
          Cut &a = tried[s], &b = tried[s + 1];
          if (forward ? b.end - b.begin < 2 : a.end - a.begin < 2) break;
          a.end = b.begin = forward ? a.end + 1 : a.end - 1;
          const double worth = add(islands, tried, start.level);
          if (worth <= start.worth) break;
          start.worth = worth, start.cuts = std::move(tried), better = true;
        }
      }
    }
  }
}

double LaneBuilder::try_pipeline(const std::vector<Island>& islands, bool few) {
  const ModelShape& shape = predictor_.shape();
  const Island all = devices_in(islands);
  double worth = kImpossible;
  for (const uint64_t tokens : kv_levels(all, false)) {
    const uint32_t concurrency = held_concurrency(shape, predictor_.request(), tokens);
    double best = kImpossible;
    std::vector<uint32_t> in_flight = {std::min(concurrency, static_cast<uint32_t>(islands.size()))};
    if (in_flight[0] > 1) in_flight.push_back(1);
    for (const uint32_t parts : in_flight) {
      const Predictor::Costs& costs = predictor_.steady(concurrency, parts, parts > 1 ? Chunks::kEven : Chunks::kWhole);
      std::map<std::vector<size_t>, IslandCosts> known;  // by types
      std::vector<IslandCosts> measured;
      for (const Island& island : islands) {
        std::vector<size_t> key;
        for (const size_t d : island) key.push_back(types_.type_of[d]);
        auto at = known.find(key);
        if (at == known.end()) at = known.emplace(key, measure(island, costs, tokens, parts > 1)).first;
        measured.push_back(at->second);
      }
      const std::vector<Cut> cuts = parts > 1 ? bottleneck_cuts(islands, measured) : fill_cuts(islands, measured);
      best = std::max(best, add(islands, cuts, {&costs, tokens, false, few}));
    }
    worth = std::max(worth, best);
    if (best > 0 && (few || !is_short(all, tokens, kShortDevicesMax))) break;
  }
  return worth;
}

double LaneBuilder::whole_pipeline_at(const std::vector<Island>& islands, uint64_t kv_tokens,
                                      std::vector<Start>* starts) {
  const uint32_t concurrency = held_concurrency(predictor_.shape(), predictor_.request(), kv_tokens);
  const Predictor::Costs& costs =
      predictor_.steady(concurrency, std::min(concurrency, static_cast<uint32_t>(islands.size())), Chunks::kEven);
  std::vector<IslandCosts> measured;
  for (const Island& island : islands) measured.push_back(measure(island, costs, kv_tokens, true));
  const Level level{&costs, kv_tokens, true, starts != nullptr, starts != nullptr};
  double best = kImpossible;
  CapMap caps;
  for (const std::vector<size_t>& order : orders(measured)) {
    const std::vector<size_t> most = layers_max(islands, order, level, &caps);
    std::vector<std::vector<Cut>> tried = {spread_cuts(order, measured, most)};
    if (starts != nullptr) tried.push_back(fast_cuts(order, measured, most));
    for (std::vector<Cut>& cuts : tried) {
      const double worth = add(islands, cuts, level);
      best = std::max(best, worth);
      if (starts != nullptr && worth > kImpossible) starts->push_back({level, std::move(cuts), worth});
    }
  }
  return best;
}

double LaneBuilder::try_whole_pipeline(const std::vector<Island>& islands) {
  if (islands.size() > predictor_.shape().layers.size()) return kImpossible;
  const Island all = devices_in(islands);
  double worth = kImpossible;
  for (const uint64_t tokens : kv_levels(all, false)) {
    const double now = whole_pipeline_at(islands, tokens, nullptr);
    worth = std::max(worth, now);
    if (now > 0 && !is_short(all, tokens, kShortDevicesMax)) break;
  }
  return worth;
}

void LaneBuilder::try_closely(const std::vector<Island>& islands, bool everybody) {
  const Island all = devices_in(islands);
  if (all.size() == 1 || islands.size() > predictor_.shape().layers.size()) return;
  std::vector<Start> starts;
  for (const uint64_t tokens : kv_levels(all, true)) {
    if (!is_short(all, tokens, kClosestDevicesMax)) break;
    if (islands.size() == 1) {
      stage_at(all, tokens, everybody, true);
    } else {
      whole_pipeline_at(islands, tokens, &starts);
    }
  }
  std::stable_sort(starts.begin(), starts.end(), [](const Start& a, const Start& b) { return a.worth > b.worth; });
  if (starts.size() > kClimbsMax) starts.resize(kClimbsMax);
  for (Start& start : starts) {
    start.level.few = false;
    climb(islands, std::move(start));
  }
}

}  // namespace motley
