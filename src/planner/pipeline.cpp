#include "planner/pipeline.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

#include "planner/plan.hpp"

namespace motley {
namespace {

constexpr uint16_t kNobody = std::numeric_limits<uint16_t>::max();

// [i] = sum of the first i.
std::vector<int64_t> prefix_sums(std::span<const int64_t> values) {
  std::vector<int64_t> sums(values.size() + 1, 0);
  std::partial_sum(values.begin(), values.end(), sums.begin() + 1);
  return sums;
}

bool in_range(std::span<const int64_t> values, int64_t most) {
  return std::all_of(values.begin(), values.end(), [=](int64_t v) { return v >= 0 && v <= most; });
}

Status check(std::span<const int64_t> layer_bytes, std::span<const StageType> types) {
  constexpr int64_t kBytesMax = std::numeric_limits<int64_t>::max() / static_cast<int64_t>(kPipelineLayersMax);
  if (layer_bytes.size() > kPipelineLayersMax || !in_range(layer_bytes, kBytesMax)) {
    return invalid_argument("a pipeline of {} layers: at most {}, of 0 to {} bytes each", layer_bytes.size(),
                            kPipelineLayersMax, kBytesMax);
  }
  if (types.size() >= kNobody) return invalid_argument("a pipeline over {} types of devices", types.size());
  size_t states = 1;
  for (size_t t = 0; t < types.size(); ++t) {
    const StageType& type = types[t];
    if (type.layer_ns.size() != layer_bytes.size()) {
      return invalid_argument("device type {} of a pipeline has times of {} layers, not {}", t, type.layer_ns.size(),
                              layer_bytes.size());
    }
    if (!type.layer_bytes.empty() &&
        (type.layer_bytes.size() != layer_bytes.size() || !in_range(type.layer_bytes, kBytesMax))) {
      return invalid_argument("device type {} of a pipeline: bytes of {} layers, not {}, or out of range", t,
                              type.layer_bytes.size(), layer_bytes.size());
    }
    if (!in_range(type.layer_ns, kPipelineTimeMaxNs) || !in_range({&type.fixed_ns, 1}, kPipelineTimeMaxNs) ||
        type.memory_bytes < 0) {
      return invalid_argument("device type {} of a pipeline: times must be 0 to {} ns, memory not negative", t,
                              kPipelineTimeMaxNs);
    }
    if (type.count >= kPipelineStatesMax / states) {
      return invalid_argument(
          "a pipeline over too many unlike devices (more than {} multisets); merge nearly equal types",
          kPipelineStatesMax);
    }
    states *= type.count + 1;
  }
  return ok_status();
}

// The search for one problem. A multiset of devices is a number in mixed radix: digit t counts those of type t.
class PipelineSearch {
 public:
  PipelineSearch(std::span<const int64_t> layer_bytes, std::span<const StageType> types)
      : types_(types), layers_(layer_bytes.size()) {
    size_t states = 1;
    for (const StageType& type : types) {
      times_.push_back(prefix_sums(type.layer_ns));
      bytes_.push_back(prefix_sums(type.layer_bytes.empty() ? layer_bytes : std::span(type.layer_bytes)));
      weights_.push_back(states);
      states *= type.count + 1;
    }
    reach_.assign(types.size(), std::vector<uint16_t>(layers_ + 1));
    covered_.resize(states);
    last_.resize(states);
  }

  // Whether all devices together cover all layers, each stage within `time_ns`.
  bool covers(int64_t time_ns) {
    for (size_t t = 0; t < types_.size(); ++t) measure_reach(t, time_ns);
    std::vector<uint32_t> digits(types_.size(), 0);
    for (size_t state = 0; state < covered_.size(); ++state) {
      covered_[state] = 0, last_[state] = kNobody;
      for (size_t t = 0; t < types_.size(); ++t) {
        if (digits[t] == 0) continue;
        const uint16_t to = reach_[t][covered_[state - weights_[t]]];
        if (to > covered_[state]) covered_[state] = to, last_[state] = static_cast<uint16_t>(t);
      }
      for (size_t t = 0; t < digits.size() && digits[t]++ == types_[t].count; ++t) digits[t] = 0;
    }
    return covered_.back() == layers_;
  }

  int64_t slowest() const {  // no stage can take longer
    int64_t most = 0;
    for (size_t t = 0; t < types_.size(); ++t) most = std::max(most, types_[t].fixed_ns + times_[t].back());
    return most;
  }

  // After covers(T) was true: the stages of the fewest devices that do it.
  Pipeline stages() const {
    size_t best = 0, fewest = std::numeric_limits<size_t>::max();
    for (size_t state = 0; state < covered_.size(); ++state) {
      if (covered_[state] == layers_ && devices_of(state) < fewest) best = state, fewest = devices_of(state);
    }
    Pipeline pipeline;
    for (size_t state = best; last_[state] != kNobody;) {
      const uint16_t type = last_[state];
      const size_t before = state - weights_[type];
      pipeline.stages.push_back({type, covered_[before], covered_[state]});
      pipeline.bottleneck_ns = std::max(pipeline.bottleneck_ns, time_of(pipeline.stages.back()));
      state = before;
    }
    std::reverse(pipeline.stages.begin(), pipeline.stages.end());
    return pipeline;
  }

 private:
  int64_t time_of(const PipelineStage& stage) const {
    const std::vector<int64_t>& times = times_[stage.type];
    return types_[stage.type].fixed_ns + times[stage.layer_end] - times[stage.layer_begin];
  }

  size_t devices_of(size_t state) const {
    size_t devices = 0;
    for (const StageType& type : types_) devices += state % (type.count + 1), state /= type.count + 1;
    return devices;
  }

  // How far one device of the type gets from each layer.
  void measure_reach(size_t type, int64_t time_ns) {
    const std::vector<int64_t>& times = times_[type];
    const int64_t room = time_ns - types_[type].fixed_ns;
    for (size_t begin = 0, end = 0; begin <= layers_; ++begin) {
      end = std::max(end, begin);
      while (end < layers_ && times[end + 1] - times[begin] <= room &&
             bytes_[type][end + 1] - bytes_[type][begin] <= types_[type].memory_bytes) {
        ++end;
      }
      reach_[type][begin] = static_cast<uint16_t>(end);
    }
  }

  std::span<const StageType> types_;
  size_t layers_;
  std::vector<std::vector<int64_t>> times_, bytes_;  // [type], prefix sums
  std::vector<size_t> weights_;                      // [type], of its digit
  std::vector<std::vector<uint16_t>> reach_;         // [type][layer]
  std::vector<uint16_t> covered_, last_;             // [multiset]: layers, and the type of the last stage
};

}  // namespace

Result<Pipeline> plan_pipeline(std::span<const int64_t> layer_bytes, std::span<const StageType> types) {
  RETURN_IF_ERROR(check(layer_bytes, types));
  PipelineSearch search(layer_bytes, types);
  int64_t low = 0, high = search.slowest();  // the least possible time lies in [low, high]
  if (!search.covers(high)) {
    return error(
        MOTLEY_RESOURCE_EXHAUSTED, "no cut of {} layers of {} in all fits into the memory of the devices",
        layer_bytes.size(),
        bytes_text(static_cast<uint64_t>(std::accumulate(layer_bytes.begin(), layer_bytes.end(), int64_t{0}))));
  }
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (search.covers(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  search.covers(low);
  return search.stages();
}

}  // namespace motley
