#include "planner/search.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "planner/bound.hpp"
#include "planner/groupings.hpp"
#include "planner/lane_search.hpp"
#include "planner/refine.hpp"
#include "planner/refusal.hpp"
#include "planner/routes.hpp"
#include "planner/section_search.hpp"

namespace motley {
namespace {

constexpr size_t kAlternativesMax = 3;
constexpr double kWorthSeveral = 1.01;   // of the best single device: predictions are off by some percent
constexpr double kWorthSections = 1.05;  // of the best plan of one owner for each head, where there is one
constexpr size_t kOrderedStagesMax = 3;
constexpr size_t kTriedClosely = 12;            // groupings
constexpr size_t kRefined = 6;                  // of the best plans
constexpr size_t kBesideOthers = 32;            // of the best plans, each of other devices
constexpr uint64_t kRefineShardSteps = 60'000;  // shards looked at in all while one plan is refined

bool is_forced(const PlanRequest& request) {
  return request.tensor_parallel_size > 0 || request.pipeline_parallel_size > 0 || request.use_all_devices;
}

// As the command line says it.
std::string forced_text(const PlanRequest& request) {
  std::string text;
  const auto add = [&text](const std::string& option) { text += (text.empty() ? "" : " and ") + option; };
  if (request.tensor_parallel_size > 0) add(fmt::format("--tensor-parallel-size {}", request.tensor_parallel_size));
  if (request.pipeline_parallel_size > 0)
    add(fmt::format("--pipeline-parallel-size {}", request.pipeline_parallel_size));
  if (request.use_all_devices) add("--use-all-devices");
  return text;
}

std::vector<std::string> names_of(const PlanInput& input, const std::vector<size_t>& devices) {
  std::vector<std::string> names;
  for (const size_t d : devices) names.push_back(input.devices[d].name);
  return names;
}

// All the candidates of one search.
class Search {
 public:
  Search(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
         const std::stop_token& stop = std::stop_token())
      : stop_(stop),
        predictor_(shape, input, request),
        types_(find_types(input, predictor_.links(), shape, predictor_.steady(request.concurrency, 1))),
        pool_(predictor_),
        builder_(&predictor_, types_, &pool_) {}

  void try_first() {
    for (const std::vector<size_t>& members : types_.members) builder_.try_stage({members[0]}, false);
    Grouping all;
    for (const size_t d : types_.by_speed) all.push_back({d});
    if (pool_.empty() && all.size() > 1) builder_.try_pipeline(all, true);
  }

  void try_free() {
    const std::vector<Grouping> groupings = free_groupings(predictor_.input(), types_);
    const bool few = predictor_.input().devices.size() > kGroupingsAllDevicesMax;
    std::vector<double> worths;
    for (const Grouping& grouping : groupings) {
      if (stop_.stop_requested()) return;
      if (grouping.size() == 1) {
        worths.push_back(builder_.try_stage(grouping[0], false));
        continue;
      }
      worths.push_back(builder_.try_pipeline(grouping, few));
      // Where there are few, every order too: the bottleneck does not see hops and ends.
      if (few || grouping.size() > kOrderedStagesMax) continue;
      worths.back() = std::max(worths.back(), builder_.try_whole_pipeline(grouping));
    }
    try_closely(groupings, worths, false);
    try_partners();
    refine_best(false);
  }

  Status try_forced() {
    const PlanRequest& request = predictor_.request();
    const std::vector<Grouping> groupings = forced_groupings(predictor_.input(), types_, request);
    if (groupings.empty()) {
      return invalid_argument("{}: no way to share {} devices so was found", forced_text(request),
                              predictor_.input().devices.size());
    }
    std::vector<double> worths;
    for (const Grouping& grouping : groupings) {
      worths.push_back(grouping.size() == 1 ? builder_.try_stage(grouping[0], true)
                                            : builder_.try_whole_pipeline(grouping));
    }
    try_closely(groupings, worths, true);
    const bool two = (request.tensor_parallel_size == 0 || request.tensor_parallel_size == 2) &&
                     request.pipeline_parallel_size <= 1 &&
                     (!request.use_all_devices || predictor_.input().devices.size() == 2);
    if (two) try_partners();
    refine_best(true);
    return ok_status();
  }

  // So that every refusal has a plan to point to: the best plan's widest stage with the device, and forced to use it.
  void try_each_left_out() {
    const Candidate* best = pool_.best();
    if (best == nullptr) return;
    const std::vector<size_t> used = devices_of(best->plan);
    if (used.size() > 8) return;
    std::vector<bool> seen(types_.members.size(), false);
    for (size_t d = 0; d < predictor_.input().devices.size(); ++d) {
      const size_t type = types_.type_of[d];
      if (seen[type] || std::find(used.begin(), used.end(), d) != used.end()) continue;
      seen[type] = true;
      Island island = used;
      island.push_back(d);
      builder_.try_stage(island, true);
      Grouping stages;
      for (const size_t member : island) stages.push_back({member});
      builder_.try_whole_pipeline(stages);
    }
  }

  Predictor& predictor() { return predictor_; }
  const Predictor& predictor() const { return predictor_; }
  const CandidatePool& pool() const { return pool_; }
  const DeviceTypes& types() const { return types_; }

 private:
  // Each device that cannot attend with the whole stage, each that can as its partner, which holds the vocabulary.
  void try_partners() {
    const std::vector<DeviceProfile>& devices = predictor_.input().devices;
    const ModelShape& shape = predictor_.shape();
    for (size_t dense = 0; dense < devices.size(); ++dense) {
      for (size_t partner = 0; partner < devices.size() && !devices[dense].attends; ++partner) {
        if (!devices[partner].attends || !devices[partner].holds_vocabulary) continue;
        LanePlan lane{{whole_stage(shape, dense, 0, shape.layers.size())}};
        ShardPlan& shard = lane.stages[0].shards[0];
        shard.partner = partner;
        lane.stages[0].shards.push_back({partner, 0, 0, 0, 0, std::exchange(shard.vocab_rows, 0)});
        pool_.add(predictor_.evaluate(std::move(lane)));
      }
    }
  }

  // Those that are worth most so far.
  void try_closely(const std::vector<Grouping>& groupings, const std::vector<double>& worths, bool everybody) {
    std::vector<size_t> order(groupings.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return worths[a] > worths[b]; });
    if (order.size() > kTriedClosely) order.resize(kTriedClosely);
    for (const size_t i : order) {
      if (!stop_.stop_requested()) builder_.try_closely(groupings[i], everybody);
    }
  }

  void refine_best(bool keep_shards) {
    std::vector<Candidate> starts;
    for (const Candidate* candidate : pool_.ranked()) {
      if (starts.size() < kRefined) starts.push_back(*candidate);
    }
    for (const Candidate& start : starts) {
      if (stop_.stop_requested()) return;
      uint64_t shards = 0;
      for (const StagePlan& stage : start.plan.stages) shards += stage.shards.size();
      pool_.add(refine(&predictor_, start, kRefineShardSteps / (shards * shards + 20), keep_shards));
    }
  }

  const std::stop_token stop_;  // nobody waits for the plan any more
  Predictor predictor_;
  const DeviceTypes types_;
  CandidatePool pool_;
  LaneBuilder builder_;
};

}  // namespace

namespace {

LaneSet set_of(Predictor* predictor, const Candidate& candidate) {
  return evaluate_lanes(predictor, {{candidate.plan}},
                        {{{candidate.memory.kv_tokens}}, {candidate.predicted.micro_batches}});
}

}  // namespace

PlanReport report_of(Predictor* predictor, const LaneSet& set) {
  const ModelShape& shape = predictor->shape();
  const PlanInput& input = predictor->input();
  PlanReport report;
  report.placement =
      to_placement(shape, input, predictor->request(), set.lanes, set.memory.kv_tokens, set.micro_batches);
  report.predicted = set.predicted;
  report.keeps_slo = predictor->keeps_limits(set.predicted);
  report.ttft_ms_max = predictor->request().ttft_ms_max;
  report.tpot_ms_max = predictor->request().tpot_ms_max;
  for (const PoolTokens& pool : set.memory.kv_tokens) report.kv_capacity_tokens += pool.all();
  report.layers = static_cast<uint32_t>(shape.layers.size());
  for (size_t i = 0; i < set.lanes.size(); ++i) {
    const LaneOfSet& lane = set.lanes[i];
    const Prediction& predicted = set.pools[lane.pool];
    report.lanes.push_back({predicted, set.memory.kv_tokens[lane.pool].all(), set.stages[i]});
    Lane& placed = report.placement.lanes[i];
    const bool pipeline = predicted.chunks == Chunks::kEven && lane.plan.stages.size() > 1;
    if (pipeline || !lane.decodes) placed.chunk_rows = predicted.chunk_rows;
    placed.routes =
        lane_routes(input, predictor->links(), lane.plan, sizeof(float) * static_cast<double>(shape.hidden));
  }
  for (const DeviceMemory& memory : set.memory.devices) {
    const DeviceProfile& device = input.devices[memory.device];
    report.devices.push_back({device.name, device.format, memory.weight_bytes, memory.kv_bytes, memory.step_bytes,
                              memory.usable_bytes, set.busy[memory.device]});
  }
  return report;
}

PlanReport report_of(Predictor* predictor, const Candidate& candidate) {
  return report_of(predictor, set_of(predictor, candidate));
}

namespace {

void add_bound(Predictor* predictor, PlanReport* report) {
  const bool several = report->placement.lanes.size() > 1 || !report->placement.lanes[0].sections.empty();
  report->bound_tokens_per_s = tokens_per_s_bound(predictor, report->predicted.tokens_per_s, several);
  report->gap = report->bound_tokens_per_s > 0 ? 1 - report->predicted.tokens_per_s / report->bound_tokens_per_s : 0;
}

// One device where several gain less than predictions are good for.
const Candidate& best_of(const Search& search) {
  const Predictor& predictor = search.predictor();
  const Candidate *best = search.pool().best(), *one = search.pool().best_of_one();
  const bool alone =
      one != nullptr && predictor.score(best->predicted) < kWorthSeveral * predictor.score(one->predicted);
  return alone ? *one : *best;
}

void add_alternatives(const PlanInput& input, const CandidatePool& pool, const std::vector<size_t>& used,
                      PlanReport* report) {
  for (const Candidate* candidate : pool.ranked()) {
    if (report->alternatives.size() == kAlternativesMax) return;
    if (devices_of(candidate->plan) == used) continue;
    report->alternatives.push_back({names_of(input, devices_of(candidate->plan)), candidate->predicted.tokens_per_s});
  }
}

void add_left_out(Search* search, const Candidate& best, const std::vector<size_t>& used, PlanReport* report) {
  const PlanInput& input = search->predictor().input();
  std::vector<std::string> of_type(search->types().members.size());
  for (size_t d = 0; d < input.devices.size(); ++d) {
    if (std::find(used.begin(), used.end(), d) != used.end()) continue;
    std::string& reason = of_type[search->types().type_of[d]];
    if (reason.empty()) reason = left_out_reason(&search->predictor(), search->types(), search->pool(), best, d);
    report->left_out.push_back({input.devices[d].name, reason});
  }
}

// The lanes that are best beside it, if any are worth it.
LaneSet with_further_lanes(Search* search, const Candidate& best, bool forced) {
  std::vector<Candidate> starts = {best};
  for (const Candidate* candidate : search->pool().ranked()) {
    if (!forced && starts.size() < kBesideOthers) starts.push_back(*candidate);
  }
  auto found = find_lanes(&search->predictor(), starts, forced);
  return found ? *std::move(found) : set_of(&search->predictor(), best);
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// Plans that need not hold a sequence of the load. Where others hold it, the single devices that do not, one of each
// type.
std::vector<LanePlan> plans_without_room(Search* search, Effort effort, const std::stop_token& stop) {
  const ModelShape& shape = search->predictor().shape();
  const PlanInput& input = search->predictor().input();
  PlanRequest request = search->predictor().request();
  const uint64_t least = least_kv_tokens(shape, request);
  request.kv.any_room = true;
  std::vector<LanePlan> plans;
  if (search->pool().empty()) {
    Search parts(shape, input, request, stop);
    parts.try_first();
    if (effort == Effort::kFull || parts.pool().empty()) parts.try_free();
    for (const Candidate* candidate : parts.pool().ranked())
      if (plans.size() < kRefined) plans.push_back(candidate->plan);
    return plans;
  }
  for (const std::vector<size_t>& members : search->types().members) {
    LanePlan whole{{whole_stage(shape, members[0], 0, shape.layers.size())}, {}};
    if (!check_abilities(input, whole).ok()) continue;
    const LaneMemory memory = lane_memory(shape, input, request, whole);
    if (memory.missing_bytes == 0 && memory.kv_tokens < least) plans.push_back(std::move(whole));
  }
  return plans;
}

PlanReport report_of_sections(Predictor* predictor, const LaneSet& set) {
  const PlanInput& input = predictor->input();
  PlanReport report = report_of(predictor, set);
  const std::vector<size_t> used = devices_of(set.lanes);
  for (size_t d = 0; d < input.devices.size(); ++d) {
    if (std::find(used.begin(), used.end(), d) == used.end())
      report.left_out.push_back({input.devices[d].name, "the others hold a sequence in sections without it"});
  }
  return report;
}

Result<PlanReport> plan_forced(const ModelShape& shape, const PlanInput& input, const PlanRequest& request) {
  std::vector<std::string> names;
  for (const DeviceProfile& device : input.devices) names.push_back(device.name);
  RETURN_IF_ERROR(check_forced(request, names, shape.layers.size()));
  Search search(shape, input, request);
  RETURN_IF_ERROR(search.try_forced());
  const Candidate* best = search.pool().best();
  if (best == nullptr) {
    const Status status = fits_nowhere(search.predictor(), search.pool());
    return Status(status.code(), status.message() + "; or force less");
  }
  const LaneSet set = with_further_lanes(&search, *best, true);
  PlanReport report = report_of(&search.predictor(), set);
  PlanRequest free = request;
  free.tensor_parallel_size = free.pipeline_parallel_size = 0;
  free.use_all_devices = false;
  ASSIGN_OR_RETURN(const PlanReport unforced, plan(shape, input, free));
  report.forced = true;
  report.bound_tokens_per_s = unforced.bound_tokens_per_s;
  report.gap = 1 - report.predicted.tokens_per_s / report.bound_tokens_per_s;
  report.forced_loss.best_tokens_per_s = unforced.predicted.tokens_per_s;
  report.forced_loss.loss = std::max(0.0, 1 - report.predicted.tokens_per_s / unforced.predicted.tokens_per_s);
  for (const DeviceShare& share : unforced.devices) report.forced_loss.best_devices.push_back(share.device);
  const std::vector<size_t> used = devices_of(set.lanes);
  add_alternatives(input, search.pool(), used, &report);
  add_left_out(&search, *best, used, &report);
  for (LeftOut& out : report.left_out) out.reason = "the forced sizes leave it out: " + out.reason;
  return report;
}

}  // namespace

Status check_plannable(const ModelShape& shape, const PlanInput& input, const PlanRequest& request) {
  RETURN_IF_ERROR(check_shape(shape));
  RETURN_IF_ERROR(check_plan_input(input));
  RETURN_IF_ERROR(check_request(request));
  const auto any = [&](bool DeviceProfile::*can) {
    return std::any_of(input.devices.begin(), input.devices.end(), [&](const DeviceProfile& d) { return d.*can; });
  };
  if (!any(&DeviceProfile::attends) || !any(&DeviceProfile::holds_vocabulary)) {
    return invalid_argument("none of these devices can {}, and a model needs that; list one that can, such as CPU:0",
                            any(&DeviceProfile::attends) ? "hold vocabulary" : "attend");
  }
  for (const DeviceProfile& device : input.devices) {
    const bool vocabulary = !device.holds_vocabulary || (!device.head.empty() && !device.embed.empty());
    if (device.attention.empty() || !vocabulary || (shape.ffn_columns > 0 && device.ffn.empty()) ||
        (shape.experts > 0 && device.experts.empty())) {
      return error(MOTLEY_FAILED_PRECONDITION, "{} was not measured for {}; measure it first", device.name, shape.name);
    }
  }
  return ok_status();
}

Status check_forced(const PlanRequest& request, const std::vector<std::string>& devices, size_t layers) {
  const uint64_t width = std::max(1u, request.tensor_parallel_size), there = devices.size();
  const uint64_t needed = width * std::max(1u, request.pipeline_parallel_size);
  if (request.pipeline_parallel_size > layers) {
    return invalid_argument("--pipeline-parallel-size {}: the model has {} layers, and a stage at least one",
                            request.pipeline_parallel_size, layers);
  }
  if (needed > there) {
    return invalid_argument("{}: {} devices are asked for, and --devices lists {}: {}", forced_text(request), needed,
                            there == 1 ? "one" : std::to_string(there), joined(devices));
  }
  if (!request.use_all_devices || request.tensor_parallel_size == 0) return ok_status();
  const uint64_t used = request.pipeline_parallel_size > 0 ? needed : there / width * width;
  if (used == there) return ok_status();
  return invalid_argument("{}: stages of {} take {} of the {} devices, not every one of {}", forced_text(request),
                          width, used, there, joined(devices));
}

Result<PlanReport> plan(const ModelShape& shape, const PlanInput& input, const PlanRequest& request, Effort effort,
                        const std::stop_token& stop) {
  RETURN_IF_ERROR(check_plannable(shape, input, request));
  if (is_forced(request)) return plan_forced(shape, input, request);
  Search search(shape, input, request, stop);
  search.try_first();
  if (effort == Effort::kFull || search.pool().empty()) search.try_free();
  if (stop.stop_requested()) return error(MOTLEY_CANCELLED, "nobody waits for the plan any more");
  if (search.pool().empty()) {
    const std::optional<LaneSet> parts = find_sections(&search.predictor(), plans_without_room(&search, effort, stop));
    if (stop.stop_requested()) return error(MOTLEY_CANCELLED, "nobody waits for the plan any more");
    if (!parts) return fits_nowhere(search.predictor(), search.pool());
    PlanReport report = report_of_sections(&search.predictor(), *parts);
    if (effort == Effort::kFull) add_bound(&search.predictor(), &report);
    return report;
  }
  if (effort == Effort::kFull) search.try_each_left_out();
  const Candidate best = best_of(search);
  const LaneSet set =
      effort == Effort::kFull ? with_further_lanes(&search, best, false) : set_of(&search.predictor(), best);
  std::optional<LaneSet> parts;
  if (effort == Effort::kFull) parts = find_sections(&search.predictor(), plans_without_room(&search, effort, stop));
  const Predictor& predictor = search.predictor();
  const bool in_sections =
      parts && predictor.score(parts->predicted) >= kWorthSections * predictor.score(set.predicted);
  PlanReport report =
      in_sections ? report_of_sections(&search.predictor(), *parts) : report_of(&search.predictor(), set);
  const std::vector<size_t> used = devices_of(in_sections ? parts->lanes : set.lanes);
  add_alternatives(input, search.pool(), used, &report);
  if (!in_sections) add_left_out(&search, best, used, &report);
  if (effort == Effort::kFull) add_bound(&search.predictor(), &report);
  return report;
}

Result<PlanReport> report_on(const ModelShape& shape, const PlanInput& input, const PlanRequest& request,
                             const Placement& placement) {
  RETURN_IF_ERROR(check_plannable(shape, input, request));
  ASSIGN_OR_RETURN(std::vector<LaneOfSet> lanes, lanes_of(shape, input, placement));
  Predictor predictor(shape, input, request);
  LaneSetGiven given;
  for (size_t i = 0; i < lanes.size(); ++i) {
    const Lane& lane = placement.lanes[i];
    given.micro_batches.push_back(lane.micro_batches);
    if (lanes[i].pool < given.kv_tokens.size()) continue;
    PoolTokens& pool = given.kv_tokens.emplace_back();
    pool.first = uint64_t{lane.kv_blocks} * request.kv.block_size;
    for (const KvSection& section : lane.sections)
      pool.further.push_back(uint64_t{section.blocks} * request.kv.block_size);
  }
  const LaneSet set = evaluate_lanes(&predictor, std::move(lanes), given);
  if (!set.fits()) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "this placement needs {} bytes more than {} has", set.memory.missing_bytes,
                 input.devices[set.memory.short_device].name);
  }
  PlanReport report = report_of(&predictor, set);
  for (size_t i = 0; i < placement.lanes.size(); ++i) {
    Lane& lane = report.placement.lanes[i];
    lane.routes = placement.lanes[i].routes;
    if (placement.lanes[i].chunk_rows > 0) lane.chunk_rows = placement.lanes[i].chunk_rows;
    if (lane.micro_batches > 0 && placement.lanes[i].micro_batches > 0)
      lane.micro_batches = placement.lanes[i].micro_batches;
  }
  add_bound(&predictor, &report);
  for (const DeviceProfile& device : input.devices) {
    const bool used = std::any_of(report.devices.begin(), report.devices.end(),
                                  [&](const DeviceShare& share) { return share.device == device.name; });
    if (!used) report.left_out.push_back({device.name, "the plan that was given leaves it out"});
  }
  return report;
}

}  // namespace motley
