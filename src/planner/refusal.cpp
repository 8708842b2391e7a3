#include "planner/refusal.hpp"

#include <algorithm>
#include <cmath>

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

Status fits_nowhere(const Predictor& predictor, const CandidatePool& pool) {
  const ModelShape& shape = predictor.shape();
  const PlanRequest& request = predictor.request();
  const Candidate* miss = pool.nearest_miss();
  uint64_t usable = 0;
  for (size_t d = 0; d < predictor.input().devices.size(); ++d)
    usable = std::max(usable, usable_bytes(predictor.input(), d));
  const uint64_t weights = shape.weight_bytes(), least = least_kv_tokens(shape, request);
  const double per_token =
      kv_head_bytes(shape, request) * static_cast<double>(shape.kv_heads) * static_cast<double>(shape.layers.size());
  const auto kv = static_cast<uint64_t>(per_token * static_cast<double>(least));
  std::string remedy;
  if (miss != nullptr) {
    const uint64_t missing = miss->memory.missing_bytes;
    if (missing < kv) {
      const auto tokens = static_cast<uint64_t>(static_cast<double>(kv - missing) / per_token) / request.kv.block_size *
                          request.kv.block_size;
      if (tokens > 0) remedy += fmt::format("a context of {} tokens (--max-model-len) would fit, ", tokens);
      if (request.kv.element_bytes > 1.1 && static_cast<double>(missing) < static_cast<double>(kv) * 0.45) {
        remedy += "or --kv-cache-dtype int8, ";
      }
      remedy += "or ";
    }
    const double keep = 1 - static_cast<double>(missing) / static_cast<double>(std::max<uint64_t>(weights, 1));
    remedy += keep > 0.1 ? fmt::format("a quantisation of at most {:.0f} % of this one's size", std::floor(100 * keep))
                         : "more or larger devices";
  } else {
    remedy = "free memory, or take a smaller quantisation";
  }
  return error(MOTLEY_RESOURCE_EXHAUSTED,
               "{} fits on no choice of these devices: weights {}, KV of {} tokens {}, the largest device has {}; {} "
               "missing{}; {}",
               shape.name, bytes_text(weights), least, bytes_text(kv), bytes_text(usable),
               miss == nullptr ? "some memory" : bytes_text(miss->memory.missing_bytes),
               miss == nullptr ? "" : " on " + predictor.input().devices[miss->memory.short_device].name, remedy);
}

}  // namespace motley
