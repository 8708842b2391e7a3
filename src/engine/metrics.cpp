#include "engine/metrics.hpp"

#include <algorithm>
#include <utility>

namespace motley {
namespace {

// Bounds as vLLM's (v1/metrics/loggers.py), so that dashboards made for it fit.
std::vector<double> first_token_bounds() {
  return {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
          1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
}
std::vector<double> token_gap_bounds() {
  return {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
}
std::vector<double> request_time_bounds() {
  return {0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
}
std::vector<double> pause_bounds() { return {0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 5, 10, 20, 40, 80, 160}; }
std::vector<double> iteration_bounds() { return {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}; }

// 1, 2, 5, 10, 20, 50 ... up to `most`.
std::vector<double> count_bounds(uint64_t most) {
  std::vector<double> bounds;
  for (uint64_t decade = 1; decade <= most; decade *= 10)
    for (const uint64_t mantissa : {1, 2, 5})
      if (mantissa * decade <= most) bounds.push_back(static_cast<double>(mantissa * decade));
  return bounds;
}

double seconds(int64_t from_ns, int64_t to_ns) { return static_cast<double>(to_ns - from_ns) * 1e-9; }

}  // namespace

void Histogram::observe(double value) {
  const auto at = std::lower_bound(bounds.begin(), bounds.end(), value);
  ++counts[static_cast<size_t>(at - bounds.begin())];
  sum += value;
}

uint64_t Histogram::total() const {
  uint64_t all = 0;
  for (const uint64_t count : counts) all += count;
  return all;
}

EngineMetrics::EngineMetrics(uint32_t max_model_len) {
  const Histogram tokens(count_bounds(max_model_len));
  stats_.prompt_tokens_per_request = stats_.generated_tokens_per_request = stats_.max_tokens_per_request = tokens;
  stats_.prefill_computed_tokens_per_request = tokens;
  stats_.iteration_tokens = Histogram(iteration_bounds());
  stats_.ttft_s = Histogram(first_token_bounds());
  stats_.inter_token_s = stats_.time_per_output_token_s = Histogram(token_gap_bounds());
  stats_.pause_s = Histogram(pause_bounds());
  const Histogram times(request_time_bounds());
  stats_.e2e_s = stats_.queue_s = stats_.prefill_s = stats_.decode_s = stats_.inference_s = times;
}

void EngineMetrics::on_step(uint32_t lane, size_t rows) {
  ++stats_.steps;
  if (stats_.lanes.size() <= lane) stats_.lanes.resize(lane + 1);
  ++stats_.lanes[lane].steps;
  stats_.lanes[lane].rows += rows;
  stats_.iteration_tokens.observe(static_cast<double>(rows));
}

void EngineMetrics::on_replacement(bool lost, int64_t pause_ns) {
  ++(lost ? stats_.recoveries : stats_.replacements);
  stats_.pause_s.observe(seconds(0, pause_ns));
}

void EngineMetrics::on_moved(size_t blocks, uint64_t bytes) {
  stats_.kv_blocks_moved += blocks;
  stats_.kv_bytes_moved += bytes;
}

void EngineMetrics::on_update(const Sequence& sequence, const RequestUpdate& update, int64_t now_ns) {
  if (!update.tokens.empty()) on_tokens(sequence, update.tokens.size());
  if (update.finished) on_finish(sequence, *update.finished, now_ns);
}

void EngineMetrics::on_tokens(const Sequence& sequence, size_t tokens) {
  const SequenceTimes& t = sequence.times;
  stats_.generated_tokens += tokens;
  if (sequence.known_output() == tokens) {
    stats_.prompt_tokens += sequence.prompt_length();
    stats_.prompt_tokens_cached += sequence.cached_tokens;
    stats_.ttft_s.observe(seconds(t.arrival_ns, t.first_token_ns));
  } else {
    stats_.inter_token_s.observe(seconds(t.previous_token_ns, t.last_token_ns));
  }
}

// Times and sizes tell of requests that ran to their end; the others are only counted.
void EngineMetrics::on_finish(const Sequence& sequence, FinishReason reason, int64_t now_ns) {
  uint64_t* const counters[] = {&stats_.finished_stop, &stats_.finished_length, &stats_.finished_abort,
                                &stats_.finished_error};
  ++*counters[static_cast<size_t>(reason)];
  if (reason != FinishReason::kStop && reason != FinishReason::kLength) return;
  if (sequence.known_output() == 0) return;  // stopped from outside before its first token
  const SequenceTimes& t = sequence.times;
  stats_.prompt_tokens_per_request.observe(sequence.prompt_length());
  stats_.prefill_computed_tokens_per_request.observe(sequence.prompt_length() - sequence.cached_tokens);
  stats_.generated_tokens_per_request.observe(sequence.known_output());
  stats_.max_tokens_per_request.observe(sequence.request.params.max_tokens);
  stats_.e2e_s.observe(seconds(t.arrival_ns, now_ns));
  stats_.queue_s.observe(seconds(t.arrival_ns, t.first_scheduled_ns));
  stats_.prefill_s.observe(seconds(t.first_scheduled_ns, t.first_token_ns));
  stats_.decode_s.observe(seconds(t.first_token_ns, t.last_token_ns));
  stats_.inference_s.observe(seconds(t.first_scheduled_ns, t.last_token_ns));
  if (sequence.known_output() > 1)
    stats_.time_per_output_token_s.observe(seconds(t.first_token_ns, t.last_token_ns) / (sequence.known_output() - 1));
}

}  // namespace motley
