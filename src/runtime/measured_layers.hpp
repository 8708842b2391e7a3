// Which layers of a model are measured, how much of each, and on which rows.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "model/model.hpp"
#include "runtime/probe.hpp"

namespace motley {

inline constexpr uint32_t kMeasuredContext = 512;  // positions at which the reading of KV is measured

inline constexpr uint32_t kLayersOfOwnMemory = 32;  // of a device whose programs are sent for

// Positions that a layer sees; 0 = all.
uint32_t window_of(const Model& model, size_t layer);

// Layers about the middle one that are measured in turn: they do the same, as far as it is measured. Neither the first
// nor the last one, which share their programs with embedding and head, where there are three or more. With the KV that
// is read they take a quarter of a device's free memory at most, or are one. `least`: where a program by itself takes
// long beside a layer, so many at least (kLayersOfOwnMemory).
LayerRange measured_layers(const Model& model, uint64_t memory_free, uint32_t least = 1);

// The fewest of them that show what a layer takes: one, or of a device that does not attend two, one behind the other.
LayerRange few_layers(const Model& model, bool attends);

// A few numbers of units from small to all; but for that, multiples of the grain.
std::vector<int64_t> unit_points(int64_t units, int64_t grain, bool brief);

// Beside what a step takes, so much memory is enough to measure a device that attends: a layer packed twice over.
uint64_t measuring_bytes(const Model& model);

inline constexpr uint32_t kTurnRowsMax = 64;  // that take layers in turn; beyond, they share each weight enough
inline constexpr uint32_t kMixedRows = 128, kMixedDecoding = 16;

// As many rows of one sequence. What runs few of them decodes, mostly.
ProbeLoad rows_of_one(uint32_t rows, uint32_t context);
ProbeLoad prompt_of(uint32_t rows);
// Rows of a prompt that see no more than themselves, and as many that see more, up to `positions`: on a device with
// memory of its own so much that it shows, but nowhere more than any of the layers sees.
struct ChunkLoads {
  ProbeLoad near, far;
};
ChunkLoads chunk_loads(const Model& model, LayerRange layers, bool own_memory, uint32_t rows_max, uint32_t positions);
// kMixedRows, of which kMixedDecoding decode.
ProbeLoad mixed_load();

}  // namespace motley
