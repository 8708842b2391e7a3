#include "planner/fleet_bound.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace motley {
namespace {

constexpr double kSlack = 1 + 1e-9;
constexpr int kPivotsMax = 200;

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

FleetBound::FleetBound(std::vector<FleetType> types, size_t layers, double micro_batches, double head_ns)
    : types_(std::move(types)), layers_(static_cast<double>(layers)), micro_batches_(micro_batches), head_ns_(head_ns) {
  add_columns();
}

void FleetBound::add_columns() {
  std::vector<std::vector<std::pair<size_t, size_t>>> ranges;
  for (const FleetType& type : types_) ranges.push_back(ranges_of(type.count));
  std::vector<size_t> at(types_.size(), 0), low(types_.size(), 0), high(types_.size(), 0);
  for (bool more = true; more;) {
    for (size_t t = 0; t < types_.size(); ++t) low[t] = ranges[t][at[t]].first, high[t] = ranges[t][at[t]].second;
    add_column(low, high);
    more = false;
    for (size_t t = 0; t < types_.size() && !more; ++t) {
      at[t] = at[t] + 1 < ranges[t].size() ? at[t] + 1 : 0;
      more = at[t] != 0;
    }
  }
}

void FleetBound::add_column(const std::vector<size_t>& low, const std::vector<size_t>& high) {
  Column column;
  size_t members = 0;
  for (size_t t = 0; t < low.size(); ++t) members += low[t];
  if (members == 0) return;
  column.hop_ns = std::numeric_limits<double>::max();
  std::array<double, 3> rates{};
  double reduce = 0, part = std::numeric_limits<double>::max();  // who has no unit of a part copies less
  for (size_t t = 0; t < low.size(); ++t) {
    if (low[t] == 0) continue;
    const FleetType& type = types_[t];
    column.devices[t] = static_cast<double>(low[t]);
    for (size_t axis = 0; axis < rates.size(); ++axis)
      rates[axis] += static_cast<double>(high[t]) * type.axis_rate[axis];
    column.fixed_ns = std::max(column.fixed_ns, type.stage_ns);
    column.hop_ns = std::min(column.hop_ns, type.hop_ns);
    column.layers_max += static_cast<double>(high[t]) * type.layers_max;
    part = std::min(part, type.part_ns);
    if (members > 1) reduce = std::max(reduce, type.all_reduce_ns[members]);
    if (members == 1) column.layer_ns = type.layer_ns;
  }
  if (members > 1) {
    const auto least = [&](size_t axis) { return rates[axis] > 0 ? 1 / rates[axis] : 0; };
    // FFN and experts are one part: the devices that are best at each may do it at the same time.
    column.layer_ns = least(0) + std::max(least(1), least(2)) + 2 * (reduce + part);
  }
  hop_max_ns_ = std::max(hop_max_ns_, column.hop_ns);
  columns_.push_back(column);
}

void FleetBound::measure(double time_ns) {
  const double time = time_ns * kSlack / micro_batches_;
  for (Column& column : columns_) {
    const double room = (time - column.fixed_ns) / std::max(column.layer_ns, 1e-9);
    column.layers = std::floor(std::min({std::max(room, 0.0) * kSlack, column.layers_max * kSlack, layers_}));
    column.pass_ns = column.fixed_ns + column.hop_ns + column.layers * column.layer_ns;
  }
}

double FleetBound::cost(const Column& column, const Prices& prices) const {
  double sum = prices[kTypesMax] * column.pass_ns;
  for (size_t t = 0; t < types_.size(); ++t) sum += prices[t] * column.devices[t];
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

// The primal simplex, a column at a time. Its prices are always a proof of something: of the greatest sum of layers.
bool FleetBound::possible(double time_ns) {
  measure(time_ns);
  const size_t rows = types_.size() + 1, pass = types_.size();
  // The last stage has no hop.
  const double pass_ns = time_ns * kSlack - head_ns_ + hop_max_ns_;
  if (pass_ns <= 0) return false;
  std::vector<double> left(rows);  // the basis' values
  for (size_t t = 0; t < pass; ++t) left[t] = static_cast<double>(types_[t].count);
  left[pass] = pass_ns;
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
    for (size_t t = 0; t < pass; ++t) worth += at[t] * static_cast<double>(types_[t].count);
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
