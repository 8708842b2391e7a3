// When the requests of a run arrive. Pure functions of their arguments; thread-safe.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "base/status.hpp"

namespace motley::client {

enum class RampUp { kNone, kLinear, kExponential };

struct ArrivalOptions {
  double request_rate = std::numeric_limits<double>::infinity();  // requests/s; infinity: all at once
  double burstiness = 1.0;  // the shape of the gamma distribution of the gaps; 1: a Poisson process
  RampUp ramp_up = RampUp::kNone;
  double ramp_up_start_rps = 0, ramp_up_end_rps = 0;  // the rate of the first request and of the last
};

// INVALID_ARGUMENT naming the option of the command line.
Status check(const ArrivalOptions& options);

// The rate at which request `index` of `count` comes.
double rate_at(const ArrivalOptions& options, uint32_t index, uint32_t count);

// Seconds after the beginning of the run, ascending, one for each of `count` requests. Gaps are drawn from a gamma
// distribution of mean 1/rate and shape burstiness; without a ramp they are then scaled so that the last request comes
// at count / request_rate exactly, whatever the seed. The options are sound.
std::vector<double> arrival_times(const ArrivalOptions& options, uint32_t count, uint64_t seed);

}  // namespace motley::client
