// The uneven pipeline: contiguous layers on devices in any order, so that the slowest stage is as fast as possible.
// Pure, exact and deterministic, for any number of devices of few types.
//
// For a time T let f(q) be the most leading layers that the multiset q of devices can cover, each within T and within
// its memory: f(q) = max over types t in q of reach_t(f(q - t)), where reach_t(s) is how far type t gets from layer s.
// Costs and bytes are not negative and add up, so part of a possible stage is possible, reach_t never falls, and the
// longest prefix is worth at least any other state of the same q: f covers every order and every cut. The least T for
// which all devices cover all layers is found by bisection. O(log T * types * (layers + product of (count + 1))).
// What stands before the first layer and after the last (embedding, head) is given as layers of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.hpp"

namespace motley {

inline constexpr size_t kPipelineLayersMax = 4096;
inline constexpr size_t kPipelineStatesMax = 4'000'000;  // multisets of devices; four bytes each
inline constexpr int64_t kPipelineTimeMaxNs = int64_t{1'000'000} * 1'000'000'000;  // of one layer: beyond any device

// Devices that are alike.
struct StageType {
  uint32_t count = 1;
  int64_t fixed_ns = 0;              // of a stage, whatever its layers: dispatch, and the hop to the next
  std::vector<int64_t> layer_ns;     // [layer]
  int64_t memory_bytes = 0;          // for layers
  std::vector<int64_t> layer_bytes;  // [layer] here, where it packs weights in its own way; empty: the common ones
};

// Layers [layer_begin, layer_end) on one device of `type`.
struct PipelineStage {
  uint32_t type = 0, layer_begin = 0, layer_end = 0;
};

struct Pipeline {
  int64_t bottleneck_ns = 0;          // of the slowest stage
  std::vector<PipelineStage> stages;  // in layer order, as few as reach that time; the other devices are left out
};

// `layer_bytes`: [layer], of weights and KV. INVALID_ARGUMENT for sizes that contradict one another or are out of
// range, or for more multisets than kPipelineStatesMax (merge types that are nearly alike, rounding speed down);
// RESOURCE_EXHAUSTED where the layers do not fit into the devices' memory however they are cut.
Result<Pipeline> plan_pipeline(std::span<const int64_t> layer_bytes, std::span<const StageType> types);

}  // namespace motley
