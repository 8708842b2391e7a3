// The sentences that say why a device is left out, and why a model fits nowhere. Pure.
#pragma once

#include <string>

#include "planner/candidate_pool.hpp"
#include "planner/device_types.hpp"

namespace motley {

// `best` leaves the device out. The arithmetic: memory where not one layer fits, else its time for a layer against the
// plan's, and the best plan found with it, or with one alike.
std::string left_out_reason(Predictor* predictor, const DeviceTypes& types, const CandidatePool& pool,
                            const Candidate& best, size_t device);

Status fits_nowhere(const Predictor& predictor, const CandidatePool& pool);

// "3.2 ms", "140 us".
std::string time_text(double ns);

}  // namespace motley
