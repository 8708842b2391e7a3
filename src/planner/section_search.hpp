// The search for a pool of several sections: where no owner's memory alone holds a sequence of the load. Pure.
#pragma once

#include <optional>
#include <span>

#include "planner/lane_set.hpp"

namespace motley {

// The best lane whose pool holds a sequence, of those made of `starts`, plans that need not. Each gets one owner after
// another, at the best place of the order in which a pool is filled: while none holds a sequence, whoever leaves
// least missing, then whoever is worth it. None where no pool of all of them holds a sequence.
std::optional<LaneSet> find_sections(Predictor* predictor, std::span<const LanePlan> starts);

}  // namespace motley
