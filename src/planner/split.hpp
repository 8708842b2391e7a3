// The uneven split of one axis of a stage: how many units (KV-head groups, column blocks, vocabulary rows, experts)
// each device takes, so that the slowest of them is done as soon as possible. Pure, exact and deterministic.
//
// For a time T, device d can take u_d(T) = the most units that it finishes by T. The sum of them grows with T, so the
// least T whose sum reaches all units is found by bisection; no divisibility is asked for, and a device whose first
// unit takes longer than T drops out by itself. What a pool of devices may take caps the sum of its members' u_d(T).
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "base/status.hpp"

namespace motley {

struct SplitDevice {
  // [u] = nanoseconds for u units, u = 0 ... the most that it can hold. Never falling; [0] is what it costs idle.
  std::vector<int64_t> time_ns;
  int64_t units_min = 0;                                    // which it must take
  int64_t units_max = std::numeric_limits<int64_t>::max();  // beside what the table ends at
};

// Devices that take no more than so many units together: they share memory. No device is in two.
struct SplitPool {
  std::vector<size_t> devices;
  int64_t units_max = 0;
};

struct Split {
  int64_t time_ns = 0;         // of the slowest device
  std::vector<int64_t> units;  // [device]
};

// Among the best, units that could lie anywhere are taken from the devices that would be last. INVALID_ARGUMENT for a
// table that is empty or falls, or for devices that must take more than there is; RESOURCE_EXHAUSTED where they cannot
// hold all units, with the number missing, or a pool not what its devices must take.
Result<Split> split_units(int64_t units, std::span<const SplitDevice> devices, std::span<const SplitPool> pools = {});

// `total` in whole parts in proportion to the weights, whose sum is above 0; those with the largest remainders are
// rounded up.
std::vector<int64_t> in_proportion(int64_t total, const std::vector<double>& weights);

}  // namespace motley
