#include "engine/scheduler.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>

#include "engine/testing/scripted_executor.hpp"

namespace motley {
namespace {

using testing::ScriptedExecutor;
using testing::ScriptedOptions;

constexpr int64_t kNow = 1;

std::vector<TokenId> text_of(uint32_t seed, uint32_t length, uint32_t vocab_size) {
  std::mt19937 random(seed);
  std::vector<TokenId> text(length);
  for (TokenId& token : text) token = static_cast<TokenId>(random() % vocab_size);
  return text;
}

// What `request` gets when it runs alone: straight from the script, without scheduler or executor.
std::vector<TokenId> tokens_alone(const Request& request, uint32_t max_model_len, uint32_t vocab_size) {
  const TokenSampling& p = request.params;
  const auto ends = [&](TokenId id, bool with_eos) {
    const auto among = [&](const std::vector<TokenId>& ids) { return std::count(ids.begin(), ids.end(), id) > 0; };
    return (with_eos && among(request.end_tokens)) || among(p.stop_token_ids);
  };
  std::vector<TokenId> text = request.prompt;
  std::vector<TokenId> output;
  while (output.size() < p.max_tokens && text.size() < max_model_len) {
    motley_sample_row row{};
    row.seed = p.seed;
    row.choice = p.choice;
    const auto banned = [&](TokenId id) {
      for (const motley_token_bias& bias : p.logit_bias)
        if (bias.id == id && bias.bias == -INFINITY) return true;
      return output.size() < p.min_tokens && ends(id, true);
    };
    const TokenId token = ScriptedExecutor::hashed_choice(text, row, vocab_size, banned);
    text.push_back(token);
    output.push_back(token);
    if (ends(token, !p.ignore_eos)) break;
  }
  return output;
}

// A scheduler, a scripted executor run by hand, and what every request heard.
class Bench {
 public:
  Bench(ScriptedOptions device, const EngineOptions& options)
      : device_((device.manual = true, device)),
        options_(options),
        executor_(std::make_unique<ScriptedExecutor>(device_)) {
    auto config = resolve_config(executor_->describe(), options);
    EXPECT_TRUE(config.ok()) << config.error().to_string();
    config_ = *config;
    scheduler_ =
        std::make_unique<Scheduler>(config_, [this](const Sequence& s, RequestUpdate u) { hear(s, std::move(u)); });
  }

  struct Story {
    Request asked;
    std::vector<TokenId> alone, tokens;
    std::optional<FinishReason> finished;
    RequestUpdate last;
  };

  Request request(std::vector<TokenId> prompt, uint32_t max_tokens) const {
    Request r;
    r.prompt = std::move(prompt);
    r.params.max_tokens = max_tokens;
    r.on_update = [](const RequestUpdate&) {};
    return r;
  }
  RequestId add(Request request) {
    request.id = ++last_id_;
    const Status status = check_request(config_, request);
    EXPECT_TRUE(status.ok()) << status.to_string();
    stories_[request.id] = {.asked = request,
                            .alone = tokens_alone(request, config_.options.max_model_len, device_.vocab_size),
                            .tokens = {},
                            .finished = {},
                            .last = {}};
    scheduler_->add(std::move(request), kNow);
    return last_id_;
  }
  bool plan() {
    auto plan = scheduler_->plan_step(kNow);
    if (!plan) return false;
    check(*plan);
    last_plan_ = *plan;
    ++steps_;
    futures_.push_back(executor_->submit(std::move(*plan)));
    return true;
  }
  bool result() {
    if (!executor_->run_next()) return false;
    StepResult result = futures_.front().take();
    futures_.pop_front();
    const Status status = scheduler_->apply(std::move(result), kNow);
    EXPECT_TRUE(status.ok()) << status.to_string();
    return true;
  }
  // The device is lost: what is under way comes back, `meanwhile` is called after each step, and `next` takes over.
  void lose(ScriptedOptions next, const std::function<void()>& meanwhile) {
    executor_->lose(Status(MOTLEY_UNAVAILABLE, "scripted"));
    while (executor_->run_next()) {
      const Status status = scheduler_->discard(futures_.front().take());
      EXPECT_TRUE(status.ok()) << status.to_string();
      futures_.pop_front();
      meanwhile();
    }
    EXPECT_THAT(executor_->violations(), ::testing::IsEmpty());
    next.manual = true;
    next.epoch = device_.epoch + 1;
    device_ = next;
    executor_ = std::make_unique<ScriptedExecutor>(device_);
    auto config = resolve_replacement(executor_->describe(), options_);
    ASSERT_TRUE(config.ok()) << config.error().to_string();
    config_ = *config;
    length_min_ = std::min(length_min_, config_.options.max_model_len);
    computed_again_ = scheduler_->restart(config_);
    EXPECT_EQ(scheduler_->running(), 0u);
    EXPECT_EQ(scheduler_->pool().free_count(), device_.blocks);
  }
  // Steps with full lookahead until nothing is left. False: no end in sight.
  bool finish(uint64_t steps_max) {
    const uint64_t until = steps_ + steps_max;
    while (scheduler_->unfinished() > 0 || scheduler_->steps_in_flight() > 0) {
      while (plan()) {
      }
      if (!result() || steps_ > until) return false;
    }
    return true;
  }
  void expect_all_right() {
    EXPECT_THAT(executor_->violations(), ::testing::IsEmpty());
    EXPECT_EQ(scheduler_->pool().free_count(), scheduler_->pool().size());
    EXPECT_EQ(scheduler_->running() + scheduler_->waiting(), 0u);
    for (const auto& [id, story] : stories_) {
      ASSERT_TRUE(story.finished.has_value()) << "request " << id;
      const bool whole = story.finished == FinishReason::kStop || story.finished == FinishReason::kLength;
      ASSERT_LE(story.tokens.size(), story.alone.size());
      const std::vector<TokenId> prefix(story.alone.begin(),
                                        story.alone.begin() + static_cast<ptrdiff_t>(story.tokens.size()));
      EXPECT_EQ(story.tokens, prefix) << "request " << id;
      if (whole) {
        EXPECT_EQ(story.tokens.size(), story.alone.size()) << "request " << id;
      }
      if (story.last.status.code() == MOTLEY_RESOURCE_EXHAUSTED) {
        EXPECT_GT(story.asked.prompt.size() + story.alone.size(), length_min_) << "request " << id;
      }
    }
  }

  ScriptedExecutor& executor() { return *executor_; }
  const ScriptedOptions& device() const { return device_; }
  Scheduler& scheduler() { return *scheduler_; }
  const SchedulerConfig& config() const { return config_; }
  std::map<RequestId, Story>& stories() { return stories_; }
  const StepPlan& last_plan() const { return last_plan_; }
  uint64_t steps() const { return steps_; }
  uint64_t computed_again() const { return computed_again_; }
  uint32_t rows_of(RequestId id) const {
    for (const PlanSequence& part : last_plan_.sequences)
      if (part.sequence == id) return part.row_count;
    return 0;
  }

 private:
  void hear(const Sequence& sequence, RequestUpdate update) {
    Story& story = stories_[sequence.id()];
    EXPECT_FALSE(story.finished.has_value()) << "an update of request " << sequence.id() << " after its last";
    EXPECT_TRUE(!update.tokens.empty() || update.finished.has_value());
    for (const SampledToken& token : update.tokens) story.tokens.push_back(token.id);
    story.finished = update.finished;
    story.last = std::move(update);
  }
  // What the executor cannot know: row kinds, and the bounds of the options.
  void check(const StepPlan& plan) {
    uint32_t longs = 0;
    for (const PlanSequence& part : plan.sequences) {
      const Request& asked = stories_.at(part.sequence).asked;
      bool prompt_rows = false;
      for (uint32_t r = part.row_begin; r < part.row_begin + part.row_count; ++r) {
        const bool generated = static_cast<size_t>(plan.positions[r]) >= asked.prompt.size();
        EXPECT_EQ(plan.generated[r] != 0, generated);
        prompt_rows |= !generated;
      }
      const size_t known = asked.prompt.size() + stories_.at(part.sequence).tokens.size();
      longs += prompt_rows && known - (part.context - part.row_count) > scheduler_->short_rows() ? 1 : 0;
      if (part.logits_count > 0) {
        EXPECT_LT(plan.samples[part.logits_begin].position, asked.prompt.size() + asked.params.max_tokens);
      }
    }
    EXPECT_LE(longs, config_.options.max_concurrent_prefills);
    EXPECT_LE(plan.sequences.size(), config_.options.max_num_seqs);
    if (!config_.chosen_budget) {
      EXPECT_LE(plan.tokens.size(), config_.options.max_num_batched_tokens);
    }
  }

  uint64_t computed_again_ = 0;
  ScriptedOptions device_;
  const EngineOptions options_;
  std::unique_ptr<ScriptedExecutor> executor_;
  uint32_t length_min_ = UINT32_MAX;  // longest sequence of the smallest device so far
  SchedulerConfig config_;
  std::unique_ptr<Scheduler> scheduler_;
  std::deque<Future<StepResult>> futures_;
  std::map<RequestId, Story> stories_;
  StepPlan last_plan_;
  RequestId last_id_ = 0;
  uint64_t steps_ = 0;
};

// ---- random workloads

struct Workload {
  ScriptedOptions device;
  EngineOptions options;
  uint32_t requests = 0;
  double abort_share = 0, fail_share = 0, loss_share = 0;
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

Request random_request(std::mt19937& random, const Bench& bench, uint32_t vocab_size) {
  const auto pick = [&](uint32_t low, uint32_t high) {
    return low + static_cast<uint32_t>(random() % (high - low + 1));
  };
  const uint32_t longest = bench.config().options.max_model_len - 1;
  const uint32_t length = pick(0, 3) == 0 ? longest : pick(1, longest);
  // Few texts, so that prefixes are shared; some differ after a while.
  std::vector<TokenId> prompt = text_of(pick(0, 2), length, vocab_size);
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
};

// What takes over from `device`: as large, or smaller.
ScriptedOptions random_successor(std::mt19937& random, ScriptedOptions device, const EngineOptions& options) {
  const auto shrunk = [&](uint32_t value, uint32_t least) {
    return random() % 2 == 0 ? value : std::max(least, value * static_cast<uint32_t>(4 + random() % 7) / 10);
  };
  device.blocks = shrunk(device.blocks, 3);
  device.positions_max = shrunk(device.positions_max, 3);
  device.slots = shrunk(device.slots, 0);
  if (options.enable_chunked_prefill) device.rows_max = shrunk(device.rows_max, 3);
  device.lookahead = random() % 3;
  return device;
}

void run_workload(uint32_t seed, Totals& totals) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  const Workload w = random_workload(random);
  Bench bench(w.device, w.options);
  if (::testing::Test::HasFailure()) return;
  uint64_t work = 0, losses = 0;
  const auto chance = [&](double share) { return static_cast<double>(random() % 10000) < share * 10000; };
  uint32_t left = w.requests;
  while (left > 0 || bench.scheduler().steps_in_flight() > 0) {
    if (left > 0 && chance(0.3)) {
      const Request r = random_request(random, bench, w.device.vocab_size);
      work += r.prompt.size() + r.params.max_tokens;
      bench.add(r);
      --left;
    }
    if (chance(w.abort_share)) bench.scheduler().end(random() % w.requests + 1, FinishReason::kAborted);
    if (chance(w.loss_share)) {
      ++losses;
      bench.lose(random_successor(random, bench.device(), w.options), [&] {
        if (chance(w.abort_share)) bench.scheduler().end(random() % w.requests + 1, FinishReason::kAborted);
      });
    }
    if (chance(w.fail_share)) bench.executor().fail_next(Status(MOTLEY_INTERNAL, "scripted"));
    if (chance(0.6)) bench.plan();
    if (chance(0.5)) bench.result();
  }
  // Every step moves the request of highest rank on by a row at least, and what a preemption costs is bounded by it.
  ASSERT_TRUE(bench.finish(4 * work * (1 + losses) + 100)) << "no end after " << bench.steps() << " steps";
  bench.expect_all_right();
  totals.preemptions += bench.scheduler().counters().preemptions;
  totals.hits += bench.scheduler().counters().prefix_hits;
  totals.losses += losses;
  for (const auto& [id, story] : bench.stories()) {
    const bool no_room = story.last.status.code() == MOTLEY_RESOURCE_EXHAUSTED;
    if (no_room) {
      EXPECT_GT(losses, 0u);
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

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr uint32_t kWorkloads = 400;  // an instrumented run is ten times slower
#else
constexpr uint32_t kWorkloads = 2000;
#endif

TEST(SchedulerProperty, RandomWorkloads_EveryRequestGetsTheTokensItWouldGetAlone) {
  Totals totals;
  for (uint32_t seed = 1; seed <= kWorkloads && !HasFailure(); ++seed) run_workload(seed, totals);
  // The workloads must reach what they are about.
  EXPECT_GT(totals.preemptions, kWorkloads / 2u);
  EXPECT_GT(totals.hits, kWorkloads * 5u);
  EXPECT_GT(totals.failed, kWorkloads / 40u);
  EXPECT_GT(totals.aborted, kWorkloads / 20u);
  EXPECT_GT(totals.stopped, kWorkloads / 2u);
  EXPECT_GT(totals.losses, kWorkloads / 4u);
  EXPECT_GT(totals.no_room, kWorkloads / 10u);
}

// ---- single decisions

constexpr uint32_t kVocab = 1000;

TEST(Scheduler, ChoicesOfOnePrompt_ComputeItOnce) {
  Bench bench({}, {});
  for (uint32_t choice = 0; choice < 8; ++choice) {
    Request r = bench.request(text_of(1, 40, kVocab), 2);
    r.params.choice = choice;
    bench.add(r);
  }
  ASSERT_TRUE(bench.finish(100));
  bench.expect_all_right();
  // 40 rows once; the seven others share nine full blocks and compute four rows; each needs one more row, and one may
  // be planned in vain.
  EXPECT_LE(bench.executor().rows_run(), 40u + 7 * 4 + 8 * 2);
  EXPECT_EQ(bench.stories()[8].last.cached_tokens, 36u);
}

TEST(Scheduler, WholePromptInCache_StillComputesItsLastToken) {
  Bench bench({.block_size = 4}, {});
  bench.add(bench.request(text_of(1, 8, kVocab), 1));
  ASSERT_TRUE(bench.finish(10));
  const RequestId second = bench.add(bench.request(text_of(1, 8, kVocab), 1));
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.rows_of(second), 4u);
  ASSERT_TRUE(bench.finish(10));
  bench.expect_all_right();
}

TEST(Scheduler, LongPrompt_DoesNotHoldUpAShortOne) {
  Bench bench({}, {.max_num_batched_tokens = 32});
  const RequestId longer = bench.add(bench.request(text_of(1, 300, kVocab), 2));
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.rows_of(longer), 32u);
  const RequestId shorter = bench.add(bench.request(text_of(2, 10, kVocab), 2));
  ASSERT_TRUE(bench.result());
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.rows_of(shorter), 10u);
  EXPECT_EQ(bench.rows_of(longer), 22u);
  ASSERT_TRUE(bench.finish(100));
  bench.expect_all_right();
}

TEST(Scheduler, ManyLongPrompts_DoNotHoldUpAShortOne) {
  ScriptedOptions device{.block_size = 16, .blocks = 4096, .rows_max = 512, .positions_max = 9000};
  device.busy_ns = 150'000'000;
  Bench bench(device, {});
  std::vector<RequestId> longs;
  for (uint32_t i = 0; i < 24; ++i) longs.push_back(bench.add(bench.request(text_of(i, 8000, kVocab), 2)));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(bench.plan() && bench.result());
  EXPECT_EQ(bench.scheduler().running(), bench.config().options.max_concurrent_prefills);
  std::vector<RequestId> shorts;
  for (uint32_t i = 0; i < 3; ++i) shorts.push_back(bench.add(bench.request({1, static_cast<TokenId>(i)}, 2)));
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(bench.plan() && bench.result());
  for (const RequestId id : shorts) EXPECT_FALSE(bench.stories()[id].tokens.empty());
  EXPECT_GT(bench.rows_of(longs[0]), 0u);
  for (const RequestId id : longs) bench.scheduler().end(id, FinishReason::kAborted);
  ASSERT_TRUE(bench.finish(20));
  bench.expect_all_right();
}

TEST(Scheduler, Decodes_ComeBeforePrompts) {
  Bench bench({.lookahead = 0}, {.max_num_batched_tokens = 8});
  const RequestId first = bench.add(bench.request(text_of(1, 8, kVocab), 20));
  ASSERT_TRUE(bench.plan() && bench.result());
  const RequestId second = bench.add(bench.request(text_of(2, 100, kVocab), 2));
  while (bench.stories()[second].tokens.empty()) {
    ASSERT_TRUE(bench.plan() && bench.result());
    EXPECT_EQ(bench.rows_of(first), 1u);
    EXPECT_LE(bench.rows_of(second), 7u);
  }
  ASSERT_TRUE(bench.finish(100));
  bench.expect_all_right();
}

// A step takes 2 ms and 0.3 ms a row: alone, a prompt gets 100 ms of it, beside a sequence that decodes no more
// than 33.
TEST(Scheduler, PromptBesideDecodes_GetsShorterSteps) {
  ScriptedOptions device{.block_size = 16, .blocks = 4096, .rows_max = 1024, .positions_max = 9000, .lookahead = 0};
  device.busy_ns = 2'000'000;
  device.busy_row_ns = 300'000;
  Bench bench(device, {});
  const auto longest_ns = [&](RequestId id, int steps) {
    int64_t most = 0;
    for (int i = 0; i < steps; ++i) {
      EXPECT_TRUE(bench.plan());
      EXPECT_GT(bench.rows_of(id), 0u);
      most =
          std::max(most, device.busy_ns + device.busy_row_ns * static_cast<int64_t>(bench.last_plan().tokens.size()));
      EXPECT_TRUE(bench.result());
    }
    return static_cast<double>(most);
  };
  const RequestId longer = bench.add(bench.request(text_of(1, 8000, kVocab), 2));
  EXPECT_GT(longest_ns(longer, 10), 0.7 * kStepAimNs);
  const RequestId shorter = bench.add(bench.request({1, 2, 3}, 1000));
  while (bench.stories()[shorter].tokens.empty()) ASSERT_TRUE(bench.plan() && bench.result());
  const double beside = longest_ns(longer, 10);
  EXPECT_LE(beside, kStepAimBesideNs);
  EXPECT_GT(beside, 0.6 * kStepAimBesideNs);
  for (const RequestId id : {longer, shorter}) bench.scheduler().end(id, FinishReason::kAborted);
  ASSERT_TRUE(bench.finish(20));
  bench.expect_all_right();
}

// Three requests fill the pool; the middle one has least to lose, and comes back before a later one is admitted.
TEST(Scheduler, Preemption_TakesWhoLosesLeastAndKeepsItsRank) {
  Bench bench({.block_size = 4, .blocks = 16, .positions_max = 64, .lookahead = 0}, {.enable_prefix_caching = false});
  const RequestId a = bench.add(bench.request(text_of(1, 20, kVocab), 30));
  const RequestId b = bench.add(bench.request(text_of(2, 4, kVocab), 20));
  const RequestId c = bench.add(bench.request(text_of(3, 22, kVocab), 30));
  RequestId d = 0;
  while (bench.scheduler().counters().preemptions == 0) {
    ASSERT_TRUE(bench.plan() && bench.result());
    if (d == 0) d = bench.add(bench.request(text_of(4, 4, kVocab), 2));
  }
  EXPECT_EQ(bench.rows_of(b), 0u);
  EXPECT_EQ(bench.rows_of(a), 1u);
  EXPECT_EQ(bench.rows_of(c), 1u);
  const size_t of_b = bench.stories()[b].tokens.size();
  while (bench.stories()[b].tokens.size() == of_b) {
    EXPECT_TRUE(bench.stories()[d].tokens.empty()) << "a later request was admitted first";
    ASSERT_TRUE(bench.plan() && bench.result());
  }
  ASSERT_TRUE(bench.finish(300));
  bench.expect_all_right();
}

TEST(Scheduler, Priority_RunsTheLowerNumberFirstAndPreemptsTheHigher) {
  Bench bench({.block_size = 4, .blocks = 10, .positions_max = 40, .lookahead = 0},
              {.enable_prefix_caching = false, .policy = SchedulingPolicy::kPriority});
  Request late = bench.request(text_of(1, 16, kVocab), 20);
  late.priority = 5;
  Request urgent = bench.request(text_of(2, 8, kVocab), 20);
  urgent.priority = -1;
  const RequestId b = bench.add(late);
  const RequestId a = bench.add(urgent);
  while (!bench.stories()[a].finished) ASSERT_TRUE(bench.plan() && bench.result());
  EXPECT_GT(bench.scheduler().counters().preemptions, 0u);
  EXPECT_FALSE(bench.stories()[b].finished.has_value());
  ASSERT_TRUE(bench.finish(100));
  bench.expect_all_right();
}

TEST(Scheduler, MinTokens_ForbidsEndsUntilThenAndMergesWithTheUsersBiases) {
  Bench bench({.lookahead = 0}, {});
  Request r = bench.request({1}, 3);
  r.end_tokens = {7, 5};
  r.params.stop_token_ids = {6, 5};
  r.params.min_tokens = 1;
  r.params.logit_bias = {{9, 1.5f}, {6, 3.0f}};
  bench.add(r);
  ASSERT_TRUE(bench.plan());
  const auto biases = [&] {
    std::vector<std::pair<TokenId, float>> all;
    for (const motley_token_bias& b : bench.last_plan().biases) all.emplace_back(b.id, b.bias);
    return all;
  };
  using Biases = std::vector<std::pair<TokenId, float>>;
  EXPECT_EQ(biases(), (Biases{{5, -INFINITY}, {6, -INFINITY}, {7, -INFINITY}, {9, 1.5f}}));
  ASSERT_TRUE(bench.result() && bench.plan());
  EXPECT_EQ(biases(), (Biases{{6, 3.0f}, {9, 1.5f}}));
  ASSERT_TRUE(bench.finish(10));
  bench.expect_all_right();
}

TEST(Scheduler, Lookahead_ReadsTheUnknownTokenFromItsSlotAndCountsItAsPending) {
  Bench bench({.lookahead = 1}, {});
  Request r = bench.request({1, 2}, 5);
  r.params.frequency_penalty = 1;
  bench.add(r);
  ASSERT_TRUE(bench.plan());
  const SlotId slot = bench.last_plan().samples[0].out_slot;
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.last_plan().token_slots, std::vector<SlotId>{slot});
  EXPECT_EQ(bench.last_plan().pending, std::vector<SlotId>{slot});
  EXPECT_NE(bench.last_plan().samples[0].out_slot, slot);
  EXPECT_FALSE(bench.plan()) << "deeper than the lookahead";
  ASSERT_TRUE(bench.finish(20));
  bench.expect_all_right();
}

TEST(Scheduler, LostExecutor_TellsHowManyRowsRunAgain) {
  Bench bench({}, {});
  bench.add(bench.request({1, 2, 3, 4, 5}, 4));
  bench.add(bench.request({6, 7, 8}, 4));
  ASSERT_TRUE(bench.plan());
  ASSERT_TRUE(bench.result());
  bench.lose(bench.device(), [] {});
  EXPECT_EQ(bench.computed_again(), 8u);
  EXPECT_TRUE(bench.finish(100));
}

TEST(Scheduler, LostExecutor_WhoGoesOnGivesWayToWhoDoesNotYet) {
  Bench bench({}, {.max_num_seqs = 4, .max_num_batched_tokens = 8});
  const RequestId brief = bench.add(bench.request({1, 2}, 40));
  const RequestId wide = bench.add(bench.request(std::vector<TokenId>(70, 3), 12));
  while (bench.stories()[wide].tokens.empty()) {
    ASSERT_TRUE(bench.plan());
    ASSERT_TRUE(bench.result());
  }
  bench.lose(bench.device(), [] {});
  std::vector<uint32_t> brief_rows, wide_rows;
  const size_t told = bench.stories()[wide].tokens.size();
  while (bench.stories()[wide].tokens.size() == told) {
    ASSERT_TRUE(bench.plan());
    brief_rows.push_back(bench.rows_of(brief));
    wide_rows.push_back(bench.rows_of(wide));
    ASSERT_TRUE(bench.result());
  }
  ASSERT_GE(wide_rows.size(), 8u);
  EXPECT_GT(brief_rows[0], 0u);                        // interrupted, too
  for (size_t i = 3; i + 1 < wide_rows.size(); ++i) {  // then only every fourth step is everybody's
    EXPECT_EQ(brief_rows[i], i % 4 == 3 ? 1u : 0u) << i;
    EXPECT_EQ(wide_rows[i], i % 4 == 3 ? 7u : 8u) << i;
  }
  EXPECT_TRUE(bench.finish(100));
}

TEST(Scheduler, ResultOfAnotherStep_IsNotTrusted) {
  Bench bench({}, {});
  bench.add(bench.request({1}, 2));
  ASSERT_TRUE(bench.plan());
  EXPECT_EQ(bench.scheduler().apply({.epoch = 1, .step = 99, .status = {}, .tokens = {}, .busy_ns = 0}, kNow).code(),
            MOTLEY_INTERNAL);
  EXPECT_EQ(bench.scheduler().apply({.epoch = 2, .step = 1, .status = {}, .tokens = {}, .busy_ns = 0}, kNow).code(),
            MOTLEY_INTERNAL);
  // A result of the right step with a token outside the vocabulary ends the request.
  EXPECT_TRUE(
      bench.scheduler()
          .apply({.epoch = 1, .step = 1, .status = {}, .tokens = {{.id = 1000, .logprob = 0, .top = {}}}, .busy_ns = 0},
                 kNow)
          .ok());
  EXPECT_EQ(bench.stories()[1].finished, FinishReason::kError);
}

}  // namespace
}  // namespace motley
