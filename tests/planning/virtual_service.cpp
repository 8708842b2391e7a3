#include "planning/virtual_service.hpp"

#include <algorithm>
#include <random>
#include <utility>

#include "base/check.hpp"
#include "llm/steps_done.hpp"
#include "planner/planner_test_fleet.hpp"

namespace motley::testing {
namespace {

constexpr uint32_t kRowsMax = 128;

ModelShape shape_or_abort(const Model& model) {
  auto shape = shape_of(model);
  CHECK(shape.ok(), "{}", shape.error().message());
  return *std::move(shape);
}

}  // namespace

PlanInput renamed(PlanInput input, const VirtualMachine& from, const VirtualMachine& to) {
  const auto rename = [&](std::string* name) {
    for (size_t i = 0; i < from.size(); ++i) {
      if (*name == from.name(i)) {
        *name = to.name(i);
        return;
      }
    }
  };
  for (DeviceProfile& device : input.devices) rename(&device.name);
  for (LinkProfile& link : input.links) rename(&link.a), rename(&link.b);
  return input;
}

VirtualService::VirtualService(const Model& model, const VirtualMachine& machine, PlanInput measured, const Load& load,
                               int64_t start_ns)
    : model_(model),
      machine_(machine),
      shape_(shape_or_abort(model)),
      input_(std::move(measured)),
      load_(load),
      request_(request_of(load)),
      holdings_(std::make_shared<Holdings>(model)),
      law_(now_) {
  now_.ns = start_ns;
  auto first = plan(shape_, input_, request_);
  CHECK(first.ok(), "{}", first.error().message());
  placement_ = first->placement;
  executor_ = executor_of(placement_);
  take_models();
  options_.max_num_seqs = load.concurrency;
  options_.max_num_batched_tokens = load.step_rows;
  options_.max_model_len = load.prompt_len + load.output_len;
  options_.enable_prefix_caching = false;
  const auto config = resolve_config(description(), options_);
  CHECK(config.ok(), "{}", config.error().message());
  scheduler_ = std::make_unique<Scheduler>(
      *config, [this](const Sequence& sequence, RequestUpdate update) { hear(sequence, std::move(update)); });
}

VirtualService::~VirtualService() = default;

std::unique_ptr<RuntimeExecutor> VirtualService::executor_of(const Placement& placement) const {
  RuntimeOptions options;
  options.rows_max = kRowsMax;
  options.logit_rows_max = kRowsMax;
  options.virtual_time = true;
  options.virtual_link = machine_.link();
  options.holdings = holdings_;
  auto made = RuntimeExecutor::create(model_, placement, machine_.devices().named(), options, now_);
  CHECK(made.ok(), "{}", made.error().message());
  return *std::move(made);
}

// As VirtualRun: a device alone gets one step at a time.
ExecutorDescription VirtualService::description() const {
  ExecutorDescription description = executor_->describe();
  for (LaneDescription& lane : description.lanes) lane.lookahead = 0;
  description.moves_kv = false;  // from pool to pool: nobody here answers
  return description;
}

void VirtualService::take_models() {
  const size_t lanes = placement_.lanes.size();
  lanes_.emplace(lanes, now_.ns);
  models_.clear();
  for (size_t lane = 0; lane < lanes; ++lane) {
    auto models = busy_models(shape_, input_, placement_, lane, kRowsMax);
    CHECK(models.ok(), "{}", models.error().message());
    for (BusyModel& model : *models) {
      std::vector<BusyModel>& by_lane = models_[model.device];
      by_lane.resize(lanes);
      by_lane[lane] = std::move(model);
    }
  }
  law_.begin_anew();
}

// As many requests as are served at once; each of its own text and length, by its number alone.
void VirtualService::top_up() {
  while (scheduler_->unfinished() < load_.concurrency) {
    Request request;
    request.id = ++requests_;
    std::mt19937 random(static_cast<uint32_t>(request.id));
    for (uint32_t i = 0; i < load_.prompt_len; ++i)
      request.prompt.push_back(kFirstToken + static_cast<TokenId>(random() % 200));
    request.params.temperature = 0;
    request.params.logprobs = 2;
    request.params.max_tokens = load_.output_len - static_cast<uint32_t>(random() % (load_.output_len / 2));
    request.params.ignore_eos = true;
    request.on_update = [](const RequestUpdate&) {};
    scheduler_->add(std::move(request), now_.ns);
  }
}

void VirtualService::hear(const Sequence& sequence, RequestUpdate update) {
  failed_ += update.status.ok() ? 0 : 1;
  std::vector<SampledToken>& text = open_[sequence.id()];
  for (SampledToken& token : update.tokens) {
    text.push_back(std::move(token));
    token_times_ns_[sequence.id()].push_back(now_.ns);
  }
  if (!update.finished) return;
  ended_[sequence.id()] = std::move(text);
  open_.erase(sequence.id());
}

void VirtualService::run_until(int64_t ns) {
  while (now_.ns < ns) {
    top_up();
    const bool is_made = next_ && now_.ns >= next_->move.in_force_ns;
    if (is_made && !saved_at_ns_ && !stopped_at_ns_ && !scheduler_->some_come_late()) {
      if (still_better()) {
        save_ahead();
      } else {
        next_.reset();
      }
    }
    if (saved_at_ns_ && now_.ns >= *saved_at_ns_) {
      saved_at_ns_.reset();
      stopped_at_ns_ = now_.ns;
    }
    bring_late();
    if (!stopped_at_ns_) {
      while (auto step = scheduler_->plan_step(now_.ns)) {
        const uint32_t lane = step->lane;
        lanes_->add(lane, executor_->submit(*std::move(step)), now_.ns);
      }
    }
    if (lanes_->empty() && stopped_at_ns_) {
      take_over();
      continue;
    }
    if (lanes_->empty()) {  // all lack what is held, or is yet to come
      CHECK(saved_at_ns_ || coming_, "nothing to do");
      now_.ns = std::max(now_.ns, saved_at_ns_ ? *saved_at_ns_ : coming_->second);
      continue;
    }
    take_result();
    look();
  }
}

void VirtualService::take_result() {
  auto [result, ended_ns] = lanes_->take_first();
  CHECK(result.status.ok(), "{}", result.status.message());
  now_.ns = std::max(now_.ns, ended_ns);
  CHECK(scheduler_->apply(std::move(result), now_.ns).ok());
}

void VirtualService::look() {
  const std::vector<TotalsByDevice> totals = executor_->totals();
  for (const auto& [device, by_lane] : models_) {
    double predicted_ns = 0;
    for (size_t lane = 0; lane < by_lane.size(); ++lane) {
      const auto done = totals.at(lane).find(device);
      if (done != totals[lane].end()) predicted_ns += by_lane[lane].of(steps_done(done->second));
    }
    const auto stats = machine_.devices().device(*machine_.devices().find(device)).stats();
    CHECK(stats.ok(), "{}", stats.error().message());
    law_.observe(device, static_cast<double>(stats->busy_ns), predicted_ns);
  }
  if (next_) return;
  if (law_.measuring_due()) law_.measured(factors_of_others());
  if (!law_.due()) return;
  const auto better = better_plan(shape_, input_, request_, placement_, law_.factors());
  CHECK(better.ok(), "{}", better.error().message());
  if (!law_.judge(better->gain, better->cost)) return;
  Placement placement = better->report.placement;
  placement.epoch = placement_.epoch + 1;
  const uint64_t packed = holdings_->packed_bytes();
  auto executor = executor_of(placement);
  next_ = Next{better->report,
               std::move(placement),
               std::move(executor),
               {now_.ns, now_.ns + making_ns_ + static_cast<int64_t>(better->cost.prepare_ns), 0, better->gain, 0, 0}};
  next_->move.packed_bytes = holdings_->packed_bytes() - packed;
}

// As it is now that the next plan is prepared.
bool VirtualService::still_better() {
  if (!law_.judged_long_ago()) return true;
  const auto again = weigh_again(shape_, input_, request_, placement_, next_->report, law_.factors());
  CHECK(again.ok(), "{}", again.error().message());
  return law_.judge(again->gain, again->cost);
}

// Of devices that the plan leaves out. What measuring them takes is not counted.
DriftFactors VirtualService::factors_of_others() const {
  MeasureOptions options;
  options.rows_max = options.step_rows_max = kRowsMax;
  options.kv_dtype = MOTLEY_F32;
  options.virtual_time = true;
  options.virtual_link = machine_.link();
  options.virtual_ns = now_.ns;
  DriftFactors factors;
  for (const MeasuredDevice& device : machine_.devices().measured()) {
    const std::string& name = device.description.name;
    const DeviceProfile* known = find_profile(input_, name);
    if (known == nullptr || models_.contains(name)) continue;
    const auto factor = measure_slowdown(model_, device, *known, options);
    CHECK(factor.ok(), "{}", factor.error().message());
    factors.emplace(name, *factor);
  }
  return factors;
}

// As the engine does.
void VirtualService::save_ahead() {
  saved_.clear();
  saved_at_ns_ = now_.ns;
  const std::vector<KvBlock> blocks = scheduler_->hold_written(next_->executor->describe().pools);
  if (blocks.empty()) return;
  auto saved = executor_->save_kv(blocks);
  CHECK(saved.ok(), "{}", saved.error().message());
  *saved_at_ns_ += saved->busy_ns;
  saved_.push_back(std::make_shared<const KvContents>(*std::move(saved)));
}

void VirtualService::bring_late() {
  if (coming_ && now_.ns >= coming_->second) scheduler_->moved(std::exchange(coming_, std::nullopt)->first, true);
  if (coming_) return;
  for (const Transfer& one : scheduler_->take_transfers()) {
    CHECK(one.comes_late, "request {} moves from pool to pool", one.id);
    const auto loaded = load(*executor_, saved_, one.moves);
    CHECK(loaded.ok(), "{}", loaded.error().message());
    coming_ = {one.id, now_.ns + loaded->busy_ns};
  }
}

void VirtualService::take_over() {
  Next next = *std::exchange(next_, std::nullopt);
  auto saved = executor_->save_kv(scheduler_->blocks_to_save(next.executor->describe().pools, blocks_of(saved_)));
  CHECK(saved.ok(), "{}", saved.error().message());
  now_.ns += saved->busy_ns;
  saved_.push_back(std::make_shared<const KvContents>(*std::move(saved)));
  placement_ = std::move(next.placement);
  executor_ = std::move(next.executor);
  const auto config = resolve_replacement(description(), options_);
  CHECK(config.ok(), "{}", config.error().message());
  const Scheduler::CarriedOn carried =
      scheduler_->carry_on(*config, blocks_of(saved_), blocks_at_once(saved_, kKvPauseNs));
  next.move.blocks = carried.moves.size();
  next.move.computed_again = carried.lost;
  const auto loaded = load(*executor_, saved_, carried.moves);
  CHECK(loaded.ok(), "{}", loaded.error().message());
  now_.ns += loaded->busy_ns;
  take_models();
  law_.moved();
  next.move.pause_ns = now_.ns - *std::exchange(stopped_at_ns_, std::nullopt);
  next.move.in_force_ns = now_.ns;
  moves_.push_back(next.move);
}

double VirtualService::tokens_per_s(int64_t begin_ns, int64_t end_ns) const {
  double tokens = 0;
  for (const auto& [id, times] : token_times_ns_) {
    tokens += static_cast<double>(
        std::count_if(times.begin(), times.end(), [&](int64_t at) { return at >= begin_ns && at < end_ns; }));
  }
  return tokens * 1e9 / static_cast<double>(end_ns - begin_ns);
}

std::vector<int64_t> VirtualService::gaps_if(const std::function<bool(int64_t, int64_t)>& wanted) const {
  std::vector<int64_t> gaps;
  for (const auto& [id, times] : token_times_ns_) {
    for (size_t i = 1; i < times.size(); ++i)
      if (wanted(times[i - 1], times[i])) gaps.push_back(times[i] - times[i - 1]);
  }
  std::sort(gaps.begin(), gaps.end());
  return gaps;
}

std::vector<int64_t> VirtualService::gaps_over_moves_ns() const {
  return gaps_if([&](int64_t from_ns, int64_t to_ns) {
    return std::any_of(moves_.begin(), moves_.end(), [&](const ServiceMove& move) {
      return from_ns <= move.in_force_ns && to_ns > move.in_force_ns;
    });
  });
}

std::vector<int64_t> VirtualService::gaps_ns(int64_t begin_ns, int64_t end_ns) const {
  return gaps_if([&](int64_t, int64_t to_ns) { return to_ns >= begin_ns && to_ns < end_ns; });
}

}  // namespace motley::testing
