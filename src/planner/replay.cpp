#include "planner/replay.hpp"

#include <algorithm>
#include <queue>
#include <tuple>

namespace motley {
namespace {

struct StageTimes {
  StageCost decode, mixed;
  double stage_free = 0, link_free = 0;
};

// A micro-batch that reaches a stage; of equal times, the one that was planned first.
struct Arrival {
  double time = 0;
  uint64_t order = 0;
  uint32_t batch = 0;
  size_t stage = 0;
  bool operator>(const Arrival& other) const { return std::tie(time, order) > std::tie(other.time, other.order); }
};

struct Batch {
  uint32_t steps = 0;
  double chunks = 0;  // carried so far
  bool mixed = false;
  double began = 0;
};

}  // namespace

ReplayResult replay(Predictor* predictor, const Candidate& candidate, uint32_t steps) {
  const Prediction& predicted = candidate.predicted;
  const Predictor::Costs& costs = predictor->steady(predicted);
  const bool overlapped = predicted.micro_batches > 1 && candidate.plan.stages.size() > 1;
  std::vector<StageTimes> stages;
  for (size_t s = 0; s < candidate.plan.stages.size(); ++s) {
    stages.push_back({stage_cost(costs.decode, candidate.plan, s, overlapped),
                      stage_cost(costs.mixed, candidate.plan, s, overlapped)});
  }
  std::vector<Batch> batches(predicted.micro_batches);
  std::priority_queue<Arrival, std::vector<Arrival>, std::greater<>> arrivals;
  uint64_t order = 0;
  for (uint32_t b = 0; b < batches.size(); ++b) arrivals.push({0, order++, b, 0});
  double end = 0, in_steps = 0;
  while (!arrivals.empty()) {
    const Arrival now = arrivals.top();
    arrivals.pop();
    Batch& batch = batches[now.batch];
    if (now.stage == 0) {
      batch.mixed = batch.chunks < (batch.steps + 1) * costs.load.chunk_share;
      batch.chunks += batch.mixed ? 1 : 0;
      batch.began = now.time;
    }
    StageTimes& stage = stages[now.stage];
    const StageCost& cost = batch.mixed ? stage.mixed : stage.decode;
    stage.stage_free = std::max(stage.stage_free, now.time) + cost.ns;
    double there = stage.stage_free;
    if (cost.hop_ns > 0) there = stage.link_free = std::max(stage.link_free, there) + cost.hop_ns;
    if (now.stage + 1 < stages.size()) {
      arrivals.push({there, order++, now.batch, now.stage + 1});
      continue;
    }
    end = std::max(end, there);
    in_steps += there - batch.began;
    if (++batch.steps < steps) arrivals.push({there, order++, now.batch, 0});
  }
  ReplayResult result;
  const double all = static_cast<double>(steps) * predicted.micro_batches;
  result.tokens_per_s = end > 0 ? costs.load.decoding * steps / end * 1e9 : 0;
  result.step_ms_mean = in_steps / all / 1e6;
  return result;
}

}  // namespace motley
