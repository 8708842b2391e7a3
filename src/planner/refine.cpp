#include "planner/refine.hpp"

#include <algorithm>
#include <array>

namespace motley {
namespace {

class Climber {
 public:
  Climber(Predictor* predictor, const Candidate& start, uint64_t evaluations_max, bool keep_shards)
      : predictor_(*predictor), best_(start), left_(evaluations_max), keep_(keep_shards) {}

  Candidate climb() {
    for (bool better = true; better && left_ > 0;) {
      better = move_layers();
      better = move_units() || better;
      if (!better) better = swap_stages();
    }
    return std::move(best_);
  }

 private:
  bool take(LanePlan plan) {
    if (left_ == 0) return false;
    --left_;
    Candidate candidate = predictor_.evaluate(std::move(plan));
    if (!candidate.fits() || predictor_.score(candidate.predicted) <= predictor_.score(best_.predicted) * (1 + 1e-12)) {
      return false;
    }
    best_ = std::move(candidate);
    return true;
  }

  bool move_layers() {
    bool better = false;
    for (size_t s = 0; s + 1 < best_.plan.stages.size(); ++s) {
      for (const bool forward : {false, true}) {
        for (;;) {
          LanePlan plan = best_.plan;
          StagePlan &a = plan.stages[s], &b = plan.stages[s + 1];
          if (forward ? b.end - b.begin < 2 : a.end - a.begin < 2) break;
          a.end = b.begin = forward ? a.end + 1 : a.end - 1;
          if (!take(std::move(plan))) break;
          better = true;
        }
      }
    }
    return better;
  }

  // Two neighbours change places with the layers that they have. Who comes to an end of the model gets the vocabulary
  // on its first shard.
  bool swap_stages() {
    bool better = false;
    for (size_t s = 0; s + 1 < best_.plan.stages.size(); ++s) {
      LanePlan plan = best_.plan;
      StagePlan &a = plan.stages[s], &b = plan.stages[s + 1];
      std::swap(a.shards, b.shards);
      a.end = b.begin = a.begin + (b.end - b.begin);
      for (StagePlan* stage : {&a, &b}) {
        const bool outer = stage->begin == 0 || stage->end == predictor_.shape().layers.size();
        int64_t rows = 0;
        for (ShardPlan& shard : stage->shards) rows += outer ? shard.vocab_rows : (shard.vocab_rows = 0);
        if (outer && rows == 0) stage->shards[0].vocab_rows = predictor_.shape().vocab;
      }
      const auto idle = [](const ShardPlan& shard) { return shard.empty(); };
      if (keep_ &&
          (std::any_of(a.shards.begin(), a.shards.end(), idle) || std::any_of(b.shards.begin(), b.shards.end(), idle)))
        continue;
      std::erase_if(a.shards, idle);
      std::erase_if(b.shards, idle);
      better = take(std::move(plan)) || better;
    }
    return better;
  }

  struct AxisMove {
    int64_t ShardPlan::*count;
    int64_t unit;
  };

  bool move_units() {
    const ModelShape& shape = predictor_.shape();
    const int64_t group = shape.query_heads_per_kv();
    const int64_t rows = std::max<int64_t>(1, (shape.vocab / 256 + 63) / 64 * 64);
    const std::array<AxisMove, 5> axes = {{{&ShardPlan::ffn_columns, shape.ffn_unit},
                                           {&ShardPlan::query_heads, group},
                                           {&ShardPlan::query_heads, shape.kv_heads == 1 ? 1 : group},
                                           {&ShardPlan::experts, 1},
                                           {&ShardPlan::vocab_rows, rows}}};
    bool better = false;
    for (size_t s = 0; s < best_.plan.stages.size(); ++s) {
      for (const AxisMove& axis : axes) better = move_axis(s, axis) || better;
    }
    return better;
  }

  // From each shard to each: all, then half as much each time.
  bool move_axis(size_t s, const AxisMove& axis) {
    bool better = false;
    for (size_t from = 0; from < best_.plan.stages[s].shards.size(); ++from) {
      for (size_t to = 0; to < best_.plan.stages[s].shards.size(); ++to) {
        if (from == to) continue;
        const int64_t have = best_.plan.stages[s].shards[from].*axis.count;
        for (int64_t units = have / axis.unit; units > 0 && left_ > 0; units /= 2) {
          if (!move(s, from, to, axis.count, units * axis.unit)) continue;
          better = true;
          if (from >= best_.plan.stages[s].shards.size() || to >= best_.plan.stages[s].shards.size()) return true;
          if (best_.plan.stages[s].shards[from].*axis.count < units * axis.unit) break;
        }
      }
    }
    return better;
  }

  bool move(size_t s, size_t from, size_t to, int64_t ShardPlan::*count, int64_t units) {
    LanePlan plan = best_.plan;
    StagePlan& stage = plan.stages[s];
    if (from >= stage.shards.size() || to >= stage.shards.size() || stage.shards[from].*count < units) return false;
    stage.shards[from].*count -= units;
    stage.shards[to].*count += units;
    if (stage.shards[from].empty()) {
      if (keep_) return false;
      stage.shards.erase(stage.shards.begin() + static_cast<std::ptrdiff_t>(from));
    }
    settle_heads(predictor_.shape(), &stage);
    return take(std::move(plan));
  }

  Predictor& predictor_;
  Candidate best_;
  uint64_t left_;
  const bool keep_;
};

}  // namespace

Candidate refine(Predictor* predictor, const Candidate& start, uint64_t evaluations_max, bool keep_shards) {
  return Climber(predictor, start, evaluations_max, keep_shards).climb();
}

}  // namespace motley
