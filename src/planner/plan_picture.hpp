// A plan for people: text for a terminal (UTF-8 box drawing), and an SVG. Pure and deterministic.
#pragma once

#include <string>

#include "planner/search.hpp"

namespace motley {

// Layers x devices, a row a shard: its share of the layers as a bar, heads, columns, vocabulary, bytes, busy time;
// then the prediction against the bound, who was left out and why, and the next best plans. Ends with a newline.
std::string plan_text(const PlanReport& report, const ModelShape& shape);

// The same picture; a whole SVG document.
std::string plan_svg(const PlanReport& report, const ModelShape& shape);

// How much of the stage's work the shard has: the mean of its parts of heads, columns and experts; 0 to 1.
double shard_part(const Shard& shard, const ModelShape& shape);

// Of a lane among several: its role, pool and figures, on one line.
std::string lane_text(const PlanReport& report, size_t lane);

bool is_simulated(const PlanReport& report, const std::string& device);

}  // namespace motley
