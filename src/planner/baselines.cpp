#include "planner/baselines.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include "planner/device_types.hpp"
#include "planner/plan.hpp"
#include "planner/split.hpp"

namespace motley {
namespace {

constexpr int64_t kVocabularyUnit = 64;  // rows
constexpr double kAlikeFactor = 1.25;    // in speed, of devices of one type

std::vector<int64_t> evenly(int64_t total, size_t count) { return in_proportion(total, std::vector<double>(count, 1)); }

PlanRequest unforced(PlanRequest request) {
  request.tensor_parallel_size = request.pipeline_parallel_size = 0;
  request.use_all_devices = false;
  return request;
}

class Baselines {
 public:
  Baselines(const ModelShape& shape, const PlanInput& input, const PlanRequest& request)
      : shape_(shape), input_(input), request_(unforced(request)), predictor_(shape_, input_, request_) {
    for (size_t d = 0; d < input_.devices.size(); ++d) {
      if (input_.devices[d].attends) {
        members_.push_back(d);
      } else {
        idle_.push_back(fmt::format("{} is left out: it cannot attend, and there are no partners", name(d)));
      }
    }
  }

  Baseline alone(size_t device);
  Baseline even_tensor_parallel();
  Baseline pipeline(BaselineKind kind, std::string name, const std::vector<double>& weights);
  Baseline even_pipeline() {
    return pipeline(BaselineKind::kEvenPipeline, "even pipeline", std::vector<double>(members_.size(), 1));
  }
  Baseline memory_ratio();
  Baseline homogeneous();
  Baseline replicas();

 private:
  const std::string& name(size_t device) const { return input_.devices[device].name; }
  // How many of the members share the device's memory, itself counted.
  size_t sharers(size_t device) const;
  std::string notes(std::vector<std::string> more = {}) const;
  std::vector<std::vector<size_t>> types();
  void settle(LanePlan lane, Baseline* baseline);
  std::optional<PlanReport> replica(size_t device, uint32_t concurrency, size_t sharing) const;

  const ModelShape& shape_;
  const PlanInput& input_;
  const PlanRequest request_;
  Predictor predictor_;
  std::vector<size_t> members_;    // that can compute a layer
  std::vector<std::string> idle_;  // of the others: a sentence each
};

size_t Baselines::sharers(size_t device) const {
  const std::string& group = input_.devices[device].memory_group;
  if (group.empty()) return 1;
  return static_cast<size_t>(std::count_if(members_.begin(), members_.end(),
                                           [&](size_t d) { return input_.devices[d].memory_group == group; }));
}

std::string Baselines::notes(std::vector<std::string> more) const {
  more.insert(more.begin(), idle_.begin(), idle_.end());
  return fmt::format("{}", fmt::join(more, "; "));
}

// The lane with what is predicted of it, or why it cannot be.
void Baselines::settle(LanePlan lane, Baseline* baseline) {
  const Status sound = check_lane(shape_, input_, lane);
  if (!sound.ok()) {
    baseline->note = sound.message();
    return;
  }
  const Candidate candidate = predictor_.evaluate(std::move(lane));
  if (candidate.fits()) {
    baseline->engines.push_back(report_of(&predictor_, candidate));
  } else {
    baseline->note = fmt::format("{} more would be needed on {}", bytes_text(candidate.memory.missing_bytes),
                                 name(candidate.memory.short_device));
  }
}

Baseline Baselines::alone(size_t device) {
  Baseline baseline{BaselineKind::kAlone, name(device) + " alone", {}, ""};
  if (input_.devices[device].attends) {
    settle({{whole_stage(shape_, device, 0, shape_.layers.size())}}, &baseline);
  } else {
    baseline.note = "it cannot attend";
  }
  return baseline;
}

Baseline Baselines::even_tensor_parallel() {
  Baseline baseline{BaselineKind::kEvenTensorParallel, "even tensor parallel", {}, notes()};
  const size_t count = members_.size();
  if (count < 2 || shape_.heads < static_cast<int64_t>(count)) {
    baseline.note = notes({count < 2 ? "it takes two devices that can attend"
                                     : fmt::format("{} heads are fewer than {} devices", shape_.heads, count)});
    return baseline;
  }
  // Whole KV heads where there is one for each, else query heads, with copies of the KV.
  const int64_t group = shape_.kv_heads >= static_cast<int64_t>(count) ? shape_.query_heads_per_kv() : 1;
  const std::vector<int64_t> heads = evenly(shape_.heads / group, count), experts = evenly(shape_.experts, count),
                             columns = evenly(shape_.ffn_columns / shape_.ffn_unit, count);
  const auto holders =
      std::count_if(members_.begin(), members_.end(), [&](size_t d) { return input_.devices[d].holds_vocabulary; });
  std::vector<int64_t> rows = evenly((shape_.vocab + kVocabularyUnit - 1) / kVocabularyUnit,
                                     static_cast<size_t>(std::max<int64_t>(holders, 1)));
  StagePlan stage{0, shape_.layers.size(), {}};
  int64_t vocabulary = shape_.vocab;
  for (size_t i = 0; i < count; ++i) {
    ShardPlan shard{members_[i], heads[i] * group, 0, columns[i] * shape_.ffn_unit, experts[i]};
    if (input_.devices[members_[i]].holds_vocabulary) {
      shard.vocab_rows = std::min(rows.back() * kVocabularyUnit, vocabulary);
      vocabulary -= shard.vocab_rows;
      rows.pop_back();
    }
    stage.shards.push_back(shard);
  }
  settle_heads(shape_, &stage);
  settle({{std::move(stage)}}, &baseline);
  return baseline;
}

Baseline Baselines::pipeline(BaselineKind kind, std::string name, const std::vector<double>& weights) {
  Baseline baseline{kind, std::move(name), {}, ""};
  if (members_.size() < 2) {
    baseline.note = notes({"it takes two devices that can attend"});
    return baseline;
  }
  const std::vector<int64_t> layers = in_proportion(static_cast<int64_t>(shape_.layers.size()), weights);
  LanePlan lane;
  std::vector<std::string> none;
  size_t begin = 0;
  for (size_t i = 0; i < members_.size(); ++i) {
    const size_t end = begin + static_cast<size_t>(layers[i]);
    if (end > begin) lane.stages.push_back(whole_stage(shape_, members_[i], begin, end));
    if (end == begin) none.push_back(this->name(members_[i]) + " is left out: its share is less than a layer");
    begin = end;
  }
  baseline.note = notes(none);
  settle(std::move(lane), &baseline);
  return baseline;
}

// Devices of one memory have an equal part of it each.
Baseline Baselines::memory_ratio() {
  std::vector<double> weights;
  for (const size_t d : members_)
    weights.push_back(static_cast<double>(usable_bytes(input_, d)) / static_cast<double>(sharers(d)));
  if (std::accumulate(weights.begin(), weights.end(), 0.0) <= 0) weights.assign(members_.size(), 1);
  return pipeline(BaselineKind::kMemoryRatio, "layers by memory", weights);
}

// Of one kind, and within kAlikeFactor of the first in the time that all layers take.
std::vector<std::vector<size_t>> Baselines::types() {
  const std::vector<double> model_ns =
      find_types(input_, predictor_.links(), shape_, predictor_.steady(request_.concurrency, 1)).model_ns;
  std::vector<std::vector<size_t>> types;
  for (size_t d = 0; d < input_.devices.size(); ++d) {
    const auto same = std::find_if(types.begin(), types.end(), [&](const std::vector<size_t>& type) {
      const double ratio = model_ns[d] / model_ns[type[0]];
      return input_.devices[d].kind == input_.devices[type[0]].kind && ratio < kAlikeFactor && ratio * kAlikeFactor > 1;
    });
    if (same == types.end()) {
      types.push_back({d});
    } else {
      same->push_back(d);
    }
  }
  return types;
}

Baseline Baselines::homogeneous() {
  Baseline baseline{BaselineKind::kHomogeneous, "best of one type", {}, ""};
  std::vector<std::string> refusals;
  for (const std::vector<size_t>& members : types()) {
    PlanInput some = input_;
    const auto other = [&](const std::string& each) {
      return std::none_of(members.begin(), members.end(), [&](size_t d) { return name(d) == each; });
    };
    std::erase_if(some.devices, [&](const DeviceProfile& device) { return other(device.name); });
    std::erase_if(some.links, [&](const LinkProfile& link) { return other(link.a) || other(link.b); });
    std::erase_if(some.memory_caps, [&](const auto& cap) { return other(cap.first); });
    auto report = plan(shape_, some, request_, Effort::kFull);
    if (!report.ok()) {
      refusals.push_back(report.error().message());
    } else if (baseline.engines.empty() ||
               predictor_.score(report->predicted) > predictor_.score(baseline.engines[0].predicted)) {
      baseline.engines = {*std::move(report)};
    }
  }
  if (baseline.engines.empty()) baseline.note = fmt::format("{}", fmt::join(refusals, "; "));
  return baseline;
}

// A device that holds the whole model, `sharing` of them in its memory; predicted for so many requests at once. Those
// that share a bus slow one another down.
std::optional<PlanReport> Baselines::replica(size_t device, uint32_t concurrency, size_t sharing) const {
  PlanInput input = input_;
  if (sharing > 1) input.memory_caps[name(device)] = usable_bytes(input_, device) / sharing;
  PlanRequest request = request_;
  request.concurrency = concurrency;
  Predictor predictor(shape_, input, request);
  const LanePlan lane{{whole_stage(shape_, device, 0, shape_.layers.size())}};
  if (!check_lane(shape_, input, lane).ok()) return std::nullopt;
  const Candidate candidate = predictor.evaluate(lane);
  if (!candidate.fits()) return std::nullopt;
  PlanReport report = report_of(&predictor, candidate);
  if (sharing < 2) return report;
  const double slower = input.devices[device].together.at(report.predicted.concurrency, 1);
  report.predicted.tokens_per_s /= slower;
  report.predicted.ttft_ms *= slower, report.predicted.tpot_ms *= slower;
  return report;
}

Baseline Baselines::replicas() {
  Baseline baseline{BaselineKind::kReplicas, "replicas", {}, ""};
  std::vector<std::string> left_out;
  std::vector<size_t> devices;
  std::vector<double> rates;
  for (const size_t d : members_) {
    const auto report = replica(d, request_.concurrency, sharers(d));
    if (report) {
      devices.push_back(d), rates.push_back(report->predicted.tokens_per_s);
    } else {
      left_out.push_back(name(d) + " is left out: it does not hold the whole model");
    }
  }
  const std::vector<int64_t> parts =
      devices.empty() ? std::vector<int64_t>() : in_proportion(request_.concurrency, rates);
  for (size_t i = 0; i < devices.size(); ++i) {
    if (parts[i] == 0) {
      left_out.push_back(fmt::format("{} is left out: its part of {} requests at once is none", name(devices[i]),
                                     request_.concurrency));
      continue;
    }
    auto report = replica(devices[i], static_cast<uint32_t>(parts[i]), sharers(devices[i]));
    if (report) baseline.engines.push_back(*std::move(report));
  }
  baseline.note = notes(left_out);
  return baseline;
}

}  // namespace

std::string_view baseline_name(BaselineKind kind) {
  switch (kind) {
    case BaselineKind::kAlone: return "alone";
    case BaselineKind::kEvenTensorParallel: return "even_tensor_parallel";
    case BaselineKind::kEvenPipeline: return "even_pipeline";
    case BaselineKind::kMemoryRatio: return "memory_ratio";
    case BaselineKind::kHomogeneous: return "homogeneous";
    case BaselineKind::kReplicas: return "replicas";
  }
  return "";
}

double Baseline::tokens_per_s() const {
  double sum = 0;
  for (const PlanReport& engine : engines) sum += engine.predicted.tokens_per_s;
  return sum;
}

Result<std::vector<Baseline>> baselines(const ModelShape& shape, const PlanInput& input, const PlanRequest& request) {
  RETURN_IF_ERROR(check_plannable(shape, input, request));
  Baselines made(shape, input, request);
  std::vector<Baseline> list;
  for (size_t d = 0; d < input.devices.size(); ++d) list.push_back(made.alone(d));
  list.push_back(made.even_tensor_parallel());
  list.push_back(made.even_pipeline());
  list.push_back(made.memory_ratio());
  list.push_back(made.homogeneous());
  list.push_back(made.replicas());
  return list;
}

}  // namespace motley
