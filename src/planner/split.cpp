#include "planner/split.hpp"

#include <algorithm>

namespace motley {
namespace {

int64_t capacity(const SplitDevice& device) { return static_cast<int64_t>(device.time_ns.size()) - 1; }

int64_t time_of(const SplitDevice& device, int64_t units) { return device.time_ns[static_cast<size_t>(units)]; }

// Of a checked device; -1: not even what it must take.
int64_t units_by(const SplitDevice& device, int64_t time_ns) {
  const auto end = std::upper_bound(device.time_ns.begin(), device.time_ns.end(), time_ns);
  const int64_t most = (end - device.time_ns.begin()) - 1;
  return most < device.units_min ? -1 : most;
}

bool possible(int64_t units, std::span<const SplitDevice> devices, int64_t time_ns) {
  int64_t sum = 0;
  for (const SplitDevice& device : devices) {
    const int64_t most = units_by(device, time_ns);
    if (most < 0) return false;
    sum += std::min(most, units);  // cannot overflow
  }
  return sum >= units;
}

Status check(int64_t units, std::span<const SplitDevice> devices) {
  if (units < 0) return invalid_argument("a split of {} units", units);
  int64_t least = 0, most = 0;
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
    most += std::min(capacity(device), units);
  }
  if (least > units) return invalid_argument("the devices of a split must take {} units of {}", least, units);
  if (most < units) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "the devices of a split hold {} units of {}: {} missing", most, units,
                 units - most);
  }
  return ok_status();
}

// Takes away what is too much, each time from the device that would be done last.
void drop_surplus(int64_t surplus, std::span<const SplitDevice> devices, std::vector<int64_t>& units) {
  for (; surplus > 0; --surplus) {
    size_t last = devices.size();
    for (size_t d = 0; d < devices.size(); ++d) {
      if (units[d] == devices[d].units_min) continue;
      if (last == devices.size() || time_of(devices[d], units[d]) > time_of(devices[last], units[last])) last = d;
    }
    --units[last];
  }
}

}  // namespace

Result<Split> split_units(int64_t units, std::span<const SplitDevice> devices) {
  RETURN_IF_ERROR(check(units, devices));
  int64_t low = 0, high = 0;  // the least possible time lies in [low, high]
  for (const SplitDevice& device : devices) {
    low = std::min(low, device.time_ns.front());
    high = std::max(high, device.time_ns.back());
  }
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (possible(units, devices, middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  Split split;
  int64_t sum = 0;
  for (const SplitDevice& device : devices) {
    split.units.push_back(std::min(units_by(device, low), units));
    sum += split.units.back();
  }
  drop_surplus(sum - units, devices, split.units);
  split.time_ns = devices.empty() ? 0 : time_of(devices[0], split.units[0]);
  for (size_t d = 0; d < devices.size(); ++d)
    split.time_ns = std::max(split.time_ns, time_of(devices[d], split.units[d]));
  return split;
}

}  // namespace motley
