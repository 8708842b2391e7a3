#include "client/metrics.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace motley::client {
namespace {

constexpr double kMsPerSecond = 1e3;
constexpr size_t kBinsMax = 10'000'000;  // seconds of a run, four months

double tpot_s(const RequestRecord& record) {
  if (record.output_tokens <= 1) return 0;
  return (record.latency_s - record.ttft_s) / static_cast<double>(record.output_tokens - 1);
}

bool is_good(const RequestRecord& record, const Goodput& goodput) {
  const auto keeps = [](const std::optional<double>& limit_ms, double seconds) {
    return !limit_ms || seconds <= *limit_ms / kMsPerSecond;
  };
  return keeps(goodput.ttft_ms, record.ttft_s) && keeps(goodput.tpot_ms, tpot_s(record)) &&
         keeps(goodput.e2el_ms, record.latency_s);
}

double peak_tokens_per_s(std::span<const RequestRecord> records) {
  double first_s = std::numeric_limits<double>::infinity();
  for (const RequestRecord& record : records) {
    if (record.success) first_s = std::min(first_s, record.start_s);
  }
  std::vector<double> bins;
  for (const RequestRecord& record : records) {
    if (!record.success) continue;
    const double tokens = static_cast<double>(record.output_tokens) / static_cast<double>(record.itl_s.size() + 1);
    double at_s = record.start_s + record.ttft_s - first_s;
    for (size_t i = 0;; ++i) {
      const size_t bin = std::min(static_cast<size_t>(std::max(at_s, 0.0)), kBinsMax - 1);
      if (bin >= bins.size()) bins.resize(bin + 1);
      bins[bin] += tokens;
      if (i == record.itl_s.size()) break;
      at_s += record.itl_s[i];
    }
  }
  return bins.empty() ? 0 : *std::max_element(bins.begin(), bins.end());
}

uint64_t peak_concurrency(std::span<const RequestRecord> records) {
  std::vector<std::pair<double, int>> events;
  for (const RequestRecord& record : records) {
    if (!record.success) continue;
    events.emplace_back(record.start_s, 1);
    events.emplace_back(record.start_s + record.latency_s, -1);
  }
  std::sort(events.begin(), events.end());
  int64_t now = 0, peak = 0;
  for (const auto& [time_s, change] : events) peak = std::max(peak, now += change);
  return static_cast<uint64_t>(peak);
}

}  // namespace

double percentile(std::span<const double> sorted, double percent) {
  if (sorted.empty()) return 0;
  const double at = percent / 100 * static_cast<double>(sorted.size() - 1);
  const size_t below = std::min(static_cast<size_t>(at), sorted.size() - 1);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

Distribution distribution_of(std::vector<double> seconds, std::span<const double> percentiles) {
  std::sort(seconds.begin(), seconds.end());
  Distribution result;
  if (!seconds.empty()) {
    const auto count = static_cast<double>(seconds.size());
    const double mean = std::accumulate(seconds.begin(), seconds.end(), 0.0) / count;
    double squares = 0;
    for (const double value : seconds) squares += (value - mean) * (value - mean);
    result.mean_ms = mean * kMsPerSecond;
    result.std_ms = std::sqrt(squares / count) * kMsPerSecond;
  }
  result.median_ms = percentile(seconds, 50) * kMsPerSecond;
  for (const double percent : percentiles) result.percentiles_ms.push_back(percentile(seconds, percent) * kMsPerSecond);
  return result;
}

Metrics measure(std::span<const RequestRecord> records, double duration_s, const MetricsOptions& options) {
  Metrics metrics;
  metrics.duration_s = duration_s;
  std::vector<double> ttft, tpot, itl, e2el, queue;
  for (const RequestRecord& record : records) {
    if (!record.success) {
      ++metrics.failed;
      continue;
    }
    ++metrics.completed;
    if (options.goodput.any() && is_good(record, options.goodput)) ++metrics.good;
    metrics.total_input_tokens += record.prompt_tokens;
    metrics.total_output_tokens += record.output_tokens;
    ttft.push_back(record.ttft_s);
    if (record.output_tokens > 1) tpot.push_back(tpot_s(record));
    itl.insert(itl.end(), record.itl_s.begin(), record.itl_s.end());
    e2el.push_back(record.latency_s);
    queue.push_back(record.client_queue_s);
  }
  const auto per_s = [&](uint64_t count) { return static_cast<double>(count) / duration_s; };
  metrics.request_throughput = per_s(metrics.completed);
  metrics.request_goodput = per_s(metrics.good);
  metrics.output_throughput = per_s(metrics.total_output_tokens);
  metrics.total_token_throughput = per_s(metrics.total_input_tokens + metrics.total_output_tokens);
  metrics.max_output_tokens_per_s = peak_tokens_per_s(records);
  metrics.max_concurrent_requests = peak_concurrency(records);
  metrics.ttft = distribution_of(std::move(ttft), options.percentiles);
  metrics.tpot = distribution_of(std::move(tpot), options.percentiles);
  metrics.itl = distribution_of(std::move(itl), options.percentiles);
  metrics.e2el = distribution_of(std::move(e2el), options.percentiles);
  metrics.client_queue_time = distribution_of(std::move(queue), options.percentiles);
  return metrics;
}

}  // namespace motley::client
