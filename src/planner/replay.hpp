// Replay: the micro-batches of a plan's load, event by event, through its stages. Pure and deterministic.
//
// Each of the M micro-batches goes round: a stage runs one at a time, in order of arrival, and hands it over its link
// (which carries one at a time too); back at the first stage with its tokens, it begins its next step. Steps with a
// chunk come as evenly as whole numbers allow, never fewer than the load's share. It checks the closed form of
// prediction.hpp, which knows neither start nor queues: no replay gives more tokens than the bound.
#pragma once

#include <cstdint>

#include "planner/prediction.hpp"

namespace motley {

struct ReplayResult {
  double tokens_per_s = 0;  // from the first step's start to the last one's end
  double step_ms_mean = 0;  // of a micro-batch, all stages and waits
};

// `steps` of every micro-batch, at least 1. The candidate fits.
ReplayResult replay(Predictor* predictor, const Candidate& candidate, uint32_t steps);

}  // namespace motley
