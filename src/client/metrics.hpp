// What a run measured, from the records of its requests; names and definitions are those of `vllm bench serve`.
// Pure functions; thread-safe.
//
// Only requests that succeeded count, but for `failed`. TTFT: to the first token. TPOT of a request of n > 1 output
// tokens: (E2EL - TTFT) / (n - 1). ITL: the gaps between chunks, pooled over all requests. E2EL: to the last chunk.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "client/request_record.hpp"

namespace motley::client {

// The value below which `percent` (0 to 100) of the ascending values lie, between two of them by proportion (NumPy's
// default); 0 of none.
double percentile(std::span<const double> sorted, double percent);

struct Distribution {
  double mean_ms = 0, median_ms = 0, std_ms = 0;  // std: of the population
  std::vector<double> percentiles_ms;             // in the order of MetricsOptions::percentiles
};
// Zeros of none.
Distribution distribution_of(std::vector<double> seconds, std::span<const double> percentiles);

// What a good request keeps; a request of one token has a TPOT of 0.
struct Goodput {
  std::optional<double> ttft_ms, tpot_ms, e2el_ms;
  bool any() const { return ttft_ms || tpot_ms || e2el_ms; }
};

struct MetricsOptions {
  std::vector<double> percentiles = {99};  // 0 to 100
  Goodput goodput;
};

struct Metrics {
  double duration_s = 0;
  uint64_t completed = 0, failed = 0, good = 0;
  uint64_t total_input_tokens = 0, total_output_tokens = 0;
  double request_throughput = 0, request_goodput = 0;        // per second
  double output_throughput = 0, total_token_throughput = 0;  // tokens per second
  // Of the full second, counted from the first request, in which most tokens came; a request's tokens are spread evenly
  // over its chunks.
  double max_output_tokens_per_s = 0;
  uint64_t max_concurrent_requests = 0;  // a request that ends when another begins is gone
  Distribution ttft, tpot, itl, e2el, client_queue_time;
};

// `duration_s`: of the whole run, above 0.
Metrics measure(std::span<const RequestRecord> records, double duration_s, const MetricsOptions& options);

}  // namespace motley::client
