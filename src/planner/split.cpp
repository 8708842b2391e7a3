#include "planner/split.hpp"

#include <algorithm>
#include <numeric>

namespace motley {
namespace {

int64_t capacity(const SplitDevice& device) {
  return std::min(static_cast<int64_t>(device.time_ns.size()) - 1, device.units_max);
}

int64_t time_of(const SplitDevice& device, int64_t units) { return device.time_ns[static_cast<size_t>(units)]; }

// Of a checked device; -1: not even what it must take.
int64_t units_by(const SplitDevice& device, int64_t time_ns) {
  const auto end = std::upper_bound(device.time_ns.begin(), device.time_ns.end(), time_ns);
  const int64_t most = std::min((end - device.time_ns.begin()) - 1, capacity(device));
  return most < device.units_min ? -1 : most;
}

// All that the devices take where device d takes `units_of(d)` unless its pool forbids it.
template <typename UnitsOf>
int64_t together(size_t devices, std::span<const SplitPool> pools, const UnitsOf& units_of) {
  int64_t sum = 0;
  for (size_t d = 0; d < devices; ++d) sum += units_of(d);
  for (const SplitPool& pool : pools) {
    int64_t of_pool = 0;
    for (const size_t d : pool.devices) of_pool += units_of(d);
    sum -= std::max<int64_t>(0, of_pool - pool.units_max);
  }
  return sum;
}

bool possible(int64_t units, std::span<const SplitDevice> devices, std::span<const SplitPool> pools, int64_t time_ns) {
  for (const SplitDevice& device : devices) {
    if (units_by(device, time_ns) < 0) return false;
  }
  const auto most = [&](size_t d) { return std::min(units_by(devices[d], time_ns), units); };  // cannot overflow
  return together(devices.size(), pools, most) >= units;
}

Status check(int64_t units, std::span<const SplitDevice> devices, std::span<const SplitPool> pools) {
  if (units < 0) return invalid_argument("a split of {} units", units);
  int64_t least = 0;
  for (size_t d = 0; d < devices.size(); ++d) {
    const SplitDevice& device = devices[d];
    if (device.time_ns.empty() || !std::is_sorted(device.time_ns.begin(), device.time_ns.end())) {
      return invalid_argument("device {} of a split: its times must not fall as units are added", d);
    }
    if (device.units_min < 0 || device.units_min > std::min(capacity(device), units)) {
      return invalid_argument("device {} of a split must take {} units, of {}; it can hold {}", d, device.units_min,
                              units, capacity(device));
    }
    least += device.units_min;
  }
  if (least > units) return invalid_argument("the devices of a split must take {} units of {}", least, units);
  for (const SplitPool& pool : pools) {
    int64_t of_pool = 0;
    for (const size_t d : pool.devices) of_pool += devices[d].units_min;
    if (of_pool > pool.units_max) {
      return error(MOTLEY_RESOURCE_EXHAUSTED, "devices of one pool must take {} units; it holds {}", of_pool,
                   pool.units_max);
    }
  }
  const int64_t most = together(devices.size(), pools, [&](size_t d) { return std::min(capacity(devices[d]), units); });
  if (most < units) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "the devices of a split hold {} units of {}: {} missing", most, units,
                 units - most);
  }
  return ok_status();
}

// Takes away what is too much of `among`, each time from the device that would be done last.
void drop_surplus(int64_t surplus, std::span<const SplitDevice> devices, std::span<const size_t> among,
                  std::vector<int64_t>& units) {
  for (; surplus > 0; --surplus) {
    size_t last = devices.size();
    for (const size_t d : among) {
      if (units[d] == devices[d].units_min) continue;
      if (last == devices.size() || time_of(devices[d], units[d]) > time_of(devices[last], units[last])) last = d;
    }
    --units[last];
  }
}

}  // namespace

Result<Split> split_units(int64_t units, std::span<const SplitDevice> devices, std::span<const SplitPool> pools) {
  RETURN_IF_ERROR(check(units, devices, pools));
  int64_t low = 0, high = 0;  // the least possible time lies in [low, high]
  for (const SplitDevice& device : devices) {
    low = std::min(low, device.time_ns.front());
    high = std::max(high, device.time_ns.back());
  }
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (possible(units, devices, pools, middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  Split split;
  for (const SplitDevice& device : devices) split.units.push_back(std::min(units_by(device, low), units));
  const auto sum_of = [&](std::span<const size_t> some) {
    return std::accumulate(some.begin(), some.end(), int64_t{0},
                           [&](int64_t sum, size_t d) { return sum + split.units[d]; });
  };
  for (const SplitPool& pool : pools) {
    drop_surplus(sum_of(pool.devices) - pool.units_max, devices, pool.devices, split.units);
  }
  std::vector<size_t> all(devices.size());
  std::iota(all.begin(), all.end(), size_t{0});
  drop_surplus(sum_of(all) - units, devices, all, split.units);
  split.time_ns = devices.empty() ? 0 : time_of(devices[0], split.units[0]);
  for (size_t d = 0; d < devices.size(); ++d)
    split.time_ns = std::max(split.time_ns, time_of(devices[d], split.units[d]));
  return split;
}

std::vector<int64_t> in_proportion(int64_t total, const std::vector<double>& weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<int64_t> parts;
  std::vector<double> remainders;
  for (const double weight : weights) {
    const double exact = static_cast<double>(total) * weight / sum;
    parts.push_back(static_cast<int64_t>(exact));
    remainders.push_back(exact - static_cast<double>(parts.back()));
  }
  std::vector<size_t> order(weights.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return remainders[a] > remainders[b]; });
  int64_t left = total - std::accumulate(parts.begin(), parts.end(), int64_t{0});
  for (size_t i = 0; left > 0; ++i, --left) ++parts[order[i % order.size()]];
  return parts;
}

}  // namespace motley
