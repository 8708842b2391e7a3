#include "client/arrivals.hpp"

#include <algorithm>
#include <cmath>
#include <random>

namespace motley::client {

Status check(const ArrivalOptions& options) {
  if (!(options.request_rate > 0)) return invalid_argument("--request-rate must be above 0, or inf");
  if (!(options.burstiness > 0)) return invalid_argument("--burstiness must be above 0");
  const double start = options.ramp_up_start_rps, end = options.ramp_up_end_rps;
  if (options.ramp_up == RampUp::kNone) {
    if (start == 0 && end == 0) return ok_status();
    return invalid_argument("--ramp-up-start-rps and --ramp-up-end-rps need --ramp-up-strategy");
  }
  if (!std::isinf(options.request_rate)) {
    return invalid_argument("--request-rate and --ramp-up-strategy exclude each other: leave one out");
  }
  if (!(start > 0 && end >= start)) {
    return invalid_argument("--ramp-up-strategy needs --ramp-up-start-rps above 0 and --ramp-up-end-rps not below it");
  }
  return ok_status();
}

double rate_at(const ArrivalOptions& options, uint32_t index, uint32_t count) {
  const double start = options.ramp_up_start_rps, end = options.ramp_up_end_rps;
  const double progress = static_cast<double>(index) / std::max<uint32_t>(count - 1, 1);
  switch (options.ramp_up) {
    case RampUp::kLinear: return start + (end - start) * progress;
    case RampUp::kExponential: return start * std::pow(end / start, progress);
    default: return options.request_rate;
  }
}

std::vector<double> arrival_times(const ArrivalOptions& options, uint32_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<double> times(count);
  double now_s = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const double rate = rate_at(options, i, count);
    if (std::isinf(rate)) continue;
    now_s += std::isinf(options.burstiness)
                 ? 1 / rate
                 : std::gamma_distribution<double>(options.burstiness, 1 / (rate * options.burstiness))(random);
    times[i] = now_s;
  }
  if (options.ramp_up == RampUp::kNone && now_s > 0) {
    const double scale = count / options.request_rate / now_s;
    for (double& time : times) time *= scale;
  }
  return times;
}

}  // namespace motley::client
