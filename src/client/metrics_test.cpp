#include "client/metrics.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "client/report.hpp"

namespace motley::client {
namespace {

RequestRecord success(double start_s, double ttft_s, std::vector<double> itl_s, uint64_t output_tokens) {
  RequestRecord record;
  record.success = true;
  record.start_s = start_s;
  record.ttft_s = ttft_s;
  record.latency_s = ttft_s;
  for (const double gap : itl_s) record.latency_s += gap;
  record.itl_s = std::move(itl_s);
  record.prompt_tokens = 10;
  record.output_tokens = output_tokens;
  return record;
}

RequestRecord failure(std::string error) {
  RequestRecord record;
  record.error = std::move(error);
  record.prompt_tokens = 10;
  record.output_tokens = 3;
  record.latency_s = 100;
  return record;
}

// 0 s: A, tokens at 0.5 1.0 1.5; 0 s: B, one token at 1.5; 1.5 s: C, five tokens in three chunks at 1.75 2.25 3.25.
std::vector<RequestRecord> timeline() {
  return {success(0, 0.5, {0.5, 0.5}, 3), success(0, 1.5, {}, 1), success(1.5, 0.25, {0.5, 1.0}, 5), failure("x")};
}

TEST(Percentile, BetweenValues_GoesByProportion) {
  const std::vector<double> values = {1, 2, 4, 8};
  EXPECT_DOUBLE_EQ(percentile(values, 0), 1);
  EXPECT_DOUBLE_EQ(percentile(values, 50), 3);
  EXPECT_DOUBLE_EQ(percentile(values, 100), 8);
  EXPECT_DOUBLE_EQ(percentile(values, 90), 4 + 0.7 * 4);
  EXPECT_DOUBLE_EQ(percentile(std::vector<double>{5}, 99), 5);
  EXPECT_DOUBLE_EQ(percentile({}, 99), 0);
}

TEST(Distribution, HandMadeValues_HaveTheirStatistics) {
  const std::vector<double> percentiles = {25, 99};
  const Distribution values = distribution_of({0.004, 0.002, 0.001, 0.009}, percentiles);
  EXPECT_DOUBLE_EQ(values.mean_ms, 4);
  EXPECT_DOUBLE_EQ(values.median_ms, 3);
  EXPECT_NEAR(values.std_ms, std::sqrt((0 + 4 + 9 + 25) / 4.0), 1e-9);
  EXPECT_NEAR(values.percentiles_ms[0], 1.75, 1e-9);
  EXPECT_NEAR(values.percentiles_ms[1], 4 + 0.97 * 5, 1e-9);
  const Distribution none = distribution_of({}, percentiles);
  EXPECT_EQ(none.mean_ms, 0);
  EXPECT_EQ(none.percentiles_ms, std::vector<double>(2, 0.0));
}

TEST(Metrics, HandMadeTimeline_HasTheKnownValues) {
  const Metrics metrics = measure(timeline(), 4, {});
  EXPECT_EQ(metrics.completed, 3u);
  EXPECT_EQ(metrics.failed, 1u);
  EXPECT_EQ(metrics.total_input_tokens, 30u);  // of those that succeeded
  EXPECT_EQ(metrics.total_output_tokens, 9u);
  EXPECT_DOUBLE_EQ(metrics.request_throughput, 0.75);
  EXPECT_DOUBLE_EQ(metrics.output_throughput, 2.25);
  EXPECT_DOUBLE_EQ(metrics.total_token_throughput, 39 / 4.0);
  EXPECT_DOUBLE_EQ(metrics.ttft.mean_ms, 750);
  EXPECT_DOUBLE_EQ(metrics.ttft.median_ms, 500);
  EXPECT_DOUBLE_EQ(metrics.tpot.mean_ms, (500 + 1500 / 4.0) / 2);  // B has one token: none
  EXPECT_DOUBLE_EQ(metrics.itl.mean_ms, 625);                      // four gaps, pooled
  EXPECT_DOUBLE_EQ(metrics.e2el.mean_ms, (1500 + 1500 + 1750) / 3.0);
}

TEST(Metrics, Peaks_AreOfFullSecondsAndOfHalfOpenIntervals) {
  const Metrics metrics = measure(timeline(), 4, {});
  // Second 1: A's tokens at 1.0 and 1.5, B's, and a third of C's five.
  EXPECT_NEAR(metrics.max_output_tokens_per_s, 3 + 5 / 3.0, 1e-9);
  EXPECT_EQ(metrics.max_concurrent_requests, 2u);  // C begins as A and B end
}

TEST(Metrics, Goodput_CountsRequestsThatKeepEveryLimit) {
  const auto good = [](Goodput goodput) {
    MetricsOptions options;
    options.goodput = goodput;
    return measure(timeline(), 4, options).good;
  };
  EXPECT_EQ(good({500, {}, {}}), 2u);  // a limit that is met is kept
  EXPECT_EQ(good({499, {}, {}}), 1u);
  EXPECT_EQ(good({{}, 400, {}}), 2u);  // one token: 0 ms for each further one
  EXPECT_EQ(good({{}, {}, 1500}), 2u);
  EXPECT_EQ(good({600, 400, 2000}), 1u);
  EXPECT_EQ(good({0, 0, 0}), 0u);
  MetricsOptions options;
  options.goodput.ttft_ms = 500;
  EXPECT_DOUBLE_EQ(measure(timeline(), 4, options).request_goodput, 0.5);
}

TEST(Metrics, NoSuccess_IsZeros) {
  const std::vector<RequestRecord> records = {failure("x")};
  const Metrics metrics = measure(records, 4, {});
  EXPECT_EQ(metrics.failed, 1u);
  EXPECT_EQ(metrics.total_output_tokens, 0u);
  EXPECT_EQ(metrics.max_output_tokens_per_s, 0);
  EXPECT_EQ(metrics.max_concurrent_requests, 0u);
  EXPECT_EQ(metrics.ttft.percentiles_ms, std::vector<double>{0});
}

ReportOptions report_options() {
  ReportOptions options;
  options.percentiles = {50, 99.9};
  for (const char* name : {"ttft", "e2el"}) options.metrics.push_back(*find_metric(name));
  return options;
}

TEST(Report, Text_LooksAsInTheField) {
  MetricsOptions measured;
  measured.percentiles = {50, 99.9};
  ReportOptions options = report_options();
  const std::string text = text_report(measure(timeline(), 4, measured), options);
  EXPECT_NE(text.find("============ Serving Benchmark Result ============\n"
                      "Successful requests:                     3         \n"
                      "Failed requests:                         1         \n"
                      "Benchmark duration (s):                  4.00      \n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("---------------Time to First Token----------------\n"
                      "Mean TTFT (ms):                          750.00    \n"
                      "Median TTFT (ms):                        500.00    \n"
                      "P50 TTFT (ms):                           500.00    \n"
                      "P99.9 TTFT (ms):                         1498.00   \n"),
            std::string::npos)
      << text;
  EXPECT_TRUE(text.ends_with(std::string(50, '=') + "\n")) << text;
  EXPECT_EQ(text.find("goodput"), std::string::npos);
  EXPECT_EQ(text.find("Maximum request concurrency"), std::string::npos);
  options.goodput = true;
  options.max_concurrency = 4;
  options.arrivals.request_rate = 2.5;
  const std::string more = text_report(measure(timeline(), 4, measured), options);
  EXPECT_NE(more.find("Maximum request concurrency:             4         \n"
                      "Request rate configured (RPS):           2.50      \n"),
            std::string::npos)
      << more;
  EXPECT_NE(more.find("Request goodput (req/s):                 0.00      \n"), std::string::npos);
}

TEST(Report, Json_HasTheKeysThatUsersKnow) {
  MetricsOptions measured;
  measured.percentiles = {50, 99.9};
  const auto records = timeline();
  const Metrics metrics = measure(records, 4, measured);
  const auto plain = json_report(metrics, report_options(), records, false);
  for (const char* key :
       {"duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput",
        "output_throughput", "total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests",
        "mean_ttft_ms", "median_ttft_ms", "std_ttft_ms", "p50_ttft_ms", "p99.9_ttft_ms", "p50_e2el_ms"}) {
    ASSERT_TRUE(plain.contains(key)) << key;
    EXPECT_TRUE(plain[key].is_number()) << key;
  }
  EXPECT_TRUE(plain["request_goodput"].is_null());
  EXPECT_FALSE(plain.contains("mean_tpot_ms"));
  EXPECT_FALSE(plain.contains("itls"));
  const auto detailed = json_report(metrics, report_options(), records, true);
  for (const char* key : {"input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times",
                          "generated_texts", "errors"}) {
    ASSERT_TRUE(detailed.contains(key)) << key;
    EXPECT_EQ(detailed[key].size(), records.size()) << key;
  }
  EXPECT_EQ(detailed["output_lens"], (nlohmann::ordered_json{3, 1, 5, 0}));
  EXPECT_EQ(detailed["errors"][3], "x");
}

TEST(Report, UnknownMetric_IsRefusedWithTheKnownOnes) {
  const auto metric = find_metric("latency");
  ASSERT_FALSE(metric.ok());
  EXPECT_EQ(metric.error().message(), "latency is none of ttft, tpot, itl, e2el, client_queue_time");
}

TEST(Report, Errors_AreCountedByKind) {
  const std::vector<RequestRecord> records = {failure("a"), failure("b"), success(0, 1, {}, 1), failure("b"),
                                              failure("c")};
  EXPECT_EQ(error_lines(records, 2), (std::vector<std::string>{"2 requests: b", "1 request: a"}));
  EXPECT_EQ(error_lines(records, 9).size(), 3u);
}

}  // namespace
}  // namespace motley::client
