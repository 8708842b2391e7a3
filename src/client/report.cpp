#include "client/report.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <map>
#include <utility>

namespace motley::client {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<MetricName, 5> kMetrics = {{
    {"ttft", "TTFT", "Time to First Token", &Metrics::ttft},
    {"tpot", "TPOT", "Time per Output Token (excl. 1st token)", &Metrics::tpot},
    {"itl", "ITL", "Inter-token Latency", &Metrics::itl},
    {"e2el", "E2EL", "End-to-end Latency", &Metrics::e2el},
    {"client_queue_time", "Client Queue Time", "Client-side Queueing", &Metrics::client_queue_time},
}};

class Block {
 public:
  void title(std::string_view text, char fill) {
    fmt::format_to(std::back_inserter(out_), "{0}{1}{2}\n", std::string(left(text), fill), text,
                   std::string(kWidth - std::min(kWidth, text.size() + left(text)), fill));
  }
  void line(std::string_view label, double value) { add(label, fmt::format("{:<10.2f}", value)); }
  void line(std::string_view label, uint64_t value) { add(label, fmt::format("{:<10}", value)); }
  std::string take() { return std::move(out_); }

 private:
  static constexpr size_t kWidth = 50;
  static size_t left(std::string_view text) { return text.size() < kWidth ? (kWidth - text.size()) / 2 : 0; }
  void add(std::string_view label, std::string_view value) {
    fmt::format_to(std::back_inserter(out_), "{:<40} {}\n", label, value);
  }

  std::string out_;
};

// Of each record what `value` gives.
template <typename Value>
Json list_of(std::span<const RequestRecord> records, Value value) {
  Json list = Json::array();
  for (const RequestRecord& record : records) list.push_back(value(record));
  return list;
}

void add_details(Json& json, std::span<const RequestRecord> records) {
  json["input_lens"] = list_of(records, [](const auto& r) { return r.prompt_tokens; });
  json["output_lens"] = list_of(records, [](const auto& r) { return r.success ? r.output_tokens : 0; });
  json["ttfts"] = list_of(records, [](const auto& r) { return r.ttft_s; });
  json["itls"] = list_of(records, [](const auto& r) { return r.itl_s; });
  json["latencies"] = list_of(records, [](const auto& r) { return r.latency_s; });
  json["start_times"] = list_of(records, [](const auto& r) { return r.start_s; });
  json["queue_times"] = list_of(records, [](const auto& r) { return r.client_queue_s; });
  json["generated_texts"] = list_of(records, [](const auto& r) { return r.text; });
  json["errors"] = list_of(records, [](const auto& r) { return r.error; });
}

}  // namespace

Result<const MetricName*> find_metric(std::string_view key) {
  std::string names;
  for (const MetricName& metric : kMetrics) {
    if (metric.key == key) return &metric;
    names += (names.empty() ? "" : ", ") + std::string(metric.key);
  }
  return invalid_argument("{} is none of {}", key, names);
}

std::string percentile_name(double percent) { return fmt::format("{}", percent); }

std::string text_report(const Metrics& metrics, const ReportOptions& options) {
  Block block;
  block.title(" Serving Benchmark Result ", '=');
  block.line("Successful requests:", metrics.completed);
  block.line("Failed requests:", metrics.failed);
  if (options.max_concurrency > 0) block.line("Maximum request concurrency:", uint64_t{options.max_concurrency});
  if (!std::isinf(options.arrivals.request_rate)) {
    block.line("Request rate configured (RPS):", options.arrivals.request_rate);
  }
  block.line("Benchmark duration (s):", metrics.duration_s);
  block.line("Total input tokens:", metrics.total_input_tokens);
  block.line("Total generated tokens:", metrics.total_output_tokens);
  block.line("Request throughput (req/s):", metrics.request_throughput);
  if (options.goodput) block.line("Request goodput (req/s):", metrics.request_goodput);
  block.line("Output token throughput (tok/s):", metrics.output_throughput);
  block.line("Peak output token throughput (tok/s):", metrics.max_output_tokens_per_s);
  block.line("Peak concurrent requests:", static_cast<double>(metrics.max_concurrent_requests));
  block.line("Total token throughput (tok/s):", metrics.total_token_throughput);
  for (const MetricName* metric : options.metrics) {
    const Distribution& values = metrics.*metric->values;
    block.title(metric->title, '-');
    block.line(fmt::format("Mean {} (ms):", metric->shown), values.mean_ms);
    block.line(fmt::format("Median {} (ms):", metric->shown), values.median_ms);
    for (size_t i = 0; i < options.percentiles.size(); ++i) {
      block.line(fmt::format("P{} {} (ms):", percentile_name(options.percentiles[i]), metric->shown),
                 values.percentiles_ms[i]);
    }
  }
  block.title("", '=');
  return block.take();
}

Json json_report(const Metrics& metrics, const ReportOptions& options, std::span<const RequestRecord> records,
                 bool detailed) {
  Json json = {{"duration", metrics.duration_s},
               {"completed", metrics.completed},
               {"failed", metrics.failed},
               {"total_input_tokens", metrics.total_input_tokens},
               {"total_output_tokens", metrics.total_output_tokens},
               {"request_throughput", metrics.request_throughput},
               {"request_goodput", options.goodput ? Json(metrics.request_goodput) : Json(nullptr)},
               {"output_throughput", metrics.output_throughput},
               {"total_token_throughput", metrics.total_token_throughput},
               {"max_output_tokens_per_s", metrics.max_output_tokens_per_s},
               {"max_concurrent_requests", metrics.max_concurrent_requests}};
  for (const MetricName* metric : options.metrics) {
    const Distribution& values = metrics.*metric->values;
    const auto key = [&](std::string_view what) { return fmt::format("{}_{}_ms", what, metric->key); };
    json[key("mean")] = values.mean_ms;
    json[key("median")] = values.median_ms;
    json[key("std")] = values.std_ms;
    for (size_t i = 0; i < options.percentiles.size(); ++i) {
      json[key("p" + percentile_name(options.percentiles[i]))] = values.percentiles_ms[i];
    }
  }
  if (detailed) add_details(json, records);
  return json;
}

std::vector<std::string> error_lines(std::span<const RequestRecord> records, size_t lines_max) {
  std::map<std::string, size_t> counts;
  for (const RequestRecord& record : records) {
    if (!record.success) ++counts[record.error];
  }
  std::vector<std::pair<std::string, size_t>> kinds(counts.begin(), counts.end());
  std::stable_sort(kinds.begin(), kinds.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  if (kinds.size() > lines_max) kinds.resize(lines_max);
  std::vector<std::string> lines;
  for (const auto& [text, count] : kinds)
    lines.push_back(fmt::format("{} request{}: {}", count, count == 1 ? "" : "s", text));
  return lines;
}

}  // namespace motley::client
