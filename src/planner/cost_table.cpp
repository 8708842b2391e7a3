#include "planner/cost_table.hpp"

#include <algorithm>
#include <cmath>

namespace motley {
namespace {

// Where `x` lies among ascending points: between [low] and [low + 1], `part` of the way; part may leave [0, 1].
struct Place {
  size_t low = 0;
  double part = 0;
};

Place place(const std::vector<double>& points, double x) {
  const auto above = std::upper_bound(points.begin(), points.end(), x) - points.begin();
  const size_t low = std::min(static_cast<size_t>(std::max<std::ptrdiff_t>(above - 1, 0)), points.size() - 2);
  return {low, (x - points[low]) / (points[low + 1] - points[low])};
}

double between(double a, double b, double part) { return a + (b - a) * part; }

Status check_axis(const std::vector<int64_t>& axis, const char* name) {
  if (axis.empty() || axis.size() > kCostPointsMax) {
    return invalid_argument("{} has {} points: 1 to {}", name, axis.size(), kCostPointsMax);
  }
  for (size_t i = 0; i < axis.size(); ++i) {
    if (axis[i] < 1 || axis[i] > kCostAxisMax || (i > 0 && axis[i] <= axis[i - 1])) {
      return invalid_argument("{}[{}] = {}: must ascend, from 1 to {}", name, i, axis[i], kCostAxisMax);
    }
  }
  return ok_status();
}

// Makes every row and column ascend by running maxima: ends what rounding leaves of the alternating fits.
void close_gaps(std::vector<std::vector<double>>& ns) {
  for (size_t u = 0; u < ns.size(); ++u) {
    for (size_t r = 0; r < ns[u].size(); ++r) {
      if (r > 0) ns[u][r] = std::max(ns[u][r], ns[u][r - 1]);
      if (u > 0) ns[u][r] = std::max(ns[u][r], ns[u - 1][r]);
    }
  }
}

}  // namespace

double UnitCurve::at(double count) const {
  if (count <= 0 || units.empty()) return 0;
  if (units.size() == 1) return count <= units[0] ? ns[0] : ns[0] * count / units[0];
  const Place where = place(units, count);
  const double value = between(ns[where.low], ns[where.low + 1], where.part);
  return count < units[0] ? std::clamp(value, ns[0] * count / units[0], ns[0]) : std::max(value, 0.0);
}

UnitCurve CostTable::at_rows(double count) const {
  UnitCurve curve;
  if (empty()) return curve;
  curve.units.assign(units.begin(), units.end());
  const std::vector<double> points(rows.begin(), rows.end());
  const double x = std::max(count, points[0]);
  for (const std::vector<double>& line : ns) {
    if (points.size() == 1) {
      curve.ns.push_back(line[0] * x / points[0]);
      continue;
    }
    const Place where = place(points, x);
    curve.ns.push_back(std::max(between(line[where.low], line[where.low + 1], where.part), 0.0));
  }
  return curve;
}

double CostTable::at(double row_count, double unit_count) const { return at_rows(row_count).at(unit_count); }

std::vector<double> isotonic_fit(const std::vector<double>& values) {
  struct Pool {
    double sum = 0;
    size_t count = 0;
    double mean() const { return sum / static_cast<double>(count); }
  };
  std::vector<Pool> pools;
  for (const double value : values) {
    pools.push_back({value, 1});
    while (pools.size() > 1 && pools[pools.size() - 2].mean() > pools.back().mean()) {
      const Pool last = pools.back();
      pools.pop_back();
      pools.back().sum += last.sum;
      pools.back().count += last.count;
    }
  }
  std::vector<double> fit;
  for (const Pool& pool : pools) fit.insert(fit.end(), pool.count, pool.mean());
  return fit;
}

void CostTable::make_monotone() {
  constexpr int kRoundsMax = 100;
  const auto falls = [this] {
    for (size_t u = 0; u < ns.size(); ++u) {
      for (size_t r = 0; r < ns[u].size(); ++r) {
        if ((r > 0 && ns[u][r] < ns[u][r - 1]) || (u > 0 && ns[u][r] < ns[u - 1][r])) return true;
      }
    }
    return false;
  };
  for (int round = 0; round < kRoundsMax && falls(); ++round) {
    for (std::vector<double>& line : ns) line = isotonic_fit(line);
    for (size_t r = 0; r < rows.size(); ++r) {
      std::vector<double> column;
      for (const std::vector<double>& line : ns) column.push_back(line[r]);
      column = isotonic_fit(column);
      for (size_t u = 0; u < ns.size(); ++u) ns[u][r] = column[u];
    }
  }
  close_gaps(ns);
}

Status CostTable::check() const {
  if (empty()) {
    return rows.empty() && units.empty() ? ok_status() : invalid_argument("a table without times must have no axes");
  }
  RETURN_IF_ERROR(check_axis(rows, "rows"));
  RETURN_IF_ERROR(check_axis(units, "units"));
  if (ns.size() != units.size()) return invalid_argument("ns has {} lines for {} units", ns.size(), units.size());
  for (size_t u = 0; u < ns.size(); ++u) {
    if (ns[u].size() != rows.size()) {
      return invalid_argument("ns[{}] has {} times for {} rows", u, ns[u].size(), rows.size());
    }
    for (size_t r = 0; r < ns[u].size(); ++r) {
      if (!std::isfinite(ns[u][r]) || ns[u][r] < 0 || ns[u][r] > kCostNsMax) {
        return invalid_argument("ns[{}][{}] = {}: 0 to {} ns", u, r, ns[u][r], kCostNsMax);
      }
    }
  }
  return ok_status();
}

}  // namespace motley
