#include "planner/lane_search.hpp"

#include <algorithm>
#include <utility>

#include "planner/split.hpp"

namespace motley {
namespace {

constexpr double kWorthLanes = 1.05;    // of tokens/s without: an exchange a layer is easily underrated
constexpr double kWorthReplicas = 1;    // of tokens/s of a pipeline, which answers nobody sooner, and waits for itself
constexpr double kWorthHolding = 1.25;  // of the sequences without, where nothing is lost by it
constexpr double kSlowerMost = 4;       // a pool, in time a token, than the first, for the latter's sake
constexpr double kSlowestMost = 128;    // and for a small gain: whose KV lies there is hardly served
constexpr double kWorthSlowest = 1.25;  // of tokens/s without, where one is slower than that
constexpr size_t kLanesMax = 4;         // each takes queues of its devices, of which there are few
constexpr size_t kOwnersMax = 32;       // that are tried: the first ones listed
constexpr size_t kDecodersMax = 3;
constexpr size_t kStartsMax = 6;
constexpr int kShareRounds = 3;

class LaneSearch {
 public:
  LaneSearch(Predictor* predictor, const Candidate& best)
      : predictor_(*predictor), without_(best.predicted), without_is_pipeline_(best.plan.stages.size() > 1) {}

  void try_owners(const Candidate& start) {
    if (start.predicted.concurrency >= predictor_.request().concurrency) return;
    std::vector<LaneOfSet> lanes = {{start.plan}};
    Prediction without = start.predicted;
    while (lanes.size() < kLanesMax) {
      std::optional<LaneSet> best;
      for (size_t owner = 0; owner < std::min(devices().size(), kOwnersMax); ++owner) {
        if (!devices()[owner].attends) continue;
        LanePlan plan = with_kv_owner(start.plan, owner);
        const std::vector<size_t> owners = {owner};
        if (std::any_of(lanes.begin(), lanes.end(), [&](const LaneOfSet& l) { return kv_owners(l.plan) == owners; }))
          continue;
        std::vector<LaneOfSet> more = lanes;
        more.push_back({std::move(plan), static_cast<uint32_t>(lanes.size())});
        keep_better(std::move(more), &best);
      }
      if (!go_on(std::move(best), &lanes, &without)) return;
    }
  }

  // The decoder's device keeps the KV, and the vocabulary where the other cannot.
  void try_roles(const Candidate& start) {
    if (start.memory.devices.size() != 1) return;
    const size_t decoder = start.memory.devices[0].device;
    std::vector<LaneOfSet> lanes = {{start.plan}};
    Prediction without = start.predicted;
    while (lanes.size() < kLanesMax) {
      std::optional<LaneSet> best;
      for (size_t d = 0; d < std::min(devices().size(), kOwnersMax); ++d) {
        const std::vector<size_t> pair = {std::min(d, decoder), std::max(d, decoder)};
        if (d == decoder || std::any_of(lanes.begin(), lanes.end(),
                                        [&](const LaneOfSet& lane) { return devices_of(lane.plan) == pair; }))
          continue;
        std::vector<LaneOfSet> more = lanes;
        more.back().prefills = false;
        more.insert(more.begin(), {prompts_on(d, decoder), 0, true, false});
        keep_better(std::move(more), &best);
      }
      if (!go_on(std::move(best), &lanes, &without)) return;
    }
  }

  // Lanes with devices of their own: `start`, and beside it, one after another, the plan of other devices that adds
  // most.
  void try_replicas(const Candidate& start, std::span<const Candidate> others) {
    std::vector<LaneOfSet> lanes = {{start.plan, 0, true, true, 1}};
    std::vector<size_t> used = devices_of(start.plan);
    Prediction without = start.predicted;
    while (lanes.size() < kLanesMax) {
      std::optional<LaneSet> best;
      for (const Candidate& other : others) {
        const std::vector<size_t> devices = devices_of(other.plan);
        if (std::find_first_of(devices.begin(), devices.end(), used.begin(), used.end()) != devices.end()) continue;
        std::vector<LaneOfSet> more = lanes;
        for (LaneOfSet& lane : more) lane.share *= without.tokens_per_s;
        more.push_back({other.plan, static_cast<uint32_t>(lanes.size()), true, true, other.predicted.tokens_per_s});
        keep_with_even_times(std::move(more), &best);
      }
      if (!go_on(std::move(best), &lanes, &without)) return;
      used = devices_of(lanes);
    }
  }

  std::optional<LaneSet> take() { return std::move(best_); }

 private:
  const std::vector<DeviceProfile>& devices() const { return predictor_.input().devices; }

  LanePlan prompts_on(size_t device, size_t decoder) const {
    const ModelShape& shape = predictor_.shape();
    LanePlan plan{{whole_stage(shape, device, 0, shape.layers.size())}};
    ShardPlan& shard = plan.stages[0].shards[0];
    shard.partner = decoder;
    if (!devices()[device].holds_vocabulary)
      plan.stages[0].shards.push_back({decoder, 0, 0, 0, 0, std::exchange(shard.vocab_rows, 0)});
    return plan;
  }

  void keep_better(std::vector<LaneOfSet> lanes, std::optional<LaneSet>* best) {
    for (const LaneOfSet& lane : lanes)
      if (!check_abilities(predictor_.input(), lane.plan).ok()) return;
    keep_better(evaluate_lanes(&predictor_, std::move(lanes)), best);
  }
  void keep_better(LaneSet set, std::optional<LaneSet>* best) const {
    if (!set.fits()) return;
    if (!*best || judged(set) > judged(**best)) *best = std::move(set);
  }
  // Lanes that exchange values a layer are no better than others unless by more than these are easily underrated.
  double judged(const LaneSet& set) const {
    const bool exchanges =
        std::any_of(set.lanes.begin(), set.lanes.end(), [](const LaneOfSet& lane) { return has_partners(lane.plan); });
    return predictor_.score(set.predicted) / (exchanges ? kWorthLanes : 1);
  }

  // The lanes with such shares of the sequences that a token takes about as long everywhere: in proportion to what they
  // give with the shares of the round before, at first to the shares that they have.
  void keep_with_even_times(std::vector<LaneOfSet> lanes, std::optional<LaneSet>* best) {
    for (int round = 0; round < kShareRounds; ++round) {
      std::vector<double> rates;
      for (const LaneOfSet& lane : lanes) rates.push_back(lane.share);
      const uint32_t all = predictor_.request().concurrency;
      const std::vector<int64_t> parts = in_proportion(all, rates);
      if (std::find(parts.begin(), parts.end(), 0) != parts.end()) return;
      for (size_t i = 0; i < lanes.size(); ++i) lanes[i].share = static_cast<double>(parts[i]) / all;
      LaneSet set = evaluate_lanes(&predictor_, lanes);
      for (size_t i = 0; i < lanes.size() && set.fits(); ++i) lanes[i].share = set.pools[i].tokens_per_s;
      if (!set.fits()) return;
      const auto [fastest, slowest] =
          std::minmax_element(set.pools.begin(), set.pools.end(),
                              [](const Prediction& a, const Prediction& b) { return a.tpot_ms < b.tpot_ms; });
      if (slowest->tpot_ms <= kSlowestReplica * fastest->tpot_ms) keep_better(std::move(set), best);
    }
  }

  // With one more lane than before, if that is worth it.
  bool go_on(std::optional<LaneSet> best, std::vector<LaneOfSet>* lanes, Prediction* without) {
    if (!best || !worth(*best, *without, kWorthLanes)) return false;
    *without = best->predicted;
    *lanes = best->lanes;
    const bool replicas = lanes->front().share > 0;
    if (worth(*best, without_, replicas && without_is_pipeline_ ? kWorthReplicas : kWorthLanes))
      keep_better(*std::move(best), &best_);
    return true;
  }

  bool worth(const LaneSet& set, const Prediction& without, double least) const {
    const double now = predictor_.score(set.predicted), before = predictor_.score(without);
    const auto none_slower = [&](double most) {
      return std::all_of(set.pools.begin(), set.pools.end(),
                         [&](const Prediction& pool) { return pool.tpot_ms <= most * set.pools[0].tpot_ms; });
    };
    if (now >= (none_slower(kSlowestMost) ? least : kWorthSlowest) * before) return true;
    return now >= before && set.predicted.concurrency >= kWorthHolding * without.concurrency &&
           none_slower(kSlowerMost);
  }

  Predictor& predictor_;
  const Prediction without_;
  const bool without_is_pipeline_;
  std::optional<LaneSet> best_;
};

}  // namespace

LanePlan with_kv_owner(LanePlan plan, size_t owner) {
  for (StagePlan& stage : plan.stages) {
    for (ShardPlan& shard : stage.shards)
      if (shard.query_heads > 0) shard.partner = shard.device == owner ? kNoPartner : owner;
  }
  return plan;
}

std::optional<LaneSet> find_lanes(Predictor* predictor, std::span<const Candidate> starts, bool forced) {
  if (starts.empty() || predictor->request().objective != Objective::kThroughput) return std::nullopt;
  LaneSearch search(predictor, starts[0]);
  size_t decoders = 0, tried = 0;
  for (const Candidate& start : starts) {
    if (tried++ == kStartsMax) break;
    search.try_owners(start);
    if (forced) continue;
    search.try_replicas(start, starts);
    if (start.memory.devices.size() == 1 && decoders++ < kDecodersMax) search.try_roles(start);
  }
  return search.take();
}

}  // namespace motley
