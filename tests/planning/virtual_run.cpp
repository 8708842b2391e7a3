#include "planning/virtual_run.hpp"

#include <algorithm>
#include <deque>
#include <random>

#include "base/check.hpp"
#include "engine/scheduler.hpp"
#include "planning/lanes_under_way.hpp"

namespace motley::testing {

PlanRequest request_of(const Load& load) {
  PlanRequest request;
  request.concurrency = load.concurrency;
  request.prompt_len = load.prompt_len;
  request.output_len = load.output_len;
  request.chunk_rows = std::min(load.step_rows, load.prompt_len);
  request.kv.block_size = kKvBlockSize;
  request.kv.dtype = MOTLEY_F32;
  request.kv.element_bytes = 4;
  return request;
}

VirtualRun::VirtualRun(const Model& model, const VirtualMachine& machine, const Placement& placement, uint32_t rows_max,
                       Trace* trace)
    : model_(model), machine_(machine), placement_(placement) {
  RuntimeOptions options;
  options.rows_max = rows_max;
  options.logit_rows_max = std::min(rows_max, 64u);
  options.virtual_time = true;
  options.virtual_link = machine.link();
  options.trace = trace;
  auto made = RuntimeExecutor::create(model, placement_, machine.devices().named(), options, now_);
  CHECK(made.ok(), "{}", made.error().message());
  executor_ = *std::move(made);
}

VirtualRun::~VirtualRun() = default;

int64_t VirtualRun::step_ns(const StepShape& shape) {
  const StepResult result = executor_->submit(step_plan(shape, placement_.epoch, ++last_step_)).take();
  CHECK(result.status.ok(), "{}", result.status.message());
  now_.ns += result.busy_ns;
  return result.busy_ns;
}

std::pair<int64_t, int64_t> VirtualRun::two_steps_ns(const StepShape& shape) {
  auto first = executor_->submit(step_plan(shape, placement_.epoch, ++last_step_));
  auto second = executor_->submit(step_plan(shape, placement_.epoch, ++last_step_));
  const StepResult one = first.take(), two = second.take();
  for (const StepResult* result : {&one, &two}) CHECK(result->status.ok(), "{}", result->status.message());
  now_.ns += one.busy_ns + two.busy_ns;
  return {one.busy_ns, two.busy_ns};
}

std::vector<DeviceUse> VirtualRun::uses() const {
  std::vector<DeviceUse> uses;
  for (const DriverReport& report : executor_->reports()) {
    DeviceUse use{report.device, 0, 0, report.weight_bytes, report.work.bytes_moved};
    const auto stats = machine_.devices().device(*machine_.devices().find(report.device)).stats();
    CHECK(stats.ok(), "{}", stats.error().message());
    use.busy_ns = static_cast<int64_t>(stats->busy_ns);
    use.programs = stats->programs;
    uses.push_back(std::move(use));
  }
  return uses;
}

int64_t VirtualRun::move_ns(const std::vector<KvMove>& moves) {
  std::vector<KvBlock> blocks;
  for (const KvMove& move : moves) blocks.push_back(move.from);
  auto saved = executor_->save_kv(std::move(blocks));
  CHECK(saved.ok(), "{}", saved.error().message());
  const int64_t saving_ns = saved->busy_ns;
  const auto loaded = executor_->load_kv(std::make_shared<const KvContents>(*std::move(saved)), moves);
  CHECK(loaded.ok(), "{}", loaded.error().message());
  return saving_ns + loaded->busy_ns;
}

Served VirtualRun::serve(const Load& load) {
  ExecutorDescription description = executor_->describe();
  // A device alone begins its next step when the host gets to it, which no virtual time tells: one at a time.
  for (LaneDescription& lane : description.lanes) lane.lookahead = 0;
  description.moves_kv = load.moves_kv;
  EngineOptions options;
  options.max_num_seqs = load.concurrency;
  options.max_num_batched_tokens = load.step_rows;
  options.max_model_len = load.prompt_len + load.output_len + load.spread;
  options.enable_prefix_caching = false;
  const auto config = resolve_config(description, options);
  CHECK(config.ok(), "{}", config.error().message());
  Served served;
  Scheduler scheduler(*config, [&](const Sequence&, RequestUpdate update) {
    CHECK(update.status.ok(), "{}", update.status.message());
    served.tokens += update.tokens.size();
  });
  std::mt19937 random(11);
  for (uint32_t r = 0; r < load.requests; ++r) {
    Request request;
    request.id = r + 1;
    for (uint32_t i = 0; i < load.prompt_len; ++i)
      request.prompt.push_back(kFirstToken + static_cast<TokenId>(random() % 200));
    request.params.temperature = 0;
    request.params.max_tokens = load.output_len - load.spread + static_cast<uint32_t>(random() % (2 * load.spread + 1));
    request.params.ignore_eos = true;
    request.on_update = [](RequestUpdate) {};
    CHECK(check_request(*config, request).ok());
    scheduler.add(std::move(request), now_.ns);
  }
  const std::vector<DeviceUse> before = uses();
  const int64_t began_ns = now_.ns;
  LanesUnderWay lanes(description.lanes.size(), now_.ns);
  std::deque<std::pair<RequestId, int64_t>> moves;  // from pool to pool, one behind the other, and when they have ended
  while (scheduler.unfinished() > 0 || !lanes.empty()) {
    while (auto plan = scheduler.plan_step(now_.ns)) {
      ++served.steps;
      served.rows += plan->tokens.size();
      const uint32_t lane = plan->lane;
      lanes.add(lane, executor_->submit(*std::move(plan)), now_.ns);
    }
    const int64_t first_ns = lanes.first_ns();  // what runs has run by now: then moves take their times
    for (const Transfer& each : scheduler.take_transfers()) {
      const int64_t begin_ns = moves.empty() ? now_.ns : moves.back().second;
      moves.emplace_back(each.id, begin_ns + move_ns(each.moves));
      served.moved_blocks += each.moves.size();
    }
    if (!moves.empty() && moves.front().second <= first_ns) {
      now_.ns = std::max(now_.ns, moves.front().second);
      scheduler.moved(moves.front().first, true);
      moves.pop_front();
      continue;
    }
    CHECK(!lanes.empty());
    auto [result, ended_ns] = lanes.take_first();
    CHECK(result.status.ok(), "{}", result.status.message());
    now_.ns = std::max(now_.ns, ended_ns);
    CHECK(scheduler.apply(std::move(result), now_.ns).ok());
  }
  served.ns = now_.ns - began_ns;
  served.recomputed = scheduler.counters().recomputed_tokens;
  served.devices = uses();
  for (size_t i = 0; i < before.size(); ++i) {
    served.devices[i].busy_ns -= before[i].busy_ns;
    served.devices[i].programs -= before[i].programs;
    served.devices[i].bytes_moved -= before[i].bytes_moved;
  }
  return served;
}

}  // namespace motley::testing
