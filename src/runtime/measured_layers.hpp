// Which layers of a model are measured.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

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

}  // namespace motley
