#include "planner/lane_set.hpp"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "planner/split.hpp"

namespace motley {
namespace {

constexpr double kNsPerMs = 1e6, kNsPerS = 1e9;
constexpr int kRounds = 16;  // until the number of those that decode stands

// One pool of a set, alone: what it gives and the share of each device's time that it takes.
struct PoolAlone {
  Prediction predicted;
  std::vector<double> busy;
  std::vector<std::vector<StageTime>> stages;  // of its lanes, in their order

  void slow_down(double factor) {
    predicted.tokens_per_s /= factor;
    predicted.ttft_ms *= factor, predicted.tpot_ms *= factor, predicted.request_ms *= factor;
  }
};

// Devices that somebody computes for, or attends on, layer by layer: others' programs there are of a layer, too.
std::set<size_t> devices_by_layers(std::span<const LaneOfSet> lanes) {
  std::set<size_t> devices;
  for (const LaneOfSet& lane : lanes) {
    for (const StagePlan& stage : lane.plan.stages) {
      for (const ShardPlan& shard : stage.shards)
        if (shard.partner != kNoPartner || !lane.plan.sections.empty())
          devices.insert({shard.device, shard.kv_owner()});
    }
    for (const SectionPlan& section : lane.plan.sections) devices.insert(section.owner);
  }
  return devices;
}

// A step of one kind over all stages.
struct StepTimes {
  double whole_ns = 0;          // one behind the other
  double most_ns = 0;           // of the slowest, from one step's beginning to the next one's
  std::vector<double> busy_ns;  // [device]
  std::vector<StageTime> stages;
};

class SetClock {
 public:
  SetClock(Predictor* predictor, std::span<const LaneOfSet> lanes)
      : predictor_(*predictor), lanes_(lanes), by_layers_(devices_by_layers(lanes)) {}

  PoolAlone one_lane(const LaneOfSet& lane, uint32_t concurrency, uint32_t micro_batches) {
    PoolAlone pool{predictor_.predict(lane.plan, concurrency, micro_batches), {}, {}};
    Prediction& predicted = pool.predicted;
    pool.busy = predictor_.busy_ns(lane.plan, predicted);
    double more_ns = 0;
    const StepCosts& costs = predictor_.steady(predicted).decode;
    for (const StagePlan& stage : lane.plan.stages) more_ns += programs_ns(costs, stage, &pool.busy);
    const double cycle_ns = predicted.tpot_ms * kNsPerMs;
    for (double& ns : pool.busy) ns /= std::max(cycle_ns + more_ns, 1e-9);
    predicted.tokens_per_s *= cycle_ns / std::max(cycle_ns + more_ns, 1e-9);
    predicted.tpot_ms += more_ns / kNsPerMs;
    pool.stages = {stage_times(lane.plan, predicted)};
    return pool;
  }

  PoolAlone roles(uint32_t pool_id, uint32_t concurrency) {
    std::vector<const LaneOfSet*> prompts;  // that only prefill
    const LaneOfSet* decoder = nullptr;
    for (const LaneOfSet& lane : lanes_) {
      if (lane.pool == pool_id) (lane.decodes ? decoder : prompts.emplace_back()) = &lane;
    }
    const PlanRequest& request = predictor_.request();
    const SteadyLoad& lone = predictor_.lone().load;
    const std::vector<size_t> attends = devices_of(decoder->plan);
    std::vector<StepTimes> chunks;
    std::vector<PrefillCost> costs;
    for (const LaneOfSet* lane : prompts) {
      const StepTimes& chunk = chunks.emplace_back(step_times(predictor_.lone().mixed, lane->plan));
      double taken = 0;
      for (const size_t d : attends) taken = std::max(taken, chunk.busy_ns[d]);
      costs.push_back({lone.chunks * std::max(chunk.most_ns, chunk.whole_ns / 2), lone.chunks * taken});
    }
    PoolAlone pool;
    StepTimes decode;
    double decoding = std::max(1.0, concurrency / 2.0), output = request.output_len;
    for (int round = 0; round < kRounds; ++round) {
      StepLoad load = lone.decode;
      load.decode_rows = load.head_rows = decoding;
      decode = step_times(costs_of(load), decoder->plan);
      const std::vector<double> rates = share_prompts(costs, output * decode.whole_ns / decoding);
      const double requests = std::accumulate(rates.begin(), rates.end(), 0.0);
      double at_prompts = 0;
      pool.busy.assign(decode.busy_ns.size(), 0);
      for (size_t d = 0; d < pool.busy.size(); ++d) {
        pool.busy[d] = requests * output / decoding * decode.busy_ns[d];
        for (size_t i = 0; i < chunks.size(); ++i) pool.busy[d] += rates[i] * lone.chunks * chunks[i].busy_ns[d];
      }
      for (size_t i = 0; i < chunks.size(); ++i) at_prompts += rates[i] * lone.chunks * chunks[i].whole_ns;
      pool.predicted.tokens_per_s = requests * output * kNsPerS;
      pool.predicted.tpot_ms = requests > 0 ? decoding / (requests * output) / kNsPerMs : 0;
      pool.predicted.ttft_ms = 0;
      for (size_t i = 0; i < chunks.size(); ++i) {
        if (rates[i] > 0)
          pool.predicted.ttft_ms = std::max(pool.predicted.ttft_ms, lone.chunks * chunks[i].whole_ns / kNsPerMs);
      }
      pool.predicted.request_ms = pool.predicted.ttft_ms + output * decode.whole_ns / kNsPerMs;
      decoding = std::clamp((decoding + concurrency - at_prompts) / 2, 1.0, static_cast<double>(concurrency));
    }
    pool.predicted.concurrency = concurrency;
    pool.predicted.chunk_rows = static_cast<uint32_t>(lone.mixed.chunk_rows);
    size_t next = 0;
    for (const LaneOfSet& lane : lanes_)
      if (lane.pool == pool_id) pool.stages.push_back(lane.decodes ? decode.stages : chunks[next++].stages);
    return pool;
  }

 private:
  std::vector<StageTime> stage_times(const LanePlan& plan, const Prediction& predicted) const {
    const Predictor::Costs& costs = predictor_.steady(predicted);
    const bool overlapped = predicted.micro_batches > 1 && plan.stages.size() > 1;
    std::vector<StageTime> times;
    for (size_t s = 0; s < plan.stages.size(); ++s) {
      const StageCost decode = stage_cost(costs.decode, plan, s, overlapped);
      const StageCost mixed = stage_cost(costs.mixed, plan, s, overlapped);
      times.push_back({costs.load.mean(decode.ns, mixed.ns), costs.load.mean(decode.hop_ns, mixed.hop_ns)});
    }
    return times;
  }

  StepCosts costs_of(const StepLoad& load) const {
    return StepCosts(predictor_.shape(), predictor_.input(), predictor_.links(), predictor_.twins(), load);
  }

  StepTimes step_times(const StepCosts& costs, const LanePlan& plan) const {
    StepTimes times;
    times.busy_ns.assign(predictor_.input().devices.size(), 0);
    for (size_t s = 0; s < plan.stages.size(); ++s) {
      const StageCost stage = stage_cost(costs, plan, s, false);
      const double more_ns = programs_ns(costs, plan.stages[s], &times.busy_ns);
      times.whole_ns += stage.ns + more_ns + (s + 1 < plan.stages.size() ? stage.hop_ns : 0);
      times.most_ns = std::max(times.most_ns, stage.most_ns + more_ns);
      times.stages.push_back({stage.ns + more_ns, stage.hop_ns});
      for (size_t i = 0; i < stage.busy_ns.size(); ++i) {
        times.busy_ns[plan.stages[s].shards[i].device] += stage.busy_ns[i];
        times.busy_ns[plan.stages[s].shards[i].kv_owner()] += stage.partner_ns[i];
      }
      for (size_t i = 0; i < stage.section_ns.size(); ++i) times.busy_ns[plan.sections[i].owner] += stage.section_ns[i];
    }
    return times;
  }

  // Of a stage that runs whole elsewhere: its layers' programs beyond the first.
  double programs_ns(const StepCosts& costs, const StagePlan& stage, std::vector<double>* busy) const {
    if (splits_layers(stage)) return 0;
    double most = 0;
    for (const ShardPlan& shard : stage.shards) {
      if (!shard.in_layers() || shard.partner != kNoPartner || !by_layers_.contains(shard.device)) continue;
      const double ns = costs.program_ns(shard.device) * static_cast<double>(stage.end - stage.begin - 1);
      (*busy)[shard.device] += ns;
      most = std::max(most, ns);
    }
    return most;
  }

  Predictor& predictor_;
  const std::span<const LaneOfSet> lanes_;
  const std::set<size_t> by_layers_;
};

// Where the load's positions lie: a pool is filled from its first section on.
void share_positions(const ModelShape& shape, const PlanRequest& request, const PoolTokens& pool, LanePlan* plan) {
  const uint64_t used = std::clamp<uint64_t>(load_kv_tokens(shape, request), 1, std::max<uint64_t>(pool.all(), 1));
  uint64_t left = used - std::min(used, pool.first);
  for (size_t s = 0; s < plan->sections.size(); ++s) {
    const uint64_t here = std::min(left, pool.further[s]);
    plan->sections[s].share = static_cast<double>(here) / static_cast<double>(used);
    left -= here;
  }
}

// Sequences of each pool that has a share, and holds them; none without shares.
std::vector<uint32_t> share_sequences(const ModelShape& shape, const PlanRequest& request, const LaneSet& set) {
  if (set.lanes[0].share == 0) return {};
  std::vector<double> shares;
  for (const LaneOfSet& lane : set.lanes)
    if (lane.pool == shares.size()) shares.push_back(lane.share);
  std::vector<uint32_t> parts;
  for (const int64_t part : in_proportion(request.concurrency, shares)) {
    const uint32_t held = held_concurrency(shape, request, set.memory.kv_tokens[parts.size()].all());
    parts.push_back(std::min(static_cast<uint32_t>(part), held));
  }
  return parts;
}

// By how much a pool's device is slower because those of other pools read from the same memory.
double slowed(const PlanInput& input, std::span<const LaneOfSet> lanes, size_t lane, uint32_t concurrency) {
  const std::vector<size_t> own = devices_of(lanes[lane].plan);
  double most = 1;
  for (const size_t d : own) {
    const DeviceProfile& device = input.devices[d];
    const bool shared = std::any_of(lanes.begin(), lanes.end(), [&](const LaneOfSet& other) {
      const std::vector<size_t> others = devices_of(other.plan);
      return std::any_of(others.begin(), others.end(), [&](size_t o) {
        return input.devices[o].memory_group == device.memory_group &&
               std::find(own.begin(), own.end(), o) == own.end();
      });
    });
    if (shared && !device.memory_group.empty()) most = std::max(most, device.together.at(concurrency, 1));
  }
  return most;
}

// How much of its steps each pool gets to do.
std::vector<double> share_devices(const std::vector<PoolAlone>& pools, size_t devices) {
  constexpr double kFull = 1 - 1e-9;
  std::vector<double> parts(pools.size(), 0);
  std::vector<bool> stays(pools.size(), false);
  double level = 0;
  while (std::find(stays.begin(), stays.end(), false) != stays.end()) {
    double most = 1;
    for (size_t d = 0; d < devices; ++d) {
      double taken = 0, rising = 0;
      for (size_t p = 0; p < pools.size(); ++p)
        (stays[p] ? taken : rising) += pools[p].busy[d] * (stays[p] ? parts[p] : 1);
      if (rising > 0) most = std::min(most, std::max(level, (1 - taken) / rising));
    }
    level = most;
    for (size_t p = 0; p < pools.size(); ++p) parts[p] = stays[p] ? parts[p] : level;
    bool any = false;
    for (size_t d = 0; d < devices; ++d) {
      double taken = 0;
      for (size_t p = 0; p < pools.size(); ++p) taken += pools[p].busy[d] * parts[p];
      if (taken < kFull) continue;
      for (size_t p = 0; p < pools.size(); ++p) {
        if (pools[p].busy[d] > 0 && !stays[p]) stays[p] = any = true;
      }
    }
    if (!any || level >= kFull) break;
  }
  return parts;
}

}  // namespace

std::vector<double> share_prompts(std::span<const PrefillCost> lanes, double decode_ns) {
  std::vector<size_t> order(lanes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return lanes[a].decoder_ns < lanes[b].decoder_ns; });
  std::vector<double> rates(lanes.size(), 0);
  double left = 1;  // of the decoding device's time
  for (const size_t i : order) {
    const double each = std::max(lanes[i].decoder_ns + decode_ns, 1e-9);
    rates[i] = std::max(0.0, left) / each;
    if (lanes[i].own_ns > 0) rates[i] = std::min(rates[i], 1 / lanes[i].own_ns);
    left -= rates[i] * each;
  }
  return rates;
}

LaneSet evaluate_lanes(Predictor* predictor, std::vector<LaneOfSet> lanes, const LaneSetGiven& given) {
  const ModelShape& shape = predictor->shape();
  const PlanRequest& request = predictor->request();
  const size_t devices = predictor->input().devices.size();
  LaneSet set;
  set.lanes = std::move(lanes);
  set.memory = lanes_memory(shape, predictor->input(), request, set.lanes, given.kv_tokens);
  set.micro_batches.assign(set.lanes.size(), 0);
  for (const LaneOfSet& lane : set.lanes) set.stages.emplace_back(lane.plan.stages.size());
  set.busy.assign(devices, 0);
  if (!set.fits()) return set;
  for (LaneOfSet& lane : set.lanes) share_positions(shape, request, set.memory.kv_tokens[lane.pool], &lane.plan);
  const std::vector<uint32_t> shared = share_sequences(shape, request, set);
  SetClock clock(predictor, set.lanes);
  std::vector<PoolAlone> pools;
  uint32_t left = request.concurrency;
  for (size_t i = 0; i < set.lanes.size(); ++i) {
    const uint32_t pool = set.lanes[i].pool;
    const bool roles =
        std::count_if(set.lanes.begin(), set.lanes.end(), [&](const LaneOfSet& lane) { return lane.pool == pool; }) > 1;
    if (pool < pools.size()) continue;
    const uint32_t fixed = i < given.micro_batches.size() ? given.micro_batches[i] : 0;
    const uint32_t held = shared.empty()
                              ? std::min(left, held_concurrency(shape, request, set.memory.kv_tokens[pool].all()))
                              : shared[pool];
    if (held == 0) {  // the pools before hold everybody, or its share is less than one
      pools.push_back({{.concurrency = 0}, std::vector<double>(devices, 0), {}});
      continue;
    }
    pools.push_back(roles ? clock.roles(pool, held) : clock.one_lane(set.lanes[i], held, fixed));
    if (!shared.empty()) pools.back().slow_down(slowed(predictor->input(), set.lanes, i, held));
    if (!roles) set.micro_batches[i] = pools.back().predicted.micro_batches;
    size_t own = 0;
    for (size_t k = i; k < set.lanes.size(); ++k)
      if (set.lanes[k].pool == pool) set.stages[k] = pools.back().stages[own++];
    left -= held;
  }
  const std::vector<double> parts = share_devices(pools, devices);
  set.predicted = pools[0].predicted;
  set.predicted.tokens_per_s = set.predicted.ttft_ms = set.predicted.tpot_ms = 0;
  set.predicted.concurrency = 0;
  for (size_t p = 0; p < pools.size(); ++p) {
    Prediction& own = pools[p].predicted;
    own.tokens_per_s *= parts[p];
    own.tpot_ms /= std::max(parts[p], 1e-9), own.ttft_ms /= std::max(parts[p], 1e-9);
    for (size_t d = 0; d < devices; ++d) set.busy[d] += parts[p] * pools[p].busy[d];
    set.predicted.tokens_per_s += own.tokens_per_s;
    set.predicted.concurrency += own.concurrency;
    set.predicted.ttft_ms = std::max(set.predicted.ttft_ms, own.ttft_ms);
    set.predicted.tpot_ms = std::max(set.predicted.tpot_ms, own.tpot_ms);
    set.pools.push_back(own);
  }
  for (double& share : set.busy) share = std::min(share, 1.0);
  return set;
}

}  // namespace motley
