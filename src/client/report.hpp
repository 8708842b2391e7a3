// A run's results as people and programs know them from `vllm bench serve`: its block of text, its JSON keys. Pure
// functions; thread-safe.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.hpp"
#include "client/arrivals.hpp"
#include "client/metrics.hpp"
#include "client/request_record.hpp"

namespace motley::client {

// A metric that has a distribution: "ttft", "tpot", "itl", "e2el", "client_queue_time".
struct MetricName {
  std::string_view key, shown, title;
  Distribution Metrics::*values;
};
// INVALID_ARGUMENT listing the names there are.
Result<const MetricName*> find_metric(std::string_view key);

struct ReportOptions {
  ArrivalOptions arrivals;
  uint32_t max_concurrency = 0;  // 0: none
  std::vector<double> percentiles;
  std::vector<const MetricName*> metrics;  // that are reported with their distribution
  bool goodput = false;
};

// "99", "99.9".
std::string percentile_name(double percent);

// The block, with a line's end at its end.
std::string text_report(const Metrics& metrics, const ReportOptions& options);

// The keys of the measured values, then with `detailed` those of every request. A value that there is not is null.
nlohmann::ordered_json json_report(const Metrics& metrics, const ReportOptions& options,
                                   std::span<const RequestRecord> records, bool detailed);

// The first kinds of errors, each as "N requests: text", most of them first; at most `lines_max`.
std::vector<std::string> error_lines(std::span<const RequestRecord> records, size_t lines_max);

}  // namespace motley::client
