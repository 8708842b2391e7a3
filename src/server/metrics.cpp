#include "server/metrics.hpp"

#include <fmt/format.h>

#include <iterator>
#include <string_view>

namespace motley {
namespace {

std::string escape_label(std::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

class Page {
 public:
  explicit Page(std::string_view model_name)
      : labels_(fmt::format("engine=\"0\",model_name=\"{}\"", escape_label(model_name))) {}

  // Of the names that follow: vLLM's, or our own where vLLM has none.
  void use_prefix(std::string_view prefix) { prefix_ = prefix; }
  void head(std::string_view name, std::string_view type, std::string_view help) {
    fmt::format_to(out(), "# HELP {}:{} {}\n# TYPE {}:{} {}\n", prefix_, name, help, prefix_, name, type);
  }
  void sample(std::string_view name, double value, std::string_view more_labels = {}) {
    fmt::format_to(out(), "{}:{}{{{}{}{}}} {}\n", prefix_, name, labels_, more_labels.empty() ? "" : ",", more_labels,
                   value);
  }
  void gauge(std::string_view name, std::string_view help, double value) {
    head(name, "gauge", help);
    sample(name, value);
  }
  // `name` without the _total that the sample carries.
  void counter(std::string_view name, std::string_view help, uint64_t value) {
    const std::string full = fmt::format("{}_total", name);
    head(full, "counter", help);
    sample(full, static_cast<double>(value));
  }
  void histogram(std::string_view name, std::string_view help, const Histogram& histogram) {
    head(name, "histogram", help);
    const std::string bucket = fmt::format("{}_bucket", name);
    uint64_t below = 0;
    for (size_t i = 0; i < histogram.counts.size(); ++i) {
      below += histogram.counts[i];
      const bool last = i == histogram.bounds.size();
      sample(bucket, static_cast<double>(below), last ? "le=\"+Inf\"" : fmt::format("le=\"{}\"", histogram.bounds[i]));
    }
    sample(fmt::format("{}_sum", name), histogram.sum);
    sample(fmt::format("{}_count", name), static_cast<double>(below));
  }
  std::string take() { return std::move(text_); }

 private:
  std::back_insert_iterator<std::string> out() { return std::back_inserter(text_); }

  std::string labels_, text_;
  std::string_view prefix_ = "vllm";
};

struct NamedHistogram {
  std::string_view name, help;
  Histogram EngineStats::*member;
};
constexpr NamedHistogram kHistograms[] = {
    {"iteration_tokens_total", "Tokens of one engine step.", &EngineStats::iteration_tokens},
    {"request_prompt_tokens", "Prompt tokens of a request.", &EngineStats::prompt_tokens_per_request},
    {"request_prefill_kv_computed_tokens", "Prompt tokens of a request that were computed.",
     &EngineStats::prefill_computed_tokens_per_request},
    {"request_generation_tokens", "Generated tokens of a request.", &EngineStats::generated_tokens_per_request},
    {"request_max_num_generation_tokens", "Tokens a request might generate at most.",
     &EngineStats::max_tokens_per_request},
    {"time_to_first_token_seconds", "From arrival to the first token.", &EngineStats::ttft_s},
    {"inter_token_latency_seconds", "Between two tokens of a request.", &EngineStats::inter_token_s},
    {"request_time_per_output_token_seconds", "Mean time per token of a request, the first left out.",
     &EngineStats::time_per_output_token_s},
    {"e2e_request_latency_seconds", "From arrival to the last token.", &EngineStats::e2e_s},
    {"request_queue_time_seconds", "From arrival to the first step.", &EngineStats::queue_s},
    {"request_prefill_time_seconds", "From the first step to the first token.", &EngineStats::prefill_s},
    {"request_decode_time_seconds", "From the first to the last token.", &EngineStats::decode_s},
    {"request_inference_time_seconds", "From the first step to the last token.", &EngineStats::inference_s},
};

void add_gauges(Page& page, const EngineStats& stats) {
  page.gauge("num_requests_running", "Requests in the running batch.", stats.running);
  page.gauge("num_requests_waiting", "Requests that wait to run.", stats.waiting);
  const double usage =
      stats.kv_blocks_total == 0 ? 0 : static_cast<double>(stats.kv_blocks_used) / stats.kv_blocks_total;
  page.gauge("kv_cache_usage_perc", "Share of the KV blocks in use; 1 is all.", usage);
}

void add_counters(Page& page, const EngineStats& stats) {
  page.counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_queries);
  page.counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_hits);
  page.counter("num_preemptions", "Requests put back to waiting for want of KV blocks.", stats.preemptions);
  page.counter("prompt_tokens", "Prompt tokens computed or found.", stats.prompt_tokens);
  page.counter("prompt_tokens_cached", "Prompt tokens found in the prefix cache, and not computed.",
               stats.prompt_tokens_cached);
  page.counter("generation_tokens", "Tokens generated.", stats.generated_tokens);
  const std::pair<std::string_view, uint64_t> reasons[] = {{"stop", stats.finished_stop},
                                                           {"length", stats.finished_length},
                                                           {"abort", stats.finished_abort},
                                                           {"error", stats.finished_error}};
  page.head("request_success_total", "counter", "Requests finished, by reason.");
  for (const auto& [reason, count] : reasons) {
    page.sample("request_success_total", static_cast<double>(count), fmt::format("finished_reason=\"{}\"", reason));
  }
}

void add_replacements(Page& page, const EngineStats& stats) {
  page.use_prefix("motley");
  page.gauge("num_requests_moving", "Requests whose KV moves from one pool to another, or comes late to the next plan.",
             stats.moving);
  page.counter("recoveries", "Lost devices or workers after which the requests went on elsewhere.", stats.recoveries);
  page.counter("replacements", "Changes of the placement by plan, while serving.", stats.replacements);
  page.histogram("replacement_pause_seconds", "Without steps because of either.", stats.pause_s);
  page.counter("recomputed_tokens", "Tokens computed again, after a preemption or a change.", stats.recomputed_tokens);
  page.counter("kv_blocks_moved", "KV blocks that moved from one pool to another.", stats.kv_blocks_moved);
  page.counter("kv_bytes_moved", "Bytes written by that.", stats.kv_bytes_moved);
}

// By KV pool and by lane, in the order in which the executor lists them.
void add_lanes(Page& page, const EngineStats& stats) {
  page.head("kv_blocks", "gauge", "KV blocks of a pool.");
  for (size_t i = 0; i < stats.pools.size(); ++i)
    page.sample("kv_blocks", stats.pools[i].blocks_total, fmt::format("pool=\"{}\"", i));
  page.head("kv_blocks_used", "gauge", "KV blocks of a pool that requests hold.");
  for (size_t i = 0; i < stats.pools.size(); ++i)
    page.sample("kv_blocks_used", stats.pools[i].blocks_used, fmt::format("pool=\"{}\"", i));
  page.head("lane_steps_total", "counter", "Steps of a lane.");
  for (size_t i = 0; i < stats.lanes.size(); ++i)
    page.sample("lane_steps_total", static_cast<double>(stats.lanes[i].steps), fmt::format("lane=\"{}\"", i));
  page.head("lane_rows_total", "counter", "Rows of those steps.");
  for (size_t i = 0; i < stats.lanes.size(); ++i)
    page.sample("lane_rows_total", static_cast<double>(stats.lanes[i].rows), fmt::format("lane=\"{}\"", i));
}

void add_devices(Page& page, const std::vector<DeviceCounters>& devices) {
  struct Series {
    std::string_view name, kind, help;
    double (*value)(const DeviceCounters&);
  };
  static constexpr Series kSeries[] = {
      {"device_programs_total", "counter", "Programs run for steps.",
       [](const DeviceCounters& d) { return static_cast<double>(d.programs); }},
      {"device_rows_total", "counter", "Rows of those programs.",
       [](const DeviceCounters& d) { return static_cast<double>(d.rows); }},
      {"device_bytes_moved_total", "counter", "Bytes to and from other devices.",
       [](const DeviceCounters& d) { return static_cast<double>(d.bytes_moved); }},
      {"device_flops_total", "counter",
       "Floating-point operations of products with weights and of attention, by the device's own count since it was "
       "opened, padding left out.",
       [](const DeviceCounters& d) { return d.own.flops; }},
      {"device_padded_flops_total", "counter", "The same, with those of padding.",
       [](const DeviceCounters& d) { return d.own.padded_flops; }},
      {"device_compile_seconds_total", "counter", "Compiling programs, by the device's own count.",
       [](const DeviceCounters& d) { return d.own.compile_s; }},
      {"device_resident_bytes", "gauge", "Of the device's memory that is in use, by its own count.",
       [](const DeviceCounters& d) { return static_cast<double>(d.own.bytes_resident); }},
      {"device_busy_seconds_total", "counter", "Time in those programs.",
       [](const DeviceCounters& d) { return d.busy_s; }}};
  const auto labels_of = [](const DeviceCounters& device) {
    return fmt::format("device=\"{}\"{}", escape_label(device.device), device.simulated ? ",simulated=\"true\"" : "");
  };
  if (devices.empty()) return;
  for (const Series& series : kSeries) {
    page.head(series.name, series.kind, series.help);
    for (const DeviceCounters& device : devices) page.sample(series.name, series.value(device), labels_of(device));
  }
  page.head("device_weight_error", "gauge",
            "Relative root mean square error of the weights that are held in another format than the file's.");
  for (const DeviceCounters& device : devices)
    page.sample("device_weight_error", device.weight_error,
                fmt::format("{},format=\"{}\"", labels_of(device),
                            device.weight_formats.empty() ? "as in the file" : device.weight_formats));
}

}  // namespace

std::vector<double> one_two_five_bounds(uint64_t max) {
  std::vector<double> bounds;
  for (uint64_t decade = 1; decade <= max; decade *= 10) {
    for (const uint64_t step : {1, 2, 5}) {
      if (step * decade <= max) bounds.push_back(static_cast<double>(step * decade));
    }
  }
  return bounds;
}

ServerCounters::ServerCounters(uint32_t max_model_len)
    : params_n({1, 2, 5, 10, 20}), params_max_tokens(one_two_five_bounds(max_model_len)) {}

std::string metrics_page(const MetricsInput& input) {
  Page page(input.model_name);
  add_gauges(page, input.stats);
  add_counters(page, input.stats);
  for (const NamedHistogram& entry : kHistograms) page.histogram(entry.name, entry.help, input.stats.*entry.member);
  page.histogram("request_params_n", "The n of a call.", input.counters.params_n);
  page.histogram("request_params_max_tokens", "The max_tokens of a call.", input.counters.params_max_tokens);
  std::string labels;
  for (const auto& [name, value] : input.cache_config) {
    fmt::format_to(std::back_inserter(labels), "{}{}=\"{}\"", labels.empty() ? "" : ",", name, escape_label(value));
  }
  page.head("cache_config_info", "gauge", "The KV cache's settings, as labels.");
  page.sample("cache_config_info", 1, labels);
  add_replacements(page, input.stats);
  add_lanes(page, input.stats);
  add_devices(page, input.devices);
  return page.take();
}

}  // namespace motley
