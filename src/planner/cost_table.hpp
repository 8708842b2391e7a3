// CostTable: measured times of one part of the model on one device, by rows and units. A value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.hpp"

namespace motley {

inline constexpr size_t kCostPointsMax = 256;  // of an axis
inline constexpr double kCostNsMax = 1e15;     // of one entry: eleven days
inline constexpr int64_t kCostAxisMax = int64_t{1} << 40;

// A table's line along units, for one number of rows.
struct UnitCurve {
  std::vector<double> units, ns;
  // 0 for no units (the part is not run); linear between points; beyond the last as its last two points go (through
  // the origin where there is one point); below the first as the first two go, but never below the line to the origin.
  double at(double count) const;
};

// ns[u][r] = nanoseconds of units[u] units on rows[r] rows. `empty()`: the device was not measured at this part.
struct CostTable {
  std::vector<int64_t> rows, units;  // each ascending, from 1 on
  std::vector<std::vector<double>> ns;

  bool empty() const { return ns.empty(); }
  // Bilinear between points, linear beyond them, never negative; rows below the first count as the first. 0 units cost
  // nothing. Neither falls as rows or units grow once make_monotone() was called. 0 for an empty table.
  double at(double rows, double units) const;
  UnitCurve at_rows(double rows) const;
  // Isotonic fit: pool-adjacent-violators along each axis in turn, until neither falls. Deterministic.
  void make_monotone();
  // INVALID_ARGUMENT: axes that do not ascend or contradict the table's shape, times that are not finite, negative or
  // beyond kCostNsMax. An empty table is well-formed.
  Status check() const;
  bool operator==(const CostTable&) const = default;
};

// The best non-decreasing sequence in the sense of least squares.
std::vector<double> isotonic_fit(const std::vector<double>& values);

}  // namespace motley
