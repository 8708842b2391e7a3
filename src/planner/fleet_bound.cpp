#include "planner/fleet_bound.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace motley {
namespace {

constexpr double kSlack = 1 + 1e-9;
constexpr int kPivotsMax = 200;
constexpr double kRangeOfLengthy = 1.05;

// Ranges of counts from 0 on: alone up to four, then of a third more each.
std::vector<std::pair<size_t, size_t>> ranges_of(size_t count) {
  std::vector<std::pair<size_t, size_t>> ranges;
  for (size_t low = 0; low <= count;) {
    const size_t high = std::min(count, low <= 4 ? low : low + (low - 1) / 3);
    ranges.push_back({low, high});
    low = high + 1;
  }
  return ranges;
}

}  // namespace

FleetBound::FleetBound(const std::vector<FleetType>& mean, const std::vector<FleetType>& lengthy, double chunk_share,
                       size_t layers, double micro_batches, double head_ns)
    : chunk_share_(chunk_share),
      layers_(static_cast<double>(layers)),
      micro_batches_(micro_batches),
      head_ns_(head_ns) {
  for (const FleetType& type : mean) counts_.push_back(static_cast<double>(type.count));
  add_columns(mean, lengthy);
}

void FleetBound::add_columns(const std::vector<FleetType>& mean, const std::vector<FleetType>& lengthy) {
  const size_t types = mean.size();
  std::vector<std::vector<std::pair<size_t, size_t>>> ranges;
  for (const FleetType& type : mean) ranges.push_back(ranges_of(type.count));
  std::vector<size_t> at(types, 0), low(types, 0), high(types, 0);
  for (bool more = true; more;) {
    for (size_t t = 0; t < types; ++t) low[t] = ranges[t][at[t]].first, high[t] = ranges[t][at[t]].second;
    if (std::any_of(low.begin(), low.end(), [](size_t count) { return count > 0; })) {
      Column column = column_of(mean, low, high);
      const Column longest = column_of(lengthy, low, high);
      column.lengthy_layer_ns = longest.layer_ns;
      column.lengthy_fixed_ns = longest.fixed_ns;
      hop_max_ns_ = std::max(hop_max_ns_, column.hop_ns);
      columns_.push_back(column);
    }
    more = false;
    for (size_t t = 0; t < types && !more; ++t) {
      at[t] = at[t] + 1 < ranges[t].size() ? at[t] + 1 : 0;
      more = at[t] != 0;
    }
  }
}

FleetBound::Column FleetBound::column_of(const std::vector<FleetType>& types, const std::vector<size_t>& low,
                                         const std::vector<size_t>& high) {
  Column column;
  size_t members = 0;
  for (const size_t count : low) members += count;
  constexpr double kNone = std::numeric_limits<double>::max();
  std::array<double, 3> rates{};
  double reduce = 0, part = kNone, program = kNone;
  column.hop_ns = kNone;
  for (size_t t = 0; t < low.size(); ++t) {
    if (low[t] == 0) continue;
    const FleetType& type = types[t];
    column.devices[t] = static_cast<double>(low[t]);
    for (size_t axis = 0; axis < rates.size(); ++axis)
      rates[axis] += static_cast<double>(high[t]) * type.axis_rate[axis];
    column.fixed_ns = std::max(column.fixed_ns, type.stage_ns);
    column.hop_ns = std::min(column.hop_ns, type.hop_ns);
    column.layers_max += static_cast<double>(high[t]) * type.layers_max;
    part = std::min(part, type.part_ns);
    program = std::min(program, type.program_ns);
    if (members > 1) reduce = std::max(reduce, type.all_reduce_ns[members]);
    if (members == 1) column.layer_ns = type.layer_ns;
  }
  if (members > 1) {
    // Who has no unit of a part copies less and runs a program all the same.
    const auto least = [&](size_t axis) {
      if (rates[axis] <= 0) return 0.0;
      return (axis == 2 ? 0 : program) + 1 / rates[axis];
    };
    // FFN and experts are one part: the devices that are best at each may do it at the same time.
    column.layer_ns = least(0) + std::max(least(1), least(2)) + 2 * (reduce + part);
  }
  return column;
}

void FleetBound::measure(double time_ns, double lengthy_ns) {
  const double time = time_ns * kSlack / micro_batches_;
  for (Column& column : columns_) {
    const double mean = (time - column.fixed_ns) / std::max(column.layer_ns, 1e-9);
    const double lengthy = (lengthy_ns - column.lengthy_fixed_ns) / std::max(column.lengthy_layer_ns, 1e-9);
    const double room = std::max(std::min(mean, lengthy), 0.0);
    column.layers = std::floor(std::min({room * kSlack, column.layers_max * kSlack, layers_}));
    column.pass_ns = column.fixed_ns + column.hop_ns + column.layers * column.layer_ns;
  }
}

double FleetBound::cost(const Column& column, const Prices& prices) const {
  double sum = prices[kTypesMax] * column.pass_ns;
  for (size_t t = 0; t < counts_.size(); ++t) sum += prices[t] * column.devices[t];
  return sum;
}

const FleetBound::Column* FleetBound::best(const Prices& prices) const {
  const Column* found = nullptr;
  double most = 0;
  for (const Column& column : columns_) {
    if (column.layers == 0) continue;
    const double ratio = column.layers / std::max(cost(column, prices), 1e-300);
    if (ratio > most) most = ratio, found = &column;
  }
  return found;
}

bool FleetBound::possible(double time_ns) {
  // The last stage has no hop.
  const double ends_ns = hop_max_ns_ - head_ns_;
  if (micro_batches_ < 2 || chunk_share_ <= 0 || chunk_share_ > 0.5) {
    return solvable(time_ns, time_ns * kSlack + ends_ns, std::numeric_limits<double>::infinity());
  }
  return possible(time_ns, 0, time_ns / (chunk_share_ * (micro_batches_ - 1)));
}

bool FleetBound::possible(double time_ns, double least_ns, double most_ns) {
  const double waits_ns = chunk_share_ * (micro_batches_ - 1) * least_ns;
  const double pass_ns = kSlack * std::min(time_ns, (time_ns - waits_ns) / (1 - chunk_share_)) + hop_max_ns_ - head_ns_;
  if (!solvable(time_ns, pass_ns, most_ns * kSlack)) return false;
  const double whole = time_ns / (chunk_share_ * (micro_batches_ - 1));
  if (most_ns <= std::max(kRangeOfLengthy * least_ns, whole / 256)) return true;
  const double middle = least_ns > 0 ? std::sqrt(least_ns * most_ns) : most_ns / 4;
  return possible(time_ns, least_ns, middle) || possible(time_ns, middle, most_ns);
}

// The primal simplex, a column at a time. Its prices are always a proof of something: of the greatest sum of layers.
bool FleetBound::solvable(double time_ns, double pass_ns, double lengthy_ns) {
  if (pass_ns <= 0) return false;
  measure(time_ns, lengthy_ns);
  const size_t rows = counts_.size() + 1, pass = counts_.size();
  std::vector<double> left = counts_;  // the basis' values
  left.push_back(pass_ns);
  std::vector<double> gains(rows, 0);  // layers of what is in the basis
  std::vector<std::vector<double>> inverse(rows, std::vector<double>(rows, 0));
  for (size_t r = 0; r < rows; ++r) inverse[r][r] = 1;
  Prices tried{};
  for (size_t r = 0; r <= pass; ++r) tried[r == pass ? kTypesMax : r] = 1 / left[r];
  for (int pivot = 0; pivot < kPivotsMax; ++pivot) {
    double sum = 0;
    for (size_t r = 0; r < rows; ++r) sum += gains[r] * left[r];
    if (sum >= layers_) return true;
    Prices prices{};
    for (size_t r = 0; r < rows; ++r) {
      double price = 0;
      for (size_t i = 0; i < rows; ++i) price += gains[i] * inverse[i][r];
      prices[r == pass ? kTypesMax : r] = std::max(price, 0.0);
    }
    const Column* entering = best(pivot == 0 ? tried : prices);
    if (entering == nullptr) return false;
    const Prices& at = pivot == 0 ? tried : prices;
    double worth = at[kTypesMax] * pass_ns;
    for (size_t t = 0; t < pass; ++t) worth += at[t] * counts_[t];
    const double ratio = entering->layers / std::max(cost(*entering, at), 1e-300);
    if (ratio * worth * kSlack < layers_) return false;  // the prices, raised by the ratio, cover every column
    if (pivot > 0 && ratio <= 1 + 1e-12) return true;    // optimal, and not proved to be too little
    std::vector<double> step(rows, 0);
    for (size_t i = 0; i < rows; ++i) {
      for (size_t r = 0; r < pass; ++r) step[i] += inverse[i][r] * entering->devices[r];
      step[i] += inverse[i][pass] * entering->pass_ns;
    }
    size_t leaving = rows;
    for (size_t i = 0; i < rows; ++i) {
      if (step[i] > 1e-12 && (leaving == rows || left[i] / step[i] < left[leaving] / step[leaving])) leaving = i;
    }
    if (leaving == rows) return true;
    const double by = step[leaving];
    for (size_t r = 0; r < rows; ++r) inverse[leaving][r] /= by;
    left[leaving] /= by;
    gains[leaving] = entering->layers;
    for (size_t i = 0; i < rows; ++i) {
      if (i == leaving) continue;
      for (size_t r = 0; r < rows; ++r) inverse[i][r] -= step[i] * inverse[leaving][r];
      left[i] = std::max(left[i] - step[i] * left[leaving], 0.0);
    }
  }
  return true;
}

}  // namespace motley
