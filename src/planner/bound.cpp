#include "planner/bound.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "planner/fleet_bound.hpp"

namespace motley {
namespace {

constexpr double kSlack = 1 + 1e-9;  // rounding never makes the bound too small
enum { kHeads, kFfn, kExperts, kAxes };

// What is known of a device under one load.
struct DeviceRates {
  double layer_ns = 0;                      // the least of any kind, whole
  std::array<double, kAxes> whole_ns{};     // by axis, the least of any kind that has it; 0 = none
  std::array<double, kAxes> rate{};         // the most of an axis a nanosecond, at any number of units; 1 = all
  std::array<double, kAxes> rate_beyond{};  // the same after what any program costs; may be infinite
  double head_rate = 0;                     // of the vocabulary a nanosecond
  double sample_ns = 0;
  double stage_ns = 0;    // of every stage that it is in, whatever it computes
  double copy_ns = 0;     // of the residual stream, one way
  double reduce_ns = 0;   // of two, with its nearest peer; infinite where it is alone
  double layers_max = 0;  // that its memory holds
};

class BoundOfLoad {
 public:
  // Of steps of which `chunk_share` carry a chunk.
  BoundOfLoad(const Predictor& predictor, const Predictor::Costs& costs, double chunk_share, uint32_t parts,
              double kv_tokens)
      : predictor_(predictor), costs_(costs), chunk_share_(chunk_share), parts_(parts) {
    const size_t devices = predictor.input().devices.size();
    for (size_t d = 0; d < devices; ++d) {
      const size_t twin = predictor.twins()[d];
      rates_.push_back(twin < d ? rates_[twin] : measure(d));
      rates_.back().layers_max = layers_max(d, kv_tokens);
    }
    for (size_t a = 0; a < devices; ++a) {
      rates_[a].reduce_ns = std::numeric_limits<double>::infinity();
      for (size_t b = 0; b < devices; ++b) {
        if (a != b) rates_[a].reduce_ns = std::min(rates_[a].reduce_ns, reduce_ns(a, b));
      }
    }
    choose_weights();
    head_ns_ = least_head();
    shared_ns_ = shared_layer();
    pass_ns_ = least_pass();
    order_.resize(devices);
    std::iota(order_.begin(), order_.end(), size_t{0});
    std::stable_sort(order_.begin(), order_.end(),
                     [&](size_t a, size_t b) { return rates_[a].layer_ns < rates_[b].layer_ns; });
  }

  // No plan is done with all micro-batches before T if this is false.
  bool possible(double time_ns) const {
    if (time_ns < pass_ns_) return false;
    const double time = time_ns * kSlack / parts_;
    return std::all_of(weights_.begin(), weights_.end(), [&](const auto& weights) { return covers(time, weights); });
  }

  double head_ns() const { return head_ns_; }

  // All micro-batches' FFNs or experts, shared by all devices without a loss: what plans with partners cannot beat.
  double dense_ns() const {
    double least = 0;
    for (const int axis : {kFfn, kExperts}) {
      double rate = 0;
      for (const DeviceRates& rates : rates_) rate += rates.rate[static_cast<size_t>(axis)];
      if (everywhere(axis) && rate > 0) least = std::max(least, 1 / rate);
    }
    return least * static_cast<double>(predictor_.shape().layers.size()) * parts_;
  }

  // Of the closer look: devices that are alike as one type, with the best figures of any of them. Empty: too many
  // types.
  std::vector<FleetType> types() const;

  double least_ns() const {
    double low = pass_ns_, high = std::max(pass_ns_, 1.0);
    while (!possible(high) && high < 1e18) high *= 2;
    for (int i = 0; i < 60 && high - low > high * 1e-7; ++i) {
      const double middle = (low + high) / 2;
      (possible(middle) ? high : low) = middle;
    }
    return low;  // the last that is known to be too short
  }

 private:
  using AxisWeights = std::array<double, kAxes>;

  double mean(double decode, double mixed) const { return (1 - chunk_share_) * decode + chunk_share_ * mixed; }

  double axis_ns(size_t d, uint32_t kind, int axis, int64_t units) const {
    const int64_t group = predictor_.shape().query_heads_per_kv();
    const auto ns = [&](const StepCosts& costs) {
      if (axis == kHeads) return costs.attention_ns(d, kind, units, (units + group - 1) / group);
      if (axis == kFfn) return costs.ffn_ns(d, kind, units, 0);
      // Experts may share their program with columns; then they cost it nothing more.
      const double ns_of_experts = costs.ffn_ns(d, kind, 0, units);
      return ns_of_experts - (predictor_.shape().ffn_columns > 0 ? std::min(ns_of_experts, costs.program_ns(d)) : 0);
    };
    return mean(ns(costs_.decode), ns(costs_.mixed));
  }

  // The most of an axis a nanosecond. Times are piecewise linear in the units, so the best rate is at a point of the
  // table, at the least piece or at all; query heads, whose reads come by KV head, are all tried.
  // Beyond `fixed` nanoseconds of any number of them; infinite where that is all.
  template <typename Ns>
  double best_rate(const std::vector<int64_t>& points, int64_t least, int64_t all, double fixed, const Ns& ns) const {
    double best = 0;
    const auto look = [&](int64_t units) {
      const double time = ns(units) - fixed;
      if (fixed > 0 && time <= 0) best = std::numeric_limits<double>::infinity();
      if (time > 0) best = std::max(best, static_cast<double>(units) / static_cast<double>(all) / time);
    };
    look(std::min(least, all));
    look(all);
    for (const int64_t units : points) {
      if (units > least && units < all) look(units);
    }
    return best;
  }

  double axis_rate(size_t d, uint32_t kind, int axis, int64_t all, double fixed) const {
    const DeviceProfile& device = predictor_.input().devices[d];
    std::vector<int64_t> points = axis == kFfn ? device.ffn.units : device.experts.units;
    if (axis == kHeads) {
      points.resize(static_cast<size_t>(all));
      std::iota(points.begin(), points.end(), int64_t{1});
    }
    return best_rate(points, 1, all, fixed, [&](int64_t units) { return axis_ns(d, kind, axis, units); });
  }

  double layers_max(size_t d, double kv_tokens) const {
    const ModelShape& shape = predictor_.shape();
    double bytes = std::numeric_limits<double>::max();
    for (size_t l = 0; l < shape.layers.size(); ++l) bytes = std::min(bytes, static_cast<double>(shape.layer_bytes(l)));
    const double kv = kv_head_bytes(shape, predictor_.request()) * static_cast<double>(shape.kv_heads) * kv_tokens;
    const double layer = bytes * predictor_.input().devices[d].packed_ratio + kv;
    return static_cast<double>(usable_bytes(predictor_.input(), d)) / std::max(layer, 1.0);
  }

  DeviceRates measure(size_t d) const {
    const ModelShape& shape = predictor_.shape();
    DeviceRates rates;
    rates.layer_ns = std::numeric_limits<double>::max();
    rates.stage_ns = mean(costs_.decode.program_ns(d), costs_.mixed.program_ns(d));
    const int64_t units[kAxes] = {shape.heads, shape.ffn_columns / shape.ffn_unit, shape.experts};
    std::vector<bool> seen(shape.kinds(), false);
    for (const LayerShape& layer : shape.layers) {
      const uint32_t kind = layer.kind;
      if (seen[kind]) continue;
      seen[kind] = true;
      rates.layer_ns = std::min(rates.layer_ns, mean(costs_.decode.layer_ns(d, kind), costs_.mixed.layer_ns(d, kind)));
      for (int axis = 0; axis < kAxes; ++axis) {
        if (units[axis] == 0) continue;
        const int64_t all = axis == kFfn ? shape.ffn_columns : units[axis];
        const double whole = axis_ns(d, kind, axis, all);
        if (whole <= 0) continue;
        rates.whole_ns[axis] = rates.whole_ns[axis] == 0 ? whole : std::min(rates.whole_ns[axis], whole);
        rates.rate[axis] = std::max(rates.rate[axis], axis_rate(d, kind, axis, all, 0));
        // Experts may share their program with columns.
        const double fixed = axis == kExperts ? 0 : rates.stage_ns;
        rates.rate_beyond[axis] = std::max(rates.rate_beyond[axis], axis_rate(d, kind, axis, all, fixed));
      }
    }
    rates.head_rate = best_rate(predictor_.input().devices[d].head.units, 1, shape.vocab, 0, [&](int64_t rows) {
      return mean(costs_.decode.head_ns(d, rows), costs_.mixed.head_ns(d, rows));
    });
    rates.sample_ns = mean(costs_.decode.sample_ns(d), costs_.mixed.sample_ns(d));
    rates.copy_ns = mean(costs_.decode.copy_residual_ns(d), costs_.mixed.copy_residual_ns(d));
    return rates;
  }

  double reduce_ns(size_t a, size_t b) const {
    const std::array<size_t, 2> pair = {a, b};
    return mean(costs_.decode.all_reduce_ns(pair), costs_.mixed.all_reduce_ns(pair));
  }

  // How much of a layer each axis counts for; any choice gives a valid bound, so each device's own is tried, once.
  void choose_weights() {
    for (const DeviceRates& rates : rates_) {
      const double sum = std::accumulate(rates.whole_ns.begin(), rates.whole_ns.end(), 0.0);
      AxisWeights weights{};
      for (int axis = 0; axis < kAxes; ++axis) weights[axis] = sum > 0 ? rates.whole_ns[axis] / sum : 0;
      const bool is_new = std::none_of(weights_.begin(), weights_.end(), [&](const AxisWeights& other) {
        return std::abs(other[0] - weights[0]) + std::abs(other[1] - weights[1]) < 0.02;
      });
      if (is_new && weights_.size() < 8) weights_.push_back(weights);
    }
  }

  // Layers that the device can account for within `time` of one micro-batch.
  double layers_of(const DeviceRates& rates, double time, const AxisWeights& weights) const {
    time -= rates.stage_ns;
    if (time <= 0) return 0;
    const double alone = rates.layer_ns > 0 ? std::floor(time / rates.layer_ns + 1e-9) : 1e9;
    double most = std::min(alone, std::floor(rates.layers_max * kSlack));
    if (!std::isfinite(rates.reduce_ns)) return most;
    double rate = 0;  // of a layer a nanosecond, by its best axis
    for (int axis = 0; axis < kAxes; ++axis) rate = std::max(rate, weights[axis] * rates.rate[axis]);
    const double syncs = 2 * (rates.reduce_ns + rates.copy_ns);
    // max over whole l of min(l, rate * (time - syncs * l)): around where both are equal.
    const double equal = std::floor(rate * time / (1 + syncs * rate));
    for (const double l : {equal, equal + 1}) {
      const double part = std::min(l, rate * (time - syncs * l));
      most = std::max(most, std::min(part, rates.layers_max * kSlack));
    }
    return most;
  }

  // Whether the devices account for all layers within `time` of a micro-batch, and one pass over them, each by the
  // fastest that still has room, takes no more than the time of all micro-batches.
  bool covers(double time, const AxisWeights& weights) const {
    if (time < head_ns_) return false;
    double needed = 0;  // a layer without an axis asks for less
    for (const LayerShape& layer : predictor_.shape().layers) {
      needed += weights[kHeads] + (layer.has_ffn ? weights[kFfn] : 0) + (layer.has_experts ? weights[kExperts] : 0);
    }
    double sum = 0, least_loss = std::numeric_limits<double>::max(), pass = head_ns_;
    for (const size_t d : order_) {
      const double layers = layers_of(rates_[d], time, weights) * kSlack;
      least_loss = std::min(least_loss, layers - layers_of(rates_[d], time - head_ns_, weights) * kSlack);
      pass += std::clamp(needed - sum, 0.0, layers) * std::min(rates_[d].layer_ns, shared_ns_);
      sum += layers;
    }
    return sum - least_loss >= needed && pass <= time * parts_ * kSlack;
  }

  // The head on n devices: none is done sooner than all of them together without loss; more than one send their logits.
  double least_head() const {
    std::vector<double> rates;
    double sample = std::numeric_limits<double>::max(), latency = std::numeric_limits<double>::max();
    for (size_t d = 0; d < rates_.size(); ++d) {
      rates.push_back(rates_[d].head_rate);
      sample = std::min(sample, rates_[d].sample_ns);
      for (size_t e = 0; e < d; ++e) latency = std::min(latency, predictor_.links().between(d, e).latency_ns);
    }
    std::sort(rates.rbegin(), rates.rend());
    double best = std::numeric_limits<double>::max(), sum = 0;
    for (size_t n = 0; n < rates.size(); ++n) {
      sum += rates[n];
      if (sum > 0) best = std::min(best, 1 / sum + (n > 0 ? latency : 0));
    }
    return (best == std::numeric_limits<double>::max() ? 0 : best) + sample;
  }

  // An axis that some layers lack costs those nothing.
  bool everywhere(int axis) const {
    const auto& layers = predictor_.shape().layers;
    return axis == kHeads || std::all_of(layers.begin(), layers.end(),
                                         [&](const LayerShape& l) { return axis == kFfn ? l.has_ffn : l.has_experts; });
  }

  // [members] of an all-reduce with the nearest of the others; the least of what is there already.
  void nearest(size_t device, std::vector<double>* least) const {
    LinkProfile link;
    link.latency_ns = link.ns_per_byte = std::numeric_limits<double>::max();
    for (size_t other = 0; other < rates_.size(); ++other) {
      if (other == device) continue;
      link.latency_ns = std::min(link.latency_ns, predictor_.links().between(device, other).latency_ns);
      link.ns_per_byte = std::min(link.ns_per_byte, predictor_.links().between(device, other).ns_per_byte);
    }
    least->resize(rates_.size() + 1, std::numeric_limits<double>::max());
    for (size_t n = 2; n <= rates_.size(); ++n) {
      const double ns = mean(costs_.decode.all_reduce_ns(link, n), costs_.mixed.all_reduce_ns(link, n));
      (*least)[n] = std::min((*least)[n], ns);
    }
  }

  // A layer on several devices at once: for each number of them, the fastest of each axis without loss, and two
  // all-reduces over the best of links.
  double shared_layer() const {
    if (rates_.size() < 2) return std::numeric_limits<double>::infinity();
    LinkProfile nearest;
    nearest.latency_ns = nearest.ns_per_byte = std::numeric_limits<double>::max();
    for (size_t a = 0; a < rates_.size(); ++a) {
      for (size_t b = 0; b < a; ++b) {
        nearest.latency_ns = std::min(nearest.latency_ns, predictor_.links().between(a, b).latency_ns);
        nearest.ns_per_byte = std::min(nearest.ns_per_byte, predictor_.links().between(a, b).ns_per_byte);
      }
    }
    std::array<std::vector<double>, kAxes> rates;
    for (int axis = 0; axis < kAxes; ++axis) {
      for (const DeviceRates& device : rates_) rates[axis].push_back(everywhere(axis) ? device.rate[axis] : 0);
      std::sort(rates[axis].rbegin(), rates[axis].rend());
    }
    double best = std::numeric_limits<double>::infinity();
    std::array<double, kAxes> sums{};
    for (size_t n = 1; n <= rates_.size(); ++n) {
      double ns = 2 * mean(costs_.decode.all_reduce_ns(nearest, n), costs_.mixed.all_reduce_ns(nearest, n));
      std::array<double, kAxes> least{};
      for (int axis = 0; axis < kAxes; ++axis) {
        sums[axis] += rates[axis][n - 1];
        if (sums[axis] > 0) least[axis] = 1 / sums[axis];
      }
      ns += least[kHeads] + std::max(least[kFfn], least[kExperts]);  // the last two are one part
      if (n > 1) best = std::min(best, ns);
    }
    return best;
  }

  double least_pass() const {
    const ModelShape& shape = predictor_.shape();
    double by_kind = 0;
    std::map<uint32_t, double> least;
    for (const LayerShape& layer : shape.layers) {
      auto at = least.find(layer.kind);
      if (at == least.end()) {
        double ns = shared_ns_;
        for (size_t d = 0; d < rates_.size(); ++d) {
          ns = std::min(ns, mean(costs_.decode.layer_ns(d, layer.kind), costs_.mixed.layer_ns(d, layer.kind)));
        }
        at = least.emplace(layer.kind, ns).first;
      }
      by_kind += at->second;
    }
    return (by_kind + head_ns_) / kSlack;
  }

  const Predictor& predictor_;
  const Predictor::Costs& costs_;
  const double chunk_share_, parts_;
  std::vector<DeviceRates> rates_;
  std::vector<AxisWeights> weights_;
  std::vector<size_t> order_;  // devices, the fastest with a layer first
  double head_ns_ = 0, shared_ns_ = 0, pass_ns_ = 0;
};

std::vector<FleetType> BoundOfLoad::types() const {
  const size_t devices = rates_.size();
  std::vector<FleetType> types;
  std::vector<size_t> first;  // of each
  double states = 1;
  for (size_t d = 0; d < devices; ++d) {
    size_t at = 0;
    while (at < first.size() && !alike(predictor_.input(), predictor_.links(), first[at], d)) ++at;
    if (at == first.size()) {
      if (first.size() == FleetBound::kTypesMax) return {};
      first.push_back(d);
      types.emplace_back();
      types[at].layer_ns = types[at].stage_ns = types[at].part_ns = types[at].program_ns = types[at].hop_ns =
          std::numeric_limits<double>::max();
    }
    FleetType& type = types[at];
    const DeviceRates& rates = rates_[d];
    ++type.count;
    type.layer_ns = std::min(type.layer_ns, rates.layer_ns);
    type.stage_ns = std::min(type.stage_ns, rates.stage_ns);
    type.part_ns = std::min(type.part_ns, 2 * rates.copy_ns);
    type.program_ns = std::min(type.program_ns, rates.stage_ns);
    type.layers_max = std::max(type.layers_max, rates.layers_max);
    for (int axis = 0; axis < kAxes; ++axis) {
      if (everywhere(axis)) type.axis_rate[axis] = std::max(type.axis_rate[axis], rates.rate_beyond[axis]);
    }
    for (size_t other = 0; other < devices; ++other) {
      if (other == d) continue;
      type.hop_ns = std::min(type.hop_ns, mean(costs_.decode.hop_ns(d, other), costs_.mixed.hop_ns(d, other)));
    }
    nearest(d, &type.all_reduce_ns);
  }
  for (const FleetType& type : types) states *= static_cast<double>(type.count) + 1;
  return states <= 1e6 ? types : std::vector<FleetType>();
}

// One load that plans are made for, and the most that it can give.
struct BoundedLoad {
  uint32_t concurrency = 1, micro_batches = 1;
  Chunks chunks = Chunks::kWhole;
  double kv_tokens = 0;
  double tokens_per_ns = 0;  // at most
};

// Of the rates between `known` and `most`, one that the closer look rules out, at most a thousandth above one that it
// does not; `known` where it rules that out.
template <typename Possible>
double closer(double known, double most, double decoding, const Possible& possible) {
  if (known > 0 && !possible(decoding / known)) return known;
  double low = known > 0 ? known : most / 1024, high = most;
  while (high > low * 1.001) {
    const double middle = std::sqrt(low * high);
    (possible(decoding / middle) ? low : high) = middle;
  }
  return high;
}

class Bound {
 public:
  Bound(Predictor* predictor, size_t groupings_devices_max)
      : predictor_(*predictor), groupings_devices_max_(groupings_devices_max) {}

  double tokens_per_s(double known, bool several_lanes) {
    double best = known / 1e9;
    std::vector<BoundedLoad> loads = loads_above(best);
    std::stable_sort(loads.begin(), loads.end(),
                     [](const BoundedLoad& a, const BoundedLoad& b) { return a.tokens_per_ns > b.tokens_per_ns; });
    for (const BoundedLoad& load : loads) {
      if (load.tokens_per_ns <= best) break;
      best = std::max(best, look_closer(load, best));
    }
    const std::vector<DeviceProfile>& devices = predictor_.input().devices;
    const bool partners =
        several_lanes || std::any_of(devices.begin(), devices.end(), [](const DeviceProfile& d) { return !d.attends; });
    return std::max(best, partners ? with_partners() : 0) * 1e9;
  }

 private:
  // Tokens a nanosecond.
  double with_partners() {
    double best = 0;
    for (const uint32_t concurrency : concurrencies(predictor_.request())) {
      for (const uint32_t parts : {1u, 2u}) {
        for (const Chunks chunks : {Chunks::kEven, Chunks::kWhole}) {
          if (concurrency < parts) continue;
          const Predictor::Costs& costs = predictor_.steady(concurrency, parts, chunks);
          const BoundOfLoad bound(predictor_, costs, costs.load.chunk_share, parts, 0);
          best = std::max(best, costs.load.decoding / std::max(bound.dense_ns(), 1e-9));
        }
      }
    }
    return best;
  }

  // What the quick bound leaves.
  std::vector<BoundedLoad> loads_above(double known) {
    const PlanRequest& request = predictor_.request();
    const uint64_t least = least_kv_tokens(predictor_.shape(), request);
    const uint64_t sequence = load_kv_tokens(predictor_.shape(), request) / request.concurrency;
    std::vector<BoundedLoad> loads;
    std::vector<size_t> all(predictor_.input().devices.size());
    std::iota(all.begin(), all.end(), size_t{0});
    for (const uint32_t concurrency : concurrencies(request)) {
      const double tokens = static_cast<double>(concurrency == 1 ? least : std::max(least, sequence * concurrency));
      if (concurrency > 1 && !memory_holds(predictor_.shape(), predictor_.input(), request, all, tokens)) continue;
      for (const uint32_t parts : micro_batches(concurrency)) {
        for (const Chunks chunks : {Chunks::kEven, Chunks::kWhole}) {
          const Predictor::Costs& costs = predictor_.steady(concurrency, parts, chunks);
          const BoundOfLoad bound(predictor_, costs, costs.load.chunk_share, parts, tokens);
          if (known > 0 && !bound.possible(costs.load.decoding / known)) continue;
          loads.push_back({concurrency, parts, chunks, tokens, costs.load.decoding / std::max(bound.least_ns(), 1e-9)});
        }
      }
    }
    return loads;
  }

  double look_closer(const BoundedLoad& load, double known) {
    const Predictor::Costs& costs = predictor_.steady(load.concurrency, load.micro_batches, load.chunks);
    const size_t devices = predictor_.input().devices.size();
    const double decoding = costs.load.decoding, most = load.tokens_per_ns;
    if (devices <= groupings_devices_max_) {
      const GroupingBound bound(predictor_, costs, load.micro_batches, load.kv_tokens);
      return closer(known, most, decoding, [&](double ns) { return bound.possible(ns); });
    }
    const double q = costs.load.chunk_share;
    const BoundOfLoad quick(predictor_, costs, q, load.micro_batches, load.kv_tokens);
    const BoundOfLoad lengthy(predictor_, costs, 1, load.micro_batches, load.kv_tokens);
    const std::vector<FleetType> types = quick.types();
    if (types.empty()) return most;
    FleetBound bound(types, lengthy.types(), q, predictor_.shape().layers.size(), load.micro_batches, quick.head_ns());
    return closer(known, most, decoding, [&](double ns) { return bound.possible(ns); });
  }

  Predictor& predictor_;
  const size_t groupings_devices_max_;
};

}  // namespace

double tokens_per_s_bound(Predictor* predictor, double known_tokens_per_s, bool several_lanes,
                          size_t groupings_devices_max) {
  return Bound(predictor, groupings_devices_max).tokens_per_s(known_tokens_per_s, several_lanes);
}

}  // namespace motley
