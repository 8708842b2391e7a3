#include "planner/prediction.hpp"

#include <algorithm>

namespace motley {
namespace {

constexpr double kNsPerMs = 1e6, kNsPerS = 1e9;
constexpr double kLimitsBroken = 1e-9;  // any plan that keeps the limits comes first

}  // namespace

Predictor::Predictor(const ModelShape& shape, const PlanInput& input, const PlanRequest& request)
    : shape_(shape), input_(input), request_(request), links_(input), twins_(find_twins(input)) {}

const Predictor::Costs& Predictor::steady(uint32_t concurrency, uint32_t micro_batches, Chunks chunks) {
  std::unique_ptr<Costs>& costs = steady_[{concurrency, micro_batches, chunks}];
  if (costs == nullptr) {
    const SteadyLoad load = steady_load(request_, concurrency, micro_batches, chunks);
    costs = std::make_unique<Costs>(Costs{load, StepCosts(shape_, input_, links_, twins_, load.decode),
                                          StepCosts(shape_, input_, links_, twins_, load.mixed)});
  }
  return *costs;
}

const Predictor::Costs& Predictor::lone() {
  if (lone_ == nullptr) {
    const SteadyLoad load = lone_load(request_);
    lone_ = std::make_unique<Costs>(Costs{load, StepCosts(shape_, input_, links_, twins_, load.decode),
                                          StepCosts(shape_, input_, links_, twins_, load.mixed)});
  }
  return *lone_;
}

Prediction Predictor::predict(const LanePlan& plan, uint32_t concurrency, uint32_t micro_batches, Chunks chunks) {
  const Costs& costs = steady(concurrency, micro_batches, chunks);
  const bool overlapped = micro_batches > 1 && plan.stages.size() > 1;
  double decode_sum = 0, decode_most = 0, mixed_sum = 0, mixed_most = 0, waits = 0, chunk = 0;
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    const StageCost decode = stage_cost(costs.decode, plan, s, overlapped);
    const StageCost mixed = stage_cost(costs.mixed, plan, s, overlapped);
    decode_sum += decode.ns + decode.hop_ns;
    mixed_sum += mixed.ns + mixed.hop_ns;
    decode_most = std::max({decode_most, decode.most_ns, decode.hop_ns});
    mixed_most = std::max({mixed_most, mixed.most_ns, mixed.hop_ns});
    chunk = std::max(chunk, mixed.ns);
    if (s + 1 < plan.stages.size()) waits += mixed.ns + mixed.hop_ns - decode.ns - decode.hop_ns;
  }
  double cycle = costs.load.mean(std::max(decode_sum, micro_batches * decode_most),
                                 std::max(mixed_sum, micro_batches * mixed_most));
  if (overlapped) cycle += std::min(costs.load.chunk_share, 1 - costs.load.chunk_share) * std::max(waits, 0.0);
  Prediction prediction;
  prediction.concurrency = concurrency;
  prediction.micro_batches = micro_batches;
  prediction.chunks = chunks;
  prediction.chunk_rows = static_cast<uint32_t>(std::ceil(costs.load.mixed.chunk_rows));
  prediction.tokens_per_s = cycle > 0 ? costs.load.decoding / cycle * kNsPerS : 0;
  prediction.tpot_ms = cycle / kNsPerMs;
  prediction.ttft_ms = (costs.load.chunks + static_cast<double>(plan.stages.size()) - 1) * chunk / kNsPerMs;
  return prediction;
}

double Predictor::score(const Prediction& prediction) const {
  const double good = request_.objective == Objective::kThroughput ? prediction.tokens_per_s
                                                                   : 1e9 / std::max(prediction.request_ms, 1e-9);
  return keeps_limits(prediction) ? good : good * kLimitsBroken;
}

bool Predictor::keeps_limits(const Prediction& prediction) const {
  return (request_.ttft_ms_max == 0 || prediction.ttft_ms <= request_.ttft_ms_max) &&
         (request_.tpot_ms_max == 0 || prediction.tpot_ms <= request_.tpot_ms_max);
}

Candidate Predictor::evaluate(LanePlan plan, const Given& given) {
  ++evaluations_;
  Candidate candidate;
  candidate.plan = std::move(plan);
  candidate.memory = lane_memory(shape_, input_, request_, candidate.plan);
  if (!check_abilities(input_, candidate.plan).ok()) candidate.memory.missing_bytes = UINT64_MAX;
  if (!candidate.fits()) return candidate;
  if (given.kv_tokens > 0) {
    const uint64_t most = std::max(given.kv_tokens, least_kv_tokens(shape_, request_));
    candidate.memory.kv_tokens = std::min(candidate.memory.kv_tokens, most);
  }
  const uint32_t concurrency = held_concurrency(shape_, request_, candidate.memory.kv_tokens);
  candidate.predicted = predict(candidate.plan, concurrency, given.micro_batches);
  return candidate;
}

Prediction Predictor::predict(const LanePlan& plan, uint32_t concurrency, uint32_t micro_batches_given) {
  double alone = 0;
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    const StageCost decode = stage_cost(lone().decode, plan, s, false);
    const StageCost chunk = stage_cost(lone().mixed, plan, s, false);
    alone += (decode.ns + decode.hop_ns) * request_.output_len + (chunk.ns + chunk.hop_ns) * lone().load.chunks;
  }
  Prediction found;
  double best = -1;
  const size_t stages = plan.stages.size(), places = steps_at_once(plan);
  const bool fixed = micro_batches_given > 0 && places > 1;
  for (const uint32_t parts :
       fixed ? std::vector{std::min(micro_batches_given, concurrency)} : micro_batches(concurrency)) {
    // Fewer in flight than half the stages leave them idle; more than twice only makes each micro-batch smaller.
    if (!fixed && parts > 1 && (places == 1 || parts > 2 * places || 2 * parts < places)) continue;
    if (stages == 1 && parts > places) continue;
    for (const Chunks chunks : {Chunks::kWhole, Chunks::kEven}) {
      Prediction prediction = predict(plan, concurrency, parts, chunks);
      prediction.request_ms = alone / kNsPerMs;
      if (score(prediction) <= best) continue;
      best = score(prediction);
      found = prediction;
    }
  }
  return found;
}

std::vector<double> Predictor::busy_ns(const LanePlan& plan, const Prediction& predicted) {
  const Costs& costs = steady(predicted);
  const bool overlapped = predicted.micro_batches > 1 && plan.stages.size() > 1;
  std::vector<double> busy(input_.devices.size(), 0);
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    const StageCost decode = stage_cost(costs.decode, plan, s, overlapped);
    const StageCost mixed = stage_cost(costs.mixed, plan, s, overlapped);
    for (size_t i = 0; i < decode.busy_ns.size(); ++i) {
      const ShardPlan& shard = plan.stages[s].shards[i];
      busy[shard.device] += predicted.micro_batches * costs.load.mean(decode.busy_ns[i], mixed.busy_ns[i]);
      busy[shard.kv_owner()] += predicted.micro_batches * costs.load.mean(decode.partner_ns[i], mixed.partner_ns[i]);
    }
    for (size_t i = 0; i < decode.section_ns.size(); ++i) {
      busy[plan.sections[i].owner] +=
          predicted.micro_batches * costs.load.mean(decode.section_ns[i], mixed.section_ns[i]);
    }
  }
  return busy;
}

Result<double> predict_step_ns(const ModelShape& shape, const PlanInput& input, const Placement& placement,
                               const StepLoad& load, size_t lane) {
  ASSIGN_OR_RETURN(const LanePlan plan, lane_plan_of(shape, input, placement, lane));
  const LinkTable links(input);
  const std::vector<size_t> twins = find_twins(input);
  const StepCosts costs(shape, input, links, twins, load);
  double ns = 0;
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    const StageCost stage = stage_cost(costs, plan, s, false);
    ns += stage.ns + (s + 1 < plan.stages.size() ? stage.hop_ns : 0);
  }
  return ns;
}

Result<double> predict_step_ns(const ModelShape& shape, const PlanInput& input, const Placement& placement, double rows,
                               double context) {
  return predict_step_ns(shape, input, placement, {.decode_rows = rows, .context = context, .head_rows = rows});
}

}  // namespace motley
