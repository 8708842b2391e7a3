// GroupingBound: for few devices, whether any plan of one load is done by a time, by looking at every way to leave some
// of them out and to part the others into stages.
//
// Of each set of devices the least time of a layer is known: the exact best split of each axis by itself (split.hpp),
// two all-reduces, copies. In the time of one micro-batch, T / M, a stage holds whole layers; together they must be
// all. And one pass through all stages, each layer where it takes least, with hops, ends by T. The head is on the last
// stage, whichever that is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "planner/stage_split.hpp"

namespace motley {

class GroupingBound {
 public:
  static constexpr size_t kDevicesMax = 5;
  // At most kDevicesMax devices; `kv_tokens` that every pool holds. All outlive this.
  GroupingBound(const Predictor& predictor, const Predictor::Costs& costs, uint32_t micro_batches, double kv_tokens);

  // False: no plan takes so little.
  bool possible(double time_ns) const;

 private:
  using Set = uint32_t;  // a bit a device
  // Nanoseconds of the mean step.
  struct StageLimit {
    double layer_ns = 0, fixed_ns = 0, hop_ns = 0, head_ns = 0;
    double embed_ns = 0;  // where it is the first stage
    double layers_max = 0;
  };
  StageLimit measure(const StageSplitter& splitter, const std::vector<size_t>& devices, double kv_tokens) const;
  double head_ns(const std::vector<size_t>& devices) const;
  double hop_ns(const std::vector<size_t>& devices) const;
  void add_groupings(Set left, size_t next, std::vector<Set>* now);
  bool possible(const std::vector<Set>& grouping, size_t last, double time_ns) const;

  const Predictor& predictor_;
  const Predictor::Costs& costs_;
  const double micro_batches_;
  std::vector<StageLimit> stages_;           // [set]
  std::vector<std::vector<Set>> groupings_;  // the stages of each, the one with the fastest layer first
};

}  // namespace motley
