// PlanInput and DeviceProfile as JSON: the cost cache on disk, and fleets that are written by hand.
//
// {"devices": [{"name", "kind", "memory_group"?, "format"?, "memory_bytes": {"total", "free"}, "own_memory"?: BOOL,
//   "attention": TABLE, "ffn"?, "experts"?, "layer"?, "head": TABLE, "embed": TABLE, "context": {"rows", "ns"},
//   "chunk_context_ns"?, "sequences"?: {"rows", "ns"}, "mixed"?, "wait_ns"?, "wake_ns"?, "sample_ns", "packed_ratio",
//   "together"?: {"rows", "factors"}, "context_together"?, "copies"?: N (then NAME/0 ... NAME/N-1)}],
//  "links": [{"a", "b", "latency_us", "gb_per_s", "route"?: "shared-memory" or "gloo"}],
//  "host_memory"?: {"latency_us", "gb_per_s"}, "memory_caps"?: {NAME: BYTES}}, TABLE = {"rows", "units", "ns": [[...]]}
#pragma once

#include <string>
#include <string_view>

#include "base/status.hpp"
#include "planner/profile.hpp"

namespace motley {

inline constexpr size_t kProfileFileBytesMax = 32u << 20;

std::string to_json(const PlanInput& input);
std::string to_json(const DeviceProfile& device);

// Hostile text is refused: INVALID_ARGUMENT with one line that names the field. Tables come back monotone.
Result<PlanInput> read_plan_input(std::string_view json);
Result<DeviceProfile> read_device_profile(std::string_view json);

}  // namespace motley
