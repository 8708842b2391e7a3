// Random loads on random devices: whatever runs beside a request, it gets the tokens that it would get alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "engine/testing/scheduler_bench.hpp"

namespace motley {
namespace {

using testing::random_text;
using testing::SchedulerBench;
using testing::ScriptedOptions;

struct Workload {
  ScriptedOptions device;
  EngineOptions options;
  uint32_t requests = 0;
  double abort_share = 0, fail_share = 0, loss_share = 0;
  double replace_share = 0;  // by plan, KV and all
};

Workload random_workload(std::mt19937& random) {
  const auto pick = [&](uint32_t low, uint32_t high) {
    return low + static_cast<uint32_t>(random() % (high - low + 1));
  };
  Workload w;
  w.device.block_size = 1u << pick(0, 3);
  w.device.blocks = pick(3, 10) * pick(1, 8);
  w.device.vocab_size = pick(4, 60);
  w.device.positions_max = pick(16, 120);
  w.device.lookahead = pick(0, 2);
  w.device.pipeline = pick(0, 3) == 0 ? 2 : 1;
  w.device.slots = pick(0, 64);
  w.device.rows_max = pick(8, 160);
  if (pick(0, 1) == 1)
    w.device.cost = {.fixed_ns = 1e6, .per_row_ns = 1e3 * pick(1, 30000), .per_context_ns = pick(0, 100) * 1.0};
  w.device.busy_ns = pick(0, 1) * 1000000 * static_cast<int64_t>(pick(1, 300));
  w.options.max_num_seqs = pick(1, 12);
  w.options.max_concurrent_prefills = pick(1, 4);
  w.options.enable_prefix_caching = pick(0, 3) != 0;
  w.options.enable_chunked_prefill = pick(0, 3) != 0;
  w.options.policy = pick(0, 1) == 0 ? SchedulingPolicy::kFcfs : SchedulingPolicy::kPriority;
  const uint32_t length = std::min(w.device.positions_max, w.device.blocks * w.device.block_size);
  if (!w.options.enable_chunked_prefill)
    w.device.rows_max = std::max(w.device.rows_max, length);
  else if (pick(0, 1) == 0)
    w.options.max_num_batched_tokens = pick(1, w.device.rows_max);
  w.requests = pick(1, 24);
  w.abort_share = pick(0, 2) == 0 ? 0.05 : 0;
  w.fail_share = pick(0, 4) == 0 ? 0.05 : 0;
  w.loss_share = pick(0, 3) == 0 ? 0.03 : 0;
  return w;
}

Request random_request(std::mt19937& random, const SchedulerBench& bench, uint32_t vocab_size) {
  const auto pick = [&](uint32_t low, uint32_t high) {
    return low + static_cast<uint32_t>(random() % (high - low + 1));
  };
  const uint32_t longest = bench.config().options.max_model_len - 1;
  const uint32_t length = pick(0, 3) == 0 ? longest : pick(1, longest);
  // Few texts, so that prefixes are shared; some differ after a while.
  std::vector<TokenId> prompt = random_text(pick(0, 2), length, vocab_size);
  if (pick(0, 1) == 0) prompt[pick(0, length - 1)] = 0;
  Request r = bench.request(std::move(prompt), pick(1, 40));
  TokenSampling& p = r.params;
  p.seed = pick(0, 1);
  if (pick(0, 2) == 0) p.presence_penalty = 0.5f;
  if (pick(0, 5) == 0) p.repetition_penalty = 1.1f;
  if (pick(0, 2) == 0) r.end_tokens = {0, 1};
  if (pick(0, 3) == 0) p.stop_token_ids = {2};
  if (pick(0, 3) == 0) p.min_tokens = pick(0, p.max_tokens);
  if (pick(0, 3) == 0) p.logit_bias = {{3, -INFINITY}, {1, 2.0f}};
  p.ignore_eos = pick(0, 4) == 0;
  r.priority = static_cast<int32_t>(pick(0, 2)) - 1;
  r.use_prefix_cache = pick(0, 5) != 0;
  return r;
}

struct Totals {
  uint64_t preemptions = 0, hits = 0, failed = 0, aborted = 0, stopped = 0, losses = 0, no_room = 0;
  uint64_t overlaps = 0, changed_pool = 0, carried_on = 0, moved = 0, transferred = 0, came_late = 0;
  uint64_t came_meanwhile = 0, ended_meanwhile = 0;  // while an executor took over by plan
};

// A pool of its own with one lane, or with two by their roles.
void add_pool(std::mt19937& random, ScriptedOptions& device) {
  const auto pick = [&](uint32_t low, uint32_t high) {
    return low + static_cast<uint32_t>(random() % (high - low + 1));
  };
  const std::vector<std::vector<LaneRole>> roles = {{LaneRole::kBoth},
                                                    {LaneRole::kPrefill, LaneRole::kDecode},
                                                    {LaneRole::kBoth, LaneRole::kPrefill},
                                                    {LaneRole::kDecode, LaneRole::kBoth},
                                                    {LaneRole::kBoth, LaneRole::kBoth}};
  const auto pool = static_cast<uint32_t>(device.pools.size());
  KvPoolDescription& made = device.pools.emplace_back();
  made.block_size = 1u << pick(0, 3), made.blocks = pick(3, 10) * pick(1, 6);
  if (pick(0, 3) == 0) made.section_begins = {pick(1, made.blocks - 1)};
  const size_t choice = device.lanes.size() >= 3 ? 0 : random() % roles.size();
  for (const LaneRole role : roles[choice]) {
    LaneDescription lane;
    lane.pool = pool;
    lane.role = role;
    lane.rows_max = pick(8, 160);
    lane.lookahead = pick(0, 2);
    lane.pipeline = pick(0, 3) == 0 ? 2 : 1;
    lane.chunk_rows = pick(0, 3) == 0 ? pick(1, 16) : 0;
    if (pick(0, 1) == 1)
      lane.cost = {.fixed_ns = 1e6, .per_row_ns = 1e3 * pick(1, 30000), .per_context_ns = pick(0, 100) * 1.0};
    device.lanes.push_back(lane);
  }
}

// 1 to 4 lanes over 1 to 3 pools, in any order; prompts of `length` fit into a step if they must.
void make_lanes(std::mt19937& random, ScriptedOptions& device, bool chunked) {
  device.pools.clear();
  device.lanes.clear();
  for (size_t pools = 1 + random() % 3; pools > 0 && device.lanes.size() < 4; --pools) add_pool(random, device);
  std::shuffle(device.lanes.begin(), device.lanes.end(), random);
  for (LaneDescription& lane : device.lanes) {
    if (!chunked) lane.rows_max = std::max(lane.rows_max, device.positions_max);
    if (random() % 3 != 0) continue;
    for (uint32_t rows = 1 + static_cast<uint32_t>(random() % 16); rows < lane.rows_max;
         rows += 1 + static_cast<uint32_t>(random() % 64))
      lane.buckets.push_back(rows);
    lane.buckets.push_back(lane.rows_max);
  }
}

Workload random_lanes(std::mt19937& random) {
  Workload w = random_workload(random);
  make_lanes(random, w.device, w.options.enable_chunked_prefill);
  if (w.options.max_num_batched_tokens > 0) {
    uint32_t rows = 0;
    for (const LaneDescription& lane : w.device.lanes) rows = std::max(rows, lane.rows_max);
    w.options.max_num_batched_tokens = 1 + static_cast<uint32_t>(random() % rows);
  }
  return w;
}

// What takes over from `device`: as large, or smaller.
ScriptedOptions random_successor(std::mt19937& random, ScriptedOptions device, const EngineOptions& options) {
  const auto shrunk = [&](uint32_t value, uint32_t least) {
    return random() % 2 == 0 ? value : std::max(least, value * static_cast<uint32_t>(4 + random() % 7) / 10);
  };
  if (!device.lanes.empty()) {
    make_lanes(random, device, options.enable_chunked_prefill);
    return device;
  }
  device.blocks = shrunk(device.blocks, 3);
  device.positions_max = shrunk(device.positions_max, 3);
  device.slots = shrunk(device.slots, 0);
  if (options.enable_chunked_prefill) device.rows_max = shrunk(device.rows_max, 3);
  device.lookahead = random() % 3;
  return device;
}

// One that takes over by plan: some of the pools are those of the one before, in its memory; blocks may not all be
// saved.
ScriptedOptions random_next(std::mt19937& random, const ScriptedOptions& device, const EngineOptions& options) {
  ScriptedOptions next = random_successor(random, device, options);
  static uint64_t memory = 0;
  for (KvPoolDescription& pool : next.pools) {
    if (random() % 4 != 0) pool.block_size = device.pools.front().block_size;  // as moving needs
    pool.memory = {++memory};
    const KvPoolDescription& before = device.pools[random() % device.pools.size()];
    const bool taken = std::any_of(next.pools.begin(), next.pools.end(),
                                   [&](const KvPoolDescription& each) { return each.memory == before.memory; });
    if (random() % 3 == 0 && !taken) pool = before;
  }
  next.saved_blocks_max = random() % 4 == 0 ? random() % 20 : SIZE_MAX;
  return next;
}

Workload random_moves(std::mt19937& random) {
  Workload w = random_lanes(random);
  w.device.moves_kv = true;
  const bool alike = random() % 4 != 0;  // as moving from pool to pool needs
  for (KvPoolDescription& pool : w.device.pools)
    if (alike) pool.block_size = w.device.pools.front().block_size;
  w.replace_share = 0.04;
  return w;
}

void add_to(Totals& totals, SchedulerBench& bench, const Workload& w, bool replaced) {
  totals.preemptions += bench.scheduler().counters().preemptions;
  totals.hits += bench.scheduler().counters().prefix_hits;
  totals.overlaps += bench.overlaps();
  totals.carried_on += bench.carried_on();
  totals.moved += bench.moved();
  totals.transferred += bench.transferred();
  totals.came_late += bench.came_late();
  for (const auto& [id, story] : bench.stories()) {
    totals.changed_pool += story.pools.size() > 1 ? 1 : 0;
    const bool no_room = story.last.status.code() == MOTLEY_RESOURCE_EXHAUSTED;
    if (no_room) {
      EXPECT_TRUE(replaced);
      ++totals.no_room;
      continue;
    }
    if (story.finished == FinishReason::kError) ++totals.failed;
    if (story.finished == FinishReason::kAborted) ++totals.aborted;
    if (story.finished == FinishReason::kStop) ++totals.stopped;
    if (story.finished == FinishReason::kError) {
      EXPECT_GT(w.fail_share, 0);
    }
    if (story.finished == FinishReason::kAborted) {
      EXPECT_GT(w.abort_share, 0);
    }
  }
}

void run_workload(uint32_t seed, Workload (*make)(std::mt19937&), Totals& totals) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  const Workload w = make(random);
  SchedulerBench bench(w.device, w.options);
  if (::testing::Test::HasFailure()) return;
  uint64_t work = 0, losses = 0;
  const auto chance = [&](double share) { return static_cast<double>(random() % 10000) < share * 10000; };
  uint32_t left = w.requests;
  const auto requests_come_and_end = [&](double add_share) {
    if (left > 0 && chance(add_share)) {
      const Request r = random_request(random, bench, w.device.vocab_size);
      work += r.prompt.size() + r.params.max_tokens;
      bench.add(r);
      --left;
    }
    if (chance(w.abort_share)) bench.scheduler().end(random() % w.requests + 1, FinishReason::kAborted);
  };
  while (left > 0 || bench.scheduler().steps_in_flight() > 0) {
    requests_come_and_end(0.3);
    if (chance(w.loss_share)) {
      ++losses;
      bench.lose(random_successor(random, bench.device(), w.options), [&] {
        if (chance(w.abort_share)) bench.scheduler().end(random() % w.requests + 1, FinishReason::kAborted);
      });
    }
    if (chance(w.replace_share)) {
      ++losses;
      const SchedulerBench::Carry carry = {.loading_fails = chance(0.1),
                                           .steps_ahead = chance(0.5) ? static_cast<int>(1 + random() % 6) : 0,
                                           .at_once = chance(0.5) ? 1 + random() % 20 : SIZE_MAX};
      bench.replace(random_next(random, bench.device(), w.options), carry, [&] {
        const uint32_t unfinished = bench.scheduler().unfinished(), before = left;
        requests_come_and_end(0.1);
        totals.came_meanwhile += before - left;
        totals.ended_meanwhile += unfinished + before - left - bench.scheduler().unfinished();
      });
    }
    if (chance(0.3)) bench.transfer(random(), chance(0.1));
    if (chance(w.fail_share)) bench.executor().fail_next(Status(MOTLEY_INTERNAL, "scripted"));
    if (chance(0.6)) bench.plan();
    if (chance(0.5)) {
      const size_t lanes = bench.config().lanes.size();
      if (lanes == 1 || !bench.result(static_cast<uint32_t>(random() % lanes))) bench.result();
    }
  }
  // Every step of its lanes moves the request of highest rank on by a row at least, and what a preemption costs is
  // bounded by it; it outgrows every pool but the largest once.
  const uint64_t pools = std::max<size_t>(w.device.pools.size(), 1);
  ASSERT_TRUE(bench.finish(4 * work * (1 + losses) * pools + 100)) << "no end after " << bench.steps() << " steps";
  bench.expect_all_right();
  totals.losses += losses;
  add_to(totals, bench, w, losses > 0);
}

#ifdef MOTLEY_SANITIZED
constexpr uint32_t kWorkloads = 400;  // an instrumented run is ten times slower
#else
constexpr uint32_t kWorkloads = 2000;
#endif

void expect_reached(const Totals& totals) {
  EXPECT_GT(totals.preemptions, kWorkloads / 2u);
  EXPECT_GT(totals.hits, kWorkloads * 5u);
  EXPECT_GT(totals.failed, kWorkloads / 40u);
  EXPECT_GT(totals.aborted, kWorkloads / 20u);
  EXPECT_GT(totals.stopped, kWorkloads / 2u);
  EXPECT_GT(totals.losses, kWorkloads / 4u);
  EXPECT_GT(totals.no_room, kWorkloads / 10u);
}

TEST(SchedulerProperty, RandomWorkloads_EveryRequestGetsTheTokensItWouldGetAlone) {
  Totals totals;
  for (uint32_t seed = 1; seed <= kWorkloads && !HasFailure(); ++seed) run_workload(seed, random_workload, totals);
  expect_reached(totals);
}

TEST(SchedulerProperty, RandomLanesAndPools_EveryRequestGetsTheTokensItWouldGetAlone) {
  Totals totals;
  for (uint32_t seed = 1; seed <= kWorkloads && !HasFailure(); ++seed) run_workload(seed, random_lanes, totals);
  expect_reached(totals);
  EXPECT_GT(totals.overlaps, kWorkloads * 5u);
  EXPECT_GT(totals.changed_pool, kWorkloads / 4u);
}

TEST(SchedulerProperty, ExecutorsReplacedWithTheirKv_EveryRequestGetsTheTokensItWouldGetAlone) {
  Totals totals;
  for (uint32_t seed = 1; seed <= kWorkloads && !HasFailure(); ++seed) run_workload(seed, random_moves, totals);
  EXPECT_GT(totals.carried_on, kWorkloads * 1u);
  EXPECT_GT(totals.moved, kWorkloads * 5u);
  EXPECT_GT(totals.transferred, kWorkloads / 10u);
  EXPECT_GT(totals.came_late, kWorkloads / 10u);
  EXPECT_GT(totals.came_meanwhile, kWorkloads / 10u);
  EXPECT_GT(totals.ended_meanwhile, kWorkloads / 40u);
  EXPECT_GT(totals.hits, kWorkloads * 5u);
}

}  // namespace
}  // namespace motley
