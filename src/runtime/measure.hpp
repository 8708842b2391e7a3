// Measure: what a device needs for the parts of this model, on random rows of the model's shapes and its own weights.
//
// Programs are timed as a driver runs them: whole layers, embedding and head behind one another, the parts of split
// layers by turns and waited for. What a value takes between the device's memory and the host's is counted by itself,
// and what a meeting of two devices costs besides is the link's (measure_link). Medians of several runs. The planner
// sees nothing of a device but these figures.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/route.hpp"
#include "base/status.hpp"
#include "device/description.hpp"
#include "device/handles.hpp"
#include "model/model.hpp"
#include "planner/profile.hpp"
#include "runtime/buckets.hpp"
#include "runtime/lane_links.hpp"
#include "runtime/measure_gate.hpp"
#include "runtime/probe.hpp"
#include "runtime/uncompiled_rows.hpp"

namespace motley {

inline constexpr uint32_t kMeasuredRowsMax = 512;

struct MeasureOptions {
  uint32_t rows_max = kMeasuredRowsMax;  // more than steps have would take memory of devices that they do not
  int64_t kv_dtype = 0;
  bool virtual_time = false;  // the devices are simulated: their own times count
  VirtualLink virtual_link;   // between drivers, with virtual_time
  int64_t virtual_ns = 0;     // when measure_slowdown() begins, with virtual_time
  // Over which links are timed (comm's available_routes(), say); with virtual_time shared memory alone is.
  std::vector<Route> routes = {Route::kSharedMemory};
  uint64_t wait_ns = kProgramWaitNs;                // for what is timed to end; then the device hangs
  MeasureGate* gate = nullptr;                      // borrowed; each timing goes through it. Null = none
  double compile_seconds_max = kCompileSecondsMax;  // as BucketOptions
  ExpectedLoad load;                                // as BucketOptions
  uint32_t step_rows_max = kMeasuredRowsMax;        // that programs will be compiled for; what they take is not free
  bool brief = false;  // fewer samples at fewer points: with pauses between they last twenty times as long
};

struct MeasuredDevice {
  DeviceDescription description;  // as listed
  const Device* device = nullptr;
  std::vector<int> cores = {};                      // where its driver's thread would run; empty = anywhere
  uint64_t program_bytes_max = UINT64_MAX;          // as BucketOptions
  std::shared_ptr<UncompiledRows> uncompiled = {};  // as of PartOptions
};

// One layer's attention and FFN or experts, the head and the embedding, at several numbers of units and rows; copies.
// Takes a few seconds for a small model; what fails on the device is its answer. Where the device's memory does not
// hold what is measured at once, it is measured more roughly, which the profile says.
Result<DeviceProfile> measure_device(const Model& model, const MeasuredDevice& device, const MeasureOptions& options);

// What some layers take the device now, of what `known` says of them: of a device that runs nothing else, to see
// whether it is as it was. One timing, of one program; UNIMPLEMENTED where the model has too few layers for one.
Result<double> measure_slowdown(const Model& model, const MeasuredDevice& device, const DeviceProfile& known,
                                const MeasureOptions& options);

// How much slower each runs while all of them run: the devices share one memory. Fills `together` and
// `context_together` of the profiles, which are in the order of the devices.
Status measure_together(const Model& model, std::span<const MeasuredDevice> devices, const MeasureOptions& options,
                        std::span<DeviceProfile> profiles);

// What two devices' sums take over a route, beside their programs and copies.
struct RouteTimes {
  Route route = Route::kSharedMemory;
  double row_ns = 0, chunk_ns = 0;  // of one row of the residual stream; of a chunk of rows
};

// The cheaper route is that whose sum of one row and sum of one chunk take less time together; of equals, the first of
// kRoutes. `times`: one or more.
const RouteTimes& cheapest(std::span<const RouteTimes> times);

// What a sum over the two costs beside their programs and copies, of which the profiles tell: over the cheapest of
// options.routes. One over which they do not come together is logged and passed over, unless it was the last.
Result<LinkProfile> measure_link(const Model& model, const MeasuredDevice& a, const MeasuredDevice& b,
                                 const MeasureOptions& options);

}  // namespace motley
