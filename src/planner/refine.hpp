// Hill climbing from a good plan: moves a layer across a cut between stages, or units of one axis from shard to shard,
// as long as the prediction rises. Deterministic; ends by itself.
#pragma once

#include "planner/prediction.hpp"

namespace motley {

// At most `evaluations_max` plans are looked at. Shards are not emptied where `keep_shards`. The best found; never
// worse.
Candidate refine(Predictor* predictor, const Candidate& start, uint64_t evaluations_max, bool keep_shards);

}  // namespace motley
