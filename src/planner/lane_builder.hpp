// LaneBuilder: turns a grouping of devices into islands (each the devices of one stage) into plans, and gives them to a
// pool. One island is tensor parallelism, several are a pipeline of them. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <tuple>
#include <vector>

#include "planner/candidate_pool.hpp"
#include "planner/device_types.hpp"
#include "planner/stage_split.hpp"

namespace motley {

using Island = std::vector<size_t>;  // devices; the order is the shards' order

class LaneBuilder {
 public:
  // All outlive this.
  LaneBuilder(Predictor* predictor, const DeviceTypes& types, CandidatePool* pool)
      : predictor_(*predictor), types_(types), pool_(*pool) {}

  // Each returns what the best lane is worth: its score, less than nothing where it does not fit.

  // One stage. `everybody`: each device takes at least one unit.
  double try_stage(const Island& island, bool everybody);
  // Stages of any of the islands in any order, as many as pay: the least bottleneck, and the least sum.
  double try_pipeline(const std::vector<Island>& islands, bool few);
  // One stage of each island; every device takes part.
  double try_whole_pipeline(const std::vector<Island>& islands);
  // Where the memory of few devices is short, again with more numbers of sequences and other cuts.
  void try_closely(const std::vector<Island>& islands, bool everybody);

 private:
  // An island with layers.
  struct Cut {
    size_t island = 0, begin = 0, end = 0;
    bool operator==(const Cut&) const = default;
  };
  struct IslandCosts {
    std::vector<double> layer_ns;     // [layer], with the embedding in the first and the head in the last
    std::vector<double> layer_bytes;  // as packed, with KV
    double memory_bytes = 0;
    double total_ns = 0;
    double fixed_ns = 0;  // of a stage, whatever its layers
  };
  // Numbers of KV positions to plan for, falling; never none.
  std::vector<uint64_t> kv_levels(const Island& devices, bool fine) const;
  // Whether one of the devices could not hold the whole model, so much KV and a step.
  bool is_short(const Island& devices, uint64_t kv_tokens, size_t devices_max) const;
  IslandCosts measure(const Island& island, const Predictor::Costs& costs, uint64_t kv_tokens, bool crowded) const;
  // The fastest that the island can hold; without shards where there is none. Lives as long as this.
  const StagePlan& best_stage(const Island& island, const Predictor::Costs& costs, const SplitNeed& need) const;
  StagePlan find_stage(const Island& island, const Predictor::Costs& costs, const SplitNeed& need) const;
  double stage_ns(const StagePlan& stage, const Predictor::Costs& costs) const;
  // What the stages of a pipeline are split for.
  struct Level {
    const Predictor::Costs* costs = nullptr;
    uint64_t kv_tokens = 0;
    bool everybody = false, few = false, close = false;
    SplitNeed need(size_t begin, size_t end) const { return {begin, end, kv_tokens, everybody, false, few, close}; }
  };
  struct Start {
    Level level;
    std::vector<Cut> cuts;
    double worth = 0;
  };
  double add(LanePlan lane);
  // Adds a lane of these stages, each split anew, to the pool. Its score; of one that does not fit, less than nothing
  // by the memory that it lacks: stages that share some are cut as if each had all.
  double add(const std::vector<Island>& islands, const std::vector<Cut>& cuts, const Level& level);
  double stage_at(const Island& island, uint64_t kv_tokens, bool everybody, bool close);
  // Adds lanes of the islands in each order; those to climb from go to `starts`, if not null.
  double whole_pipeline_at(const std::vector<Island>& islands, uint64_t kv_tokens, std::vector<Start>* starts);
  // Moves the cuts as long as the lane gets better.
  void climb(const std::vector<Island>& islands, Start start);
  using CapMap = std::map<std::tuple<size_t, bool, bool>, size_t>;  // by island, whether first, whether last
  // Layers that each island of `order` can hold, at most.
  std::vector<size_t> layers_max(const std::vector<Island>& islands, const std::vector<size_t>& order,
                                 const Level& level, CapMap* known) const;
  std::vector<Cut> bottleneck_cuts(const std::vector<Island>& islands, const std::vector<IslandCosts>& costs) const;
  std::vector<Cut> fill_cuts(const std::vector<Island>& islands, const std::vector<IslandCosts>& costs) const;
  static std::vector<Cut> cuts_of(const std::vector<size_t>& order, std::span<const int64_t> layers);
  std::vector<Cut> spread_cuts(const std::vector<size_t>& order, const std::vector<IslandCosts>& costs,
                               const std::vector<size_t>& layers_max) const;
  std::vector<Cut> fast_cuts(const std::vector<size_t>& order, const std::vector<IslandCosts>& costs,
                             const std::vector<size_t>& layers_max) const;
  std::vector<std::vector<size_t>> orders(const std::vector<IslandCosts>& costs) const;

  const StageSplitter& splitter(const Predictor::Costs& costs) const;

  Predictor& predictor_;
  const DeviceTypes& types_;
  CandidatePool& pool_;
  mutable std::map<const Predictor::Costs*, StageSplitter> splitters_;  // looked up by address alone
  using StageKey = std::tuple<const Predictor::Costs*, Island, size_t, size_t, uint64_t, bool, bool, bool, bool>;
  mutable std::map<StageKey, StagePlan> stages_;  // likewise; best_stage's
};

}  // namespace motley
