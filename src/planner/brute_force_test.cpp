// The whole search and the bound against every plan of small machines.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <functional>

#include "planner/bound.hpp"
#include "planner/planner_test_fleet.hpp"
#include "planner/replay.hpp"
#include "planner/search.hpp"

namespace motley {
namespace {

#ifdef MOTLEY_SANITIZED
constexpr int kCases = 120;
#else
constexpr int kCases = 1200;
#endif

// Every plan of a machine: devices left out or parted into stages in any order, every cut of the layers, and in each
// stage every split of KV heads and columns, with the vocabulary on any one device.
class EveryPlan {
 public:
  EveryPlan(const ModelShape& shape, const PlanInput& input, const PlanRequest& request)
      : shape_(shape), predictor_(shape, input, request) {
    add_stages(0, 0);
  }

  double best() const { return best_; }
  size_t count() const { return count_; }

 private:
  using Counts = std::vector<int64_t>;

  // From `layer` on, over devices that are not in `used`.
  void add_stages(size_t layer, uint32_t used) {
    if (layer == shape_.layers.size()) return evaluate();
    const size_t devices = predictor_.input().devices.size();
    for (uint32_t set = 1; set < uint32_t{1} << devices; ++set) {
      if ((set & used) != 0) continue;
      for (size_t end = layer + 1; end <= shape_.layers.size(); ++end) {
        for (StagePlan& stage : splits(set, layer, end)) {
          plan_.stages.push_back(std::move(stage));
          add_stages(end, used | set);
          plan_.stages.pop_back();
        }
      }
    }
  }

  std::vector<StagePlan> splits(uint32_t set, size_t begin, size_t end) const {
    std::vector<size_t> members;
    for (size_t d = 0; d < predictor_.input().devices.size(); ++d) {
      if ((set >> d & 1) != 0) members.push_back(d);
    }
    const size_t n = members.size();
    if (n == 1) return {whole_stage(shape_, members[0], begin, end)};
    const bool outer = begin == 0 || end == shape_.layers.size();
    std::vector<StagePlan> stages;
    for (const Counts& heads : ways(n, shape_.kv_heads)) {
      for (const Counts& units : ways(n, shape_.ffn_columns / shape_.ffn_unit)) {
        for (size_t vocab = 0; vocab < (outer ? n : 1); ++vocab) {
          StagePlan stage{begin, end, {}};
          for (size_t i = 0; i < n; ++i) {
            stage.shards.push_back({members[i], heads[i] * shape_.query_heads_per_kv(), 0, units[i] * shape_.ffn_unit,
                                    0, outer && i == vocab ? shape_.vocab : 0});
          }
          settle_heads(shape_, &stage);
          const bool all = std::none_of(stage.shards.begin(), stage.shards.end(),
                                        [](const ShardPlan& shard) { return shard.empty(); });
          if (all) stages.push_back(std::move(stage));
        }
      }
    }
    return stages;
  }

  static std::vector<Counts> ways(size_t members, int64_t units) {
    if (members == 1) return {{units}};
    std::vector<Counts> all;
    for (int64_t u = 0; u <= units; ++u) {
      for (Counts& rest : ways(members - 1, units - u)) {
        rest.push_back(u);
        all.push_back(std::move(rest));
      }
    }
    return all;
  }

  void evaluate() {
    ++count_;
    const Candidate candidate = predictor_.evaluate(plan_);
    if (candidate.fits()) best_ = std::max(best_, candidate.predicted.tokens_per_s);
  }

  const ModelShape& shape_;
  Predictor predictor_;
  LanePlan plan_;
  double best_ = 0;
  size_t count_ = 0;
};

struct Tally {
  int cases = 0, optimal = 0, several = 0, with_lanes = 0;
  double worst = 1, widest_gap = 0;
  size_t plans = 0;
};

void check_case(std::mt19937_64& random, bool memory_short, Tally* tally) {
  const ModelShape shape = testing::make_shape({.layers = 1 + static_cast<int64_t>(random() % 6),
                                                .hidden = 256,
                                                .heads = 4,
                                                .kv_heads = 2,
                                                .head_dim = 64,
                                                .ffn = 192,
                                                .vocab = 512});
  PlanInput input = testing::random_fleet(random, shape, 3);
  if (random() % 4 != 0) {  // near one another: then several pay
    input.host_memory.latency_ns /= 20;
    for (DeviceProfile& device : input.devices) device.embed = testing::make_table({.overhead_ns = 50}, 0, {1});
  }
  PlanRequest request;
  request.concurrency = 1 + static_cast<uint32_t>(random() % 12);
  request.prompt_len = 1 + static_cast<uint32_t>(random() % 600);
  if (memory_short) {
    for (DeviceProfile& device : input.devices) device.memory_free = (1u << 20) + random() % (6u << 20);
  }
  const EveryPlan every(shape, input, request);
  const auto report = plan(shape, input, request);
  tally->plans += every.count();
  if (every.best() == 0 && !report.ok()) return;
  ASSERT_TRUE(report.ok()) << report.error().message();
  Predictor predictor(shape, input, request);
  const double bound = tokens_per_s_bound(&predictor);  // knowing of no plan
  EXPECT_LE(every.best(), bound);
  EXPECT_LE(every.best(), tokens_per_s_bound(&predictor, 0, false, 0)) << "as a fleet";
  EXPECT_LE(report->predicted.tokens_per_s, report->bound_tokens_per_s);
  if (report->placement.lanes.size() > 1) {  // better than every plan of one lane
    EXPECT_GE(report->predicted.tokens_per_s, every.best());
    EXPECT_LE(report->predicted.tokens_per_s, tokens_per_s_bound(&predictor, 0, true));
    ++tally->with_lanes;
    return;
  }
  EXPECT_LE(report->predicted.tokens_per_s, bound);
  const Lane& lane = report->placement.lanes[0];
  const Candidate chosen = predictor.evaluate(*lane_plan_of(shape, input, report->placement),
                                              {lane.micro_batches, report->kv_capacity_tokens});
  EXPECT_LE(replay(&predictor, chosen, 100).tokens_per_s, bound);
  if (every.best() == 0) return;
  // One device is preferred where several gain less than 1 %.
  const double worth = report->devices.size() == 1 ? 1.01 : 1;
  const double ratio = std::min(1.0, worth * report->predicted.tokens_per_s / every.best());
  ++tally->cases;
  tally->worst = std::min(tally->worst, ratio);
  tally->optimal += ratio >= 0.999 ? 1 : 0;
  tally->several += report->devices.size() > 1 ? 1 : 0;
  tally->widest_gap = std::max(tally->widest_gap, 1 - every.best() / bound);
}

Tally check_cases(uint64_t seed, bool memory_short, int cases) {
  std::mt19937_64 random(seed);
  Tally tally;
  for (int i = 0; i < cases; ++i) {
    SCOPED_TRACE("case " + std::to_string(i));
    check_case(random, memory_short, &tally);
  }
  std::printf(
      "%d cases, %zu plans: the search is best in %d, worst %.4f of the best; the bound is above it by at most %.1f "
      "%%; several lanes are no worse than any in %d more\n",
      tally.cases, tally.plans, tally.optimal, tally.worst, 100 * tally.widest_gap, tally.with_lanes);
  return tally;
}

TEST(EveryPlan, OfSmallMachines_IsNoBetterThanTheSearchAndWithinTheBound) {
  const Tally tally = check_cases(31, false, kCases);
  EXPECT_GE(tally.cases + tally.with_lanes, kCases * 9 / 10);
  EXPECT_GE(tally.cases, kCases / 2);
  EXPECT_GE(tally.with_lanes, kCases / 8);
  EXPECT_GE(tally.several + tally.with_lanes, kCases / 4);
  EXPECT_GE(tally.optimal, tally.cases * 99 / 100);
  EXPECT_GE(tally.worst, 0.99);
}

// No device holds all of it: the axes compete for what memory there is, and fewer sequences may be worth more. About 4
// of 10 machines hold the model at all.
TEST(EveryPlan, OfSmallMachinesShortOfMemory_IsNoBetterThanTheSearchAndWithinTheBound) {
  const Tally tally = check_cases(37, true, kCases * 2);
  EXPECT_GE(tally.cases, kCases * 7 / 10);
  EXPECT_GE(tally.several, tally.cases / 2);
  EXPECT_GE(tally.optimal, tally.cases * 99 / 100);
  EXPECT_GE(tally.worst, 0.99);
}

}  // namespace
}  // namespace motley
