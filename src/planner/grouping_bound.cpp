#include "planner/grouping_bound.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace motley {
namespace {

constexpr double kSlack = 1 + 1e-9;

}  // namespace

GroupingBound::GroupingBound(const Predictor& predictor, const Predictor::Costs& costs, uint32_t micro_batches,
                             double kv_tokens)
    : predictor_(predictor), costs_(costs), micro_batches_(micro_batches) {
  const size_t devices = predictor.input().devices.size();
  const StageSplitter splitter(predictor, costs);
  stages_.resize(size_t{1} << devices);
  for (Set set = 1; set < stages_.size(); ++set) {
    std::vector<size_t> members;
    for (size_t d = 0; d < devices; ++d) {
      if ((set >> d & 1) != 0) members.push_back(d);
    }
    stages_[set] = measure(splitter, members, kv_tokens);
  }
  std::vector<Set> now;
  add_groupings(static_cast<Set>(stages_.size() - 1), 0, &now);
}

GroupingBound::StageLimit GroupingBound::measure(const StageSplitter& splitter, const std::vector<size_t>& devices,
                                                 double kv_tokens) const {
  const ModelShape& shape = predictor_.shape();
  const bool shared = devices.size() > 1;
  StageLimit limit;
  limit.layer_ns = std::numeric_limits<double>::max();
  std::vector<bool> seen(shape.kinds(), false);
  double bytes = std::numeric_limits<double>::max();
  for (size_t l = 0; l < shape.layers.size(); ++l) {
    const uint32_t kind = shape.layers[l].kind;
    bytes = std::min(bytes, static_cast<double>(shape.layer_bytes(l)));
    if (seen[kind]) continue;
    seen[kind] = true;
    limit.layer_ns = std::min(limit.layer_ns, shared ? splitter.least_layer_ns(devices, kind)
                                                     : costs_.load.mean(costs_.decode.layer_ns(devices[0], kind),
                                                                        costs_.mixed.layer_ns(devices[0], kind)));
  }
  const double reduce = costs_.load.mean(costs_.decode.all_reduce_ns(devices), costs_.mixed.all_reduce_ns(devices));
  if (shared) limit.layer_ns += 2 * reduce;
  limit.embed_ns = reduce;
  limit.head_ns = head_ns(devices);
  limit.hop_ns = hop_ns(devices);
  const double kv = kv_head_bytes(shape, predictor_.request()) * static_cast<double>(shape.kv_heads) * kv_tokens;
  for (const size_t d : devices) {
    const double copy = costs_.load.mean(costs_.decode.copy_residual_ns(d), costs_.mixed.copy_residual_ns(d));
    const double program = costs_.load.mean(costs_.decode.program_ns(d), costs_.mixed.program_ns(d));
    limit.fixed_ns = std::max(limit.fixed_ns, program + (shared ? copy : 0));
    const double layer = bytes * predictor_.input().devices[d].packed_ratio + kv;
    limit.layers_max += static_cast<double>(usable_bytes(predictor_.input(), d)) / std::max(layer, 1.0);
  }
  return limit;
}

// On one of them, or on all without a loss; more than one send their logits.
double GroupingBound::head_ns(const std::vector<size_t>& devices) const {
  const int64_t vocab = predictor_.shape().vocab;
  double alone = std::numeric_limits<double>::max(), sample = alone, latency = alone, rate = 0;
  for (const size_t d : devices) {
    const auto ns = [&](int64_t rows) {
      return costs_.load.mean(costs_.decode.head_ns(d, rows), costs_.mixed.head_ns(d, rows));
    };
    alone = std::min(alone, ns(vocab));
    // Piecewise linear: the best rate is at one row, all, or a point of the table.
    std::vector<int64_t> points = predictor_.input().devices[d].head.units;
    points.insert(points.end(), {1, vocab});
    double best = 0;
    for (const int64_t rows : points) {
      if (rows <= vocab && ns(rows) > 0) best = std::max(best, static_cast<double>(rows) / ns(rows));
    }
    rate += best;
    sample = std::min(sample, costs_.load.mean(costs_.decode.sample_ns(d), costs_.mixed.sample_ns(d)));
    for (const size_t other : devices) {
      if (other != d) latency = std::min(latency, predictor_.links().between(d, other).latency_ns);
    }
  }
  if (rate > 0 && devices.size() > 1) alone = std::min(alone, static_cast<double>(vocab) / rate + latency);
  return alone + sample;
}

double GroupingBound::hop_ns(const std::vector<size_t>& devices) const {
  double least = std::numeric_limits<double>::max();
  for (size_t to = 0; to < predictor_.input().devices.size(); ++to) {
    if (std::find(devices.begin(), devices.end(), to) != devices.end()) continue;
    for (const size_t from : devices)
      least = std::min(least, costs_.load.mean(costs_.decode.hop_ns(from, to), costs_.mixed.hop_ns(from, to)));
  }
  return least == std::numeric_limits<double>::max() ? 0 : least;
}

// Each device, in order, is left out, opens a stage or joins one.
void GroupingBound::add_groupings(Set left, size_t next, std::vector<Set>* now) {
  if ((left >> next) == 0) {
    if (now->empty()) return;
    std::vector<Set> grouping = *now;
    std::sort(grouping.begin(), grouping.end(),
              [&](Set a, Set b) { return stages_[a].layer_ns < stages_[b].layer_ns; });
    groupings_.push_back(std::move(grouping));
    return;
  }
  const Set device = Set{1} << next;
  add_groupings(left, next + 1, now);
  for (size_t s = 0; s < now->size(); ++s) {
    (*now)[s] |= device;
    add_groupings(left, next + 1, now);
    (*now)[s] &= ~device;
  }
  now->push_back(device);
  add_groupings(left, next + 1, now);
  now->pop_back();
}

bool GroupingBound::possible(const std::vector<Set>& grouping, size_t last, double time_ns) const {
  const double part = time_ns / micro_batches_;
  auto left = static_cast<double>(predictor_.shape().layers.size());
  double pass = grouping.size() == 1 ? stages_[grouping[0]].embed_ns : 0;
  for (size_t s = 0; s < grouping.size(); ++s) {
    const StageLimit& stage = stages_[grouping[s]];
    const double fixed = stage.fixed_ns + (s == last ? stage.head_ns : 0);
    const double most =
        std::floor(std::min((part - fixed) / std::max(stage.layer_ns, 1e-9), stage.layers_max) * kSlack);
    const double layers = std::clamp(most, 0.0, left);
    left -= layers;
    pass += fixed + layers * stage.layer_ns + (s == last ? 0 : stage.hop_ns);
  }
  return left == 0 && pass <= time_ns;
}

bool GroupingBound::possible(double time_ns) const {
  for (const std::vector<Set>& grouping : groupings_) {
    for (size_t last = 0; last < grouping.size(); ++last) {
      if (possible(grouping, last, time_ns * kSlack)) return true;
    }
  }
  return false;
}

}  // namespace motley
