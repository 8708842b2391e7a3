#include "planner/refusal.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "planner/plan.hpp"

namespace motley {
namespace {

std::string names(const Predictor& predictor, const std::vector<size_t>& devices) {
  constexpr size_t kNamesMax = 4;
  std::string text;
  for (size_t i = 0; i < devices.size() && i < kNamesMax; ++i) {
    text += (i > 0 ? " + " : "") + predictor.input().devices[devices[i]].name;
  }
  if (devices.size() > kNamesMax) text += fmt::format(" and {} more", devices.size() - kNamesMax);
  return text;
}

// The smallest layer with what one sequence needs of KV.
double least_layer_bytes(const Predictor& predictor, size_t device) {
  const ModelShape& shape = predictor.shape();
  double bytes = 0;
  for (size_t l = 0; l < shape.layers.size(); ++l) {
    const auto here = static_cast<double>(shape.layer_bytes(l));
    if (l == 0 || here < bytes) bytes = here;
  }
  return bytes * predictor.input().devices[device].packed_ratio;
}

// Of the plan's mean step, for one layer.
double plan_layer_ns(Predictor* predictor, const Candidate& best) {
  const Predictor::Costs& costs = predictor->steady(best.predicted);
  double sum = 0;
  for (size_t s = 0; s < best.plan.stages.size(); ++s) {
    sum += costs.load.mean(stage_cost(costs.decode, best.plan, s, false).ns,
                           stage_cost(costs.mixed, best.plan, s, false).ns);
  }
  return sum / static_cast<double>(predictor->shape().layers.size());
}

double device_layer_ns(Predictor* predictor, const Candidate& best, size_t device) {
  const Predictor::Costs& costs = predictor->steady(best.predicted);
  double sum = 0;
  for (const LayerShape& layer : predictor->shape().layers) {
    sum += costs.load.mean(costs.decode.layer_ns(device, layer.kind), costs.mixed.layer_ns(device, layer.kind));
  }
  return sum / static_cast<double>(predictor->shape().layers.size());
}

// Of the plans that take this device, or one of its type that the best plan leaves out, the best.
const Candidate* best_with(const DeviceTypes& types, const CandidatePool& pool, const Candidate& best, size_t device) {
  const std::vector<size_t> used = devices_of(best.plan);
  for (const Candidate* candidate : pool.ranked()) {
    const std::vector<size_t> devices = devices_of(candidate->plan);
    size_t here = 0, there = 0;
    for (const size_t d : devices) here += types.type_of[d] == types.type_of[device] ? 1 : 0;
    for (const size_t d : used) there += types.type_of[d] == types.type_of[device] ? 1 : 0;
    if (here > there) return candidate;
  }
  return nullptr;
}

}  // namespace

std::string time_text(double ns) {
  if (ns >= 1e9) return fmt::format("{:.3g} s", ns / 1e9);
  if (ns >= 1e6) return fmt::format("{:.3g} ms", ns / 1e6);
  return fmt::format("{:.3g} us", ns / 1e3);
}

std::string left_out_reason(Predictor* predictor, const DeviceTypes& types, const CandidatePool& pool,
                            const Candidate& best, size_t device) {
  const double layer_bytes = least_layer_bytes(*predictor, device);
  const uint64_t usable = usable_bytes(predictor->input(), device);
  if (static_cast<double>(usable) < layer_bytes) {
    return fmt::format("one layer takes {} of weights here, and {} is free",
                       bytes_text(static_cast<uint64_t>(layer_bytes)), bytes_text(usable));
  }
  const std::string times =
      fmt::format("a layer takes {} on it alone and {} in the plan",
                  time_text(device_layer_ns(predictor, best, device)), time_text(plan_layer_ns(predictor, best)));
  const Candidate* with = best_with(types, pool, best, device);
  if (with == nullptr) return times + "; no plan with it fits the memory";
  const bool lone = predictor->request().objective == Objective::kLatency;
  const std::string devices = names(*predictor, devices_of(with->plan));
  if (lone) {
    return fmt::format("{}; the best plan found with it ({}) takes {:.4g} ms a request, against {:.4g} ms without",
                       times, devices, with->predicted.request_ms, best.predicted.request_ms);
  }
  const double loss = 100 * (1 - with->predicted.tokens_per_s / best.predicted.tokens_per_s);
  if (predictor->keeps_limits(best.predicted) && !predictor->keeps_limits(with->predicted)) {
    return fmt::format("{}; the best plan found with it ({}) breaks the limits: TTFT {:.4g} ms, TPOT {:.4g} ms", times,
                       devices, with->predicted.ttft_ms, with->predicted.tpot_ms);
  }
  return fmt::format("{}; the best plan found with it ({}) reaches {:.4g} tokens/s, {:.3g} % below the {:.4g} without",
                     times, devices, with->predicted.tokens_per_s, std::max(loss, 0.0), best.predicted.tokens_per_s);
}

namespace {

// What would make up for the missing bytes: fewer tokens of KV or smaller ones, smaller steps, smaller weights.
std::string remedies(const ModelShape& shape, const PlanRequest& request, double missing, double kv_bytes,
                     double per_token) {
  std::vector<std::string> ways;
  if (missing < kv_bytes) {
    const auto tokens =
        static_cast<uint64_t>((kv_bytes - missing) / per_token) / request.kv.block_size * request.kv.block_size;
    if (tokens > 0) ways.push_back(fmt::format("a context of {} tokens (--max-model-len) would fit", tokens));
    if (request.kv.element_bytes > 1.1 && missing < kv_bytes * 0.45) ways.push_back("--kv-cache-dtype int8");
  }
  if (missing < 0.9 * static_cast<double>(request.step_bytes))
    ways.push_back("smaller steps (--max-num-batched-tokens, --max-num-seqs)");
  const double keep = 1 - missing / static_cast<double>(std::max<uint64_t>(shape.weight_bytes(), 1));
  if (keep > 0.1)
    ways.push_back(fmt::format("a quantisation of at most {:.0f} % of this one's size", std::floor(100 * keep)));
  if (ways.empty()) ways.push_back("more or larger devices");
  return fmt::format("{}", fmt::join(ways, ", or "));
}

}  // namespace

Status fits_nowhere(const Predictor& predictor, const CandidatePool& pool) {
  const ModelShape& shape = predictor.shape();
  const PlanRequest& request = predictor.request();
  const Candidate* miss = pool.nearest_miss();
  const uint64_t least = least_kv_tokens(shape, request);
  const double per_token = kv_bytes_per_token(shape, request);
  const double kv = per_token * static_cast<double>(least);
  if (request.kv.bytes > 0 && static_cast<double>(request.kv.bytes) < kv) {
    return error(MOTLEY_RESOURCE_EXHAUSTED,
                 "--kv-cache-memory-bytes {} holds less than one sequence of {} tokens, which takes {}",
                 request.kv.bytes, least, bytes_text(static_cast<uint64_t>(kv)));
  }
  uint64_t usable = 0;
  for (size_t d = 0; d < predictor.input().devices.size(); ++d)
    usable = std::max(usable, usable_bytes(predictor.input(), d));
  const std::string needs = fmt::format(
      "{} fits on no choice of these devices: weights {}, KV of {} tokens {}{}, the largest device has {}", shape.name,
      bytes_text(shape.weight_bytes()), least, bytes_text(static_cast<uint64_t>(kv)),
      request.step_bytes > 0 ? fmt::format(", {} a step", bytes_text(request.step_bytes)) : "", bytes_text(usable));
  if (miss == nullptr)
    return error(MOTLEY_RESOURCE_EXHAUSTED, "{}; free memory, or take a smaller quantisation", needs);
  const uint64_t missing = miss->memory.missing_bytes;
  return error(MOTLEY_RESOURCE_EXHAUSTED, "{}; {} missing on {}: {}", needs, bytes_text(missing),
               predictor.input().devices[miss->memory.short_device].name,
               remedies(shape, request, static_cast<double>(missing), kv, per_token));
}

}  // namespace motley
