// How a placement is run, and on what.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "base/host_memory.hpp"
#include "base/trace.hpp"
#include "device/handles.hpp"
#include "runtime/buckets.hpp"
#include "runtime/busy_time.hpp"
#include "runtime/holdings.hpp"
#include "runtime/lane_links.hpp"
#include "runtime/program_cache.hpp"
#include "runtime/uncompiled_rows.hpp"

namespace motley {

inline constexpr uint32_t kTokenSlots = 8192;  // of a lane

struct RuntimeOptions {
  uint32_t rows_max = 2048;        // of one step
  uint32_t logit_rows_max = 1024;  // of one step
  uint32_t positions_max = 0;      // longest sequence; 0 = the model's context
  bool virtual_time = false;       // every device is simulated and keeps virtual time; times of results are virtual
  VirtualLink virtual_link;        // between drivers, with virtual_time
  double compile_seconds_max = kCompileSecondsMax;  // as BucketOptions
  ExpectedLoad load;                                // as BucketOptions
  // By device, if it was measured: the row counts that it was measured with, of which it is compiled for as many as the
  // limits allow.
  std::map<std::string, std::vector<uint32_t>> row_counts;
  // How long a device may be at a step of so many rows and positions read, what it waits for others not counted, before
  // it is lost; in nanoseconds; null = forever.
  std::function<int64_t(double rows, double reads)> step_limit_ns;
  Trace* trace = nullptr;  // borrowed; null = none
  // With a limit of steps: of moving a run of KV blocks, which is some megabytes.
  int64_t kv_limit_ns = 3'000'000'000;
  // What the host's memory can give: save_kv() takes half of that at most, each time.
  std::function<uint64_t()> host_memory = [] { return host_memory_available(); };
  std::stop_token stop;  // nobody waits for what is being made any more: CANCELLED, soon
  // Of this model: what is in it already is not made again. Null: its own.
  std::shared_ptr<Holdings> holdings;
  // Told whose part of the placement could not be made, before create() fails for that; null: nobody asks.
  std::function<void(const std::string& device)> part_failed;
  // Of what devices of fixed row counts compile; null: nothing is kept.
  std::shared_ptr<const ProgramCache> programs;
};

// An opened device under the name that the placement uses.
struct NamedDevice {
  std::string name;
  const Device* device = nullptr;
  std::vector<int> cores = {};  // that the device has for itself; empty = none, or all
  bool simulated = false;
  bool any_rows = true;                             // false: it runs row counts it has compiled for
  uint32_t queue_depth = 0;                         // programs that a queue takes before it refuses; 0 = any number
  bool attends_partially = true;                    // MOTLEY_CAP_PARTIAL_ATTENTION
  std::string identity = {};                        // as of ProgramCache::compile()
  uint64_t program_bytes_max = UINT64_MAX;          // as BucketOptions
  std::shared_ptr<BusyTime> busy = {};              // of all its drivers; null = each counts for itself
  std::shared_ptr<UncompiledRows> uncompiled = {};  // as of PartOptions
};

// Null where there is none of that name.
inline const NamedDevice* find_device(std::span<const NamedDevice> devices, const std::string& name) {
  const auto found = std::find_if(devices.begin(), devices.end(), [&](const auto& d) { return d.name == name; });
  return found == devices.end() ? nullptr : &*found;
}

}  // namespace motley
