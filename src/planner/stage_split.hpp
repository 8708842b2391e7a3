// StageSplitter: uneven tensor parallelism of contiguous layers over a set of devices, axis by axis (split.hpp).
//
// The best split of decode and of prefill differ, so several are given: for the mean of both, and for each alone; with
// KV heads whole and, where there are few, replicated; the vocabulary on one device or on all. Whoever asks compares
// them by their prediction. So are those that have all layers on one device and the vocabulary on another. Where memory
// is short the axes compete for it: they are split one after another in some orders; or, closely, few devices get the
// best split for each way to give away the vocabulary, over every way to give away the KV heads (exact by the times of
// the axes, as what is left takes the rest: split.hpp). Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <tuple>
#include <vector>

#include "planner/prediction.hpp"
#include "planner/split.hpp"

namespace motley {

struct SplitNeed {
  size_t begin = 0, end = 0;  // layers
  uint64_t kv_tokens = 0;     // that every pool must hold
  bool everybody = false;     // each device takes at least one unit
  bool unlimited = false;     // whatever memory there is: for times alone
  bool few = false;           // only the split for the mean load: one or two plans
  bool close = false;         // where memory is short, the axes of few devices together: takes time
};

class StageSplitter {
 public:
  // Both outlive this; the times are those of `costs`. Keep it: times once computed are remembered.
  StageSplitter(const Predictor& predictor, const Predictor::Costs& costs) : predictor_(predictor), costs_(costs) {}

  // Empty where the devices cannot hold it. Of several devices that share memory some plans may ask for too much of it.
  // The order of devices is the shards' order.
  std::vector<StagePlan> split(std::span<const size_t> devices, const SplitNeed& need) const;

  // Whether each device holds its shard and so much KV.
  bool holds(const StagePlan& stage, uint64_t kv_tokens) const;

  // The two parts of a layer of the kind in the mean step, without all-reduces: no split over these devices takes less,
  // whatever memory there is.
  double least_layer_ns(std::span<const size_t> devices, uint32_t kind) const;

 private:
  enum class Axis { kHeads, kQueryHeads, kFfn, kExperts };
  // Who comes first to memory that does not hold everything; kEven: each axis has its part of every device.
  enum class Memory { kEnough, kHeadsFirst, kFfnFirst, kEven };
  struct Budget {
    std::vector<double> bytes;  // [device] left
  };
  struct Weights {
    double decode = 0, mixed = 0;
  };
  bool can_hold(Axis axis, size_t device) const;
  double unit_bytes(Axis axis, size_t device, const SplitNeed& need) const;
  double axis_bytes(Axis axis, size_t device, const SplitNeed& need) const;
  int64_t axis_units(Axis axis, const SplitNeed& need) const;
  // Of one layer of a kind, alone: [units], 0 up to all of the axis.
  struct UnitTimes {
    std::vector<double> decode_ns, mixed_ns;
  };
  const UnitTimes& times_of(Axis axis, size_t device, uint32_t kind, int64_t units) const;
  // [units] up to `most` of the layers of each kind, copies included.
  std::vector<int64_t> stage_times(Axis axis, size_t device, int64_t units, int64_t most, size_t active,
                                   Weights weights, std::span<const double> of_kind) const;
  const std::vector<int64_t>& vocabulary_times(size_t device, bool first, bool last, bool shared) const;
  bool split_axis(Axis axis, std::span<const size_t> devices, const SplitNeed& need, Weights weights, int64_t least,
                  Budget* budget, StagePlan* stage) const;
  // `shared`: devices of one memory get an equal part of it each.
  Budget budget_of(std::span<const size_t> devices, const SplitNeed& need, bool shared) const;
  std::vector<Weights> loads_of(const SplitNeed& need, size_t devices) const;
  bool split_layers(std::span<const size_t> devices, const SplitNeed& need, Weights weights, bool replicate,
                    Memory memory, StagePlan* stage, Budget* budget) const;
  bool place_vocabulary(std::span<const size_t> devices, const SplitNeed& need, bool shared, Budget* budget,
                        StagePlan* stage) const;
  double vocabulary_row_bytes(size_t device, const SplitNeed& need) const;
  void add_all(std::span<const size_t> devices, const SplitNeed& need, Memory memory,
               std::vector<StagePlan>* plans) const;
  // Memory left to each device, and to those that share it.
  struct Room {
    std::vector<double> bytes;     // [device]
    std::vector<SplitPool> pools;  // units_max is set as an axis is split
    std::vector<double> pool_bytes;
  };
  // One axis of a stage: times without regard to memory.
  struct AxisTable {
    Axis axis = Axis::kHeads;
    int64_t units = 0;
    std::vector<SplitDevice> devices;
    std::vector<double> unit_bytes;  // [device]
  };
  struct Tight {
    StagePlan stage;
    double ns = 0;
  };
  Room room_of(std::span<const size_t> devices, const SplitNeed& need) const;
  AxisTable axis_table(Axis axis, std::span<const size_t> devices, const SplitNeed& need, Weights weights) const;
  static bool take(size_t device, double bytes, Room* room);
  static std::optional<Split> fill(AxisTable* table, Room* room);
  void set_units(Axis axis, int64_t units, ShardPlan* shard) const;
  std::vector<Tight> tight_splits(std::span<const size_t> devices, const SplitNeed& need, Weights weights) const;
  void add_apart(std::span<const size_t> devices, const SplitNeed& need, std::vector<StagePlan>* plans) const;
  void add_tight(std::span<const size_t> devices, const SplitNeed& need, std::vector<StagePlan>* plans) const;
  size_t active(std::span<const size_t> devices, size_t device) const;

  const Predictor& predictor_;
  const Predictor::Costs& costs_;
  mutable std::map<std::tuple<Axis, size_t, uint32_t>, UnitTimes> unit_times_;                     // by twin
  mutable std::map<std::tuple<size_t, bool, bool, bool>, std::vector<int64_t>> vocabulary_times_;  // by twin
};

}  // namespace motley
