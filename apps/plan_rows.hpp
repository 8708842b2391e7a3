// The rows of `motley bench plan`: placements under one load, and the ways to show what came of them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine_load.hpp"
#include "planner/baselines.hpp"

namespace motley::apps {

struct PlanRow {
  std::string kind, name;           // "plan", or baseline_name()
  std::vector<PlanReport> engines;  // none: it cannot be
  std::string note;                 // why; or who is left out, or what failed
  std::optional<size_t> same_as;    // the earlier row with the same placement, whose runs these are
  std::vector<LoadSeen> runs;       // none where it cannot be, or failed

  double predicted() const;  // output tokens/s
};

// Least, median and most of the runs.
struct Spread {
  double least = 0, median = 0, most = 0;
};
Spread tokens_per_s(const PlanRow& row);
// Of all runs: the medians of their figures, and of memory the most.
std::vector<DeviceUse> device_uses(const PlanRow& row);
// Of all runs the medians.
std::vector<LinkUse> link_uses(const PlanRow& row);

// "0-15 GPU:0 + CPU:0 (partner GPU:0); 16-31 GPU:1", engines apart by " | ".
std::string placement_text(const PlanRow& row);
// The same placement to the last unit gives the same text.
std::string placement_key(const PlanRow& row);

struct PlanRowsTitle {
  std::string model;
  std::vector<std::string> devices;
  uint32_t num_prompts = 0, input_len = 0, output_len = 0, concurrency = 0, repeat = 0;
  uint64_t seed = 0;
};

// A Markdown table and the rows' notes. The last row is the plan; the ratios are to it.
std::string rows_text(const PlanRowsTitle& title, const std::vector<PlanRow>& rows);
std::string rows_json(const PlanRowsTitle& title, const std::vector<PlanRow>& rows);
// Bars of tokens/s with a tick where they were predicted, each device's busy share, and what goes over each link.
std::string rows_svg(const PlanRowsTitle& title, const std::vector<PlanRow>& rows);

}  // namespace motley::apps
