// SchedulerBench: a scheduler, a scripted executor that is run by hand, and what every request heard.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "engine/scheduler.hpp"
#include "engine/testing/scripted_executor.hpp"

namespace motley::testing {

inline constexpr int64_t kNow = 1;

inline std::vector<TokenId> random_text(uint32_t seed, uint32_t length, uint32_t vocab_size) {
  std::mt19937 random(seed);
  std::vector<TokenId> text(length);
  for (TokenId& token : text) token = static_cast<TokenId>(random() % vocab_size);
  return text;
}

// What `request` gets when it runs alone: straight from the script, without scheduler or executor.
inline std::vector<TokenId> tokens_alone(const Request& request, uint32_t max_model_len, uint32_t vocab_size) {
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

class SchedulerBench {
 public:
  SchedulerBench(ScriptedOptions device, const EngineOptions& options)
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
    std::set<uint32_t> pools;  // it ran in
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
                            .last = {},
                            .pools = {}};
    scheduler_->add(std::move(request), kNow);
    return last_id_;
  }
  bool plan() {
    auto plan = scheduler_->plan_step(kNow);
    take_transfers();
    if (!plan) return false;
    check(*plan);
    last_plan_ = *plan;
    ++steps_;
    const uint32_t pool = config_.lanes[plan->lane].pool;
    for (const Flying& other : flying_)
      overlaps_ += other.lane != plan->lane && config_.lanes[other.lane].pool == pool ? 1 : 0;
    for (const PlanSequence& part : plan->sequences) stories_[part.sequence].pools.insert(pool);
    flying_.push_back({plan->lane, executor_->submit(*std::move(plan))});
    return true;
  }
  // Of the oldest step under way, or of the oldest of a lane.
  bool result(std::optional<uint32_t> lane = {}) {
    const auto next =
        std::find_if(flying_.begin(), flying_.end(), [&](const Flying& step) { return !lane || step.lane == *lane; });
    if (next == flying_.end()) return false;
    EXPECT_TRUE(executor_->run_next(next->lane));
    StepResult result = next->result.take();
    flying_.erase(next);
    const Status status = scheduler_->apply(std::move(result), kNow);
    EXPECT_TRUE(status.ok()) << status.to_string();
    take_transfers();
    return true;
  }
  // A move from pool to pool is made, the oldest or any. False where there is none.
  bool transfer(size_t which = 0, bool fails = false) {
    if (transfers_.empty()) return false;
    const auto at = transfers_.begin() + static_cast<ptrdiff_t>(which % transfers_.size());
    const Transfer transfer = *at;
    transfers_.erase(at);
    if (fails) {
      scheduler_->moved(transfer.id, false);
      take_transfers();
      return true;
    }
    if (transfer.comes_late) {
      EXPECT_TRUE(load(*executor_, late_, transfer.moves).ok());
      scheduler_->moved(transfer.id, true);
      ++came_late_;
      take_transfers();
      return true;
    }
    std::vector<KvBlock> blocks;
    for (const KvMove& move : transfer.moves) blocks.push_back(move.from);
    auto saved = executor_->save_kv(blocks);
    EXPECT_TRUE(saved.ok()) << saved.error().to_string();
    if (!saved.ok()) return false;
    const auto loaded = executor_->load_kv(std::make_shared<const KvContents>(*std::move(saved)), transfer.moves);
    EXPECT_TRUE(loaded.ok() || device_.saved_blocks_max != SIZE_MAX) << loaded.error().to_string();
    scheduler_->moved(transfer.id, loaded.ok());
    transferred_ += loaded.ok() ? 1 : 0;
    return true;
  }
  // The device is lost: what is under way comes back, `meanwhile` is called after each step, and `next` takes over.
  void lose(ScriptedOptions next, const std::function<void()>& meanwhile) {
    executor_->lose(Status(MOTLEY_UNAVAILABLE, "scripted"));
    for (; !flying_.empty(); flying_.pop_back()) {  // the latest lane first, each in its order
      const auto first = std::find_if(flying_.begin(), flying_.end(),
                                      [&](const Flying& step) { return step.lane == flying_.back().lane; });
      std::rotate(first, first + 1, flying_.end());
      EXPECT_TRUE(executor_->run_next(flying_.back().lane));
      const Status status = scheduler_->discard(flying_.back().result.take());
      EXPECT_TRUE(status.ok()) << status.to_string();
      meanwhile();
    }
    take_transfers();
    while (transfer(0, true)) {
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
    expect_pools_free();
  }
  struct Carry {
    bool loading_fails = false;
    int steps_ahead = 0;  // while what is written is saved; 0: all is saved later
    size_t at_once = SIZE_MAX;
  };
  // `next` takes over by plan, once what is under way has come back: with the KV that it needs of the executor before,
  // or of which it has the memory. Where loading fails, all is computed again. `meanwhile` is called wherever the
  // engine can hear of requests.
  void replace(
      ScriptedOptions next, const Carry& carry, const std::function<void()>& meanwhile = [] {}) {
    while (scheduler_->some_come_late()) ASSERT_TRUE(transfer());
    KvSaved saved;
    const auto save = [&](std::vector<KvBlock> blocks) {
      auto contents = executor_->save_kv(std::move(blocks));
      ASSERT_TRUE(contents.ok()) << contents.error().to_string();
      saved.push_back(std::make_shared<const KvContents>(*std::move(contents)));
    };
    if (carry.steps_ahead > 0) save(scheduler_->hold_written(next.pools));
    for (int i = 0; i < carry.steps_ahead; ++i) {
      plan();
      if (i % 2 == 0) result();
      meanwhile();
    }
    while (!flying_.empty()) {
      result();
      meanwhile();
    }
    while (transfer()) meanwhile();
    save(scheduler_->blocks_to_save(next.pools, blocks_of(saved)));
    meanwhile();
    EXPECT_THAT(executor_->violations(), ::testing::IsEmpty());
    next.manual = true;
    next.epoch = device_.epoch + 1;
    device_ = next;
    auto made = std::make_unique<ScriptedExecutor>(device_, executor_.get());
    executor_ = std::move(made);
    auto config = resolve_replacement(executor_->describe(), options_);
    ASSERT_TRUE(config.ok()) << config.error().to_string();
    config_ = *config;
    length_min_ = std::min(length_min_, config_.options.max_model_len);
    const uint32_t before = scheduler_->running();
    Scheduler::CarriedOn carried = scheduler_->carry_on(config_, blocks_of(saved), carry.at_once);
    EXPECT_LE(scheduler_->running() + carried.late, std::min(before, config_.options.max_num_seqs));
    carried_on_ += scheduler_->running() + carried.late;
    moved_ += carried.moves.size();
    meanwhile();
    const bool fails = carry.loading_fails && !carried.moves.empty();
    if (fails) executor_->fail_loading(Status(MOTLEY_UNAVAILABLE, "scripted"));
    const auto loaded = load(*executor_, saved, carried.moves);
    EXPECT_EQ(loaded.ok(), !fails) << loaded.error().to_string();
    if (!loaded.ok()) scheduler_->restart(config_);
    late_ = std::move(saved);
    take_transfers();
  }
  // Steps with full lookahead until nothing is left. False: no end in sight.
  bool finish(uint64_t steps_max) {
    const uint64_t until = steps_ + steps_max;
    while (scheduler_->unfinished() > 0 || scheduler_->steps_in_flight() > 0 || scheduler_->transfers_in_flight() > 0) {
      while (plan()) {
      }
      if ((!result() && !transfer()) || steps_ > until) return false;
    }
    return true;
  }
  void expect_all_right() {
    EXPECT_THAT(executor_->violations(), ::testing::IsEmpty());
    expect_pools_free();
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
  // Steps that were planned while one of another lane of the same pool was under way.
  uint64_t overlaps() const { return overlaps_; }
  // By replace(): requests that went on, and blocks that moved.
  uint64_t carried_on() const { return carried_on_; }
  uint64_t moved() const { return moved_; }
  uint64_t transferred() const { return transferred_; }  // requests, from pool to pool
  uint64_t came_late() const { return came_late_; }
  uint64_t computed_again() const { return computed_again_; }
  uint32_t rows_of(RequestId id) const {
    for (const PlanSequence& part : last_plan_.sequences)
      if (part.sequence == id) return part.row_count;
    return 0;
  }

 private:
  struct Flying {
    uint32_t lane = 0;
    Future<StepResult> result;
  };

  void take_transfers() {
    for (Transfer& each : scheduler_->take_transfers()) transfers_.push_back(std::move(each));
  }
  void expect_pools_free() const {
    for (uint32_t i = 0; i < scheduler_->pools(); ++i)
      EXPECT_EQ(scheduler_->pool(i).free_count(), config_.pools[i].blocks) << "pool " << i;
  }
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
      const size_t missing = known - (part.context - part.row_count);
      longs += prompt_rows && missing > scheduler_->short_rows(plan.lane) ? 1 : 0;
      if (part.logits_count > 0) {
        EXPECT_LT(plan.samples[part.logits_begin].position, asked.prompt.size() + asked.params.max_tokens);
      }
    }
    EXPECT_LE(longs, config_.options.max_concurrent_prefills);
    EXPECT_LE(plan.sequences.size(), config_.options.max_num_seqs);
    EXPECT_LE(scheduler_->running(), config_.options.max_num_seqs);
    if (!config_.chosen_budget) {
      EXPECT_LE(plan.tokens.size(), config_.options.max_num_batched_tokens);
    }
  }

  uint64_t computed_again_ = 0, overlaps_ = 0, carried_on_ = 0, moved_ = 0, transferred_ = 0, came_late_ = 0;
  KvSaved late_;  // what late ones are loaded from
  std::deque<Transfer> transfers_;
  ScriptedOptions device_;
  const EngineOptions options_;
  std::unique_ptr<ScriptedExecutor> executor_;
  uint32_t length_min_ = UINT32_MAX;  // longest sequence of the smallest device so far
  SchedulerConfig config_;
  std::unique_ptr<Scheduler> scheduler_;
  std::deque<Flying> flying_;
  std::map<RequestId, Story> stories_;
  StepPlan last_plan_;
  RequestId last_id_ = 0;
  uint64_t steps_ = 0;
};

}  // namespace motley::testing
