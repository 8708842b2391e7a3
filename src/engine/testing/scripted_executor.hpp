// ScriptedExecutor: an Executor without a device, for tests of whatever stands above one.
//
// Its KV pool holds (token, position) per cell instead of keys and values, and the next token is a function of the text
// that a row reads through its block table: a wrong block, a lost write or a stale slot changes the output. Every plan
// is checked against the contract of executor.hpp; what breaks it is listed in violations() and answered with
// INVALID_ARGUMENT. Thread-safe; in manual mode run_next() belongs to one thread.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/executor.hpp"

namespace motley::testing {

// The token that follows `text`. `banned` tells whether a token's bias is -infinity.
using ScriptedChoice = std::function<TokenId(std::span<const TokenId> text, const motley_sample_row& row,
                                             const std::function<bool(TokenId)>& banned)>;

struct ScriptedOptions {
  // One lane with one pool, from the fields below; or, where there are any, these.
  std::vector<KvPoolDescription> pools = {};
  std::vector<LaneDescription> lanes = {};
  uint32_t block_size = 4, blocks = 256;
  std::vector<uint64_t> memory = {};  // of its pool
  uint32_t rows_max = 256;
  uint32_t vocab_size = 1000;
  uint32_t positions_max = 512;
  uint32_t slots = 1024;
  uint32_t lookahead = 1, pipeline = 1;
  StepCost cost = {};
  int64_t busy_ns = 1000;   // said of every step,
  int64_t busy_row_ns = 0;  // and for each of its rows
  Epoch epoch = 1;
  uint64_t steps_max = UINT64_MAX;  // steps that run; then the device is lost: lose()
  bool manual = false;              // steps wait for run_next(); otherwise submit() runs them
  bool moves_kv = false;
  size_t saved_blocks_max = SIZE_MAX;     // by save_kv()
  int64_t saved_block_ns = 0;             // what it says that saving one took
  std::function<void()> saves = nullptr;  // called at the beginning of each save_kv()
  std::function<void()> loads = nullptr;  // and of each load_kv()
  ScriptedChoice choice = nullptr;        // none: a hash of (text, seed, choice), never a banned token
};

class ScriptedExecutor final : public Executor {
 public:
  // With the KV of `before`, if there is one, in those pools that lie in the memory of one of it.
  explicit ScriptedExecutor(ScriptedOptions options, const ScriptedExecutor* before = nullptr);
  ~ScriptedExecutor() override;  // steps that nobody ran end as CANCELLED

  ExecutorDescription describe() const override;
  Future<StepResult> submit(StepPlan plan) override;
  // One layer with one head, whose elements are the cells. Positions of another sequence's step under way are not to be
  // touched: that is a violation.
  Result<KvContents> save_kv(std::vector<KvBlock> blocks) override;
  Result<KvLoaded> load_kv(std::shared_ptr<const KvContents> contents, std::vector<KvMove> moves) override;

  // Manual mode: runs the oldest step that was submitted, of the lane if one is named, and sets its future. False if
  // there is none.
  bool run_next(std::optional<uint32_t> lane = {});
  // Blocks until at least `count` steps wait for run_next().
  void wait_pending(size_t count);
  size_t pending() const;
  // The next step to run gives `status`; its rows leave garbage behind.
  void fail_next(Status status);
  void forgive();  // then none fails
  // From the next step to run on, every step gives `status`.
  void lose(Status status);
  // Each save_kv(), or the next load_kv(), gives `status`.
  void fail_saving(Status status);
  void fail_loading(Status status);
  uint64_t steps_run() const;
  uint64_t rows_run() const;
  // Broken promises of the plans so far; empty is right.
  std::vector<std::string> violations() const;
  // The choice for `text` of the default script, as a lone request would get it.
  static TokenId hashed_choice(std::span<const TokenId> text, const motley_sample_row& row, uint32_t vocab_size,
                               const std::function<bool(TokenId)>& banned);

 private:
  struct Cell {
    TokenId token = -1;
    int32_t position = -1;
  };
  struct Slot {
    TokenId token = -1;
    int32_t position = -1;
    uint64_t sequence = 0;
    uint32_t lane = 0;  // of the step that wrote it
  };
  struct Pending {
    StepPlan plan;
    Promise<StepResult> promise;
  };

  void complain(const StepPlan& plan, const std::string& what);
  void check_untouched(const KvBlock& block, bool writes);
  std::span<Cell> cells_of(const KvBlock& block);
  bool check_shape(const StepPlan& plan);
  bool check_role(const StepPlan& plan, const PlanSequence& part);
  bool check_sequence(const StepPlan& plan, const PlanSequence& part, uint32_t row, uint32_t logit);
  void check_depths(const StepPlan& plan);
  void check_writes(const StepPlan& plan);
  bool check_sample(const StepPlan& plan, const PlanSequence& part, const motley_sample_row& sample);
  void check_counts(const StepPlan& plan, const motley_sample_row& sample, std::span<const TokenId> text,
                    const std::vector<TokenId>& pending);
  std::set<BlockId> blocks_written(const StepPlan& plan, const PlanSequence& part) const;
  Cell& cell(const StepPlan& plan, const PlanSequence& part, uint32_t position);
  StepResult run(const StepPlan& plan);
  void spoil(const StepPlan& plan, const PlanSequence& part);
  bool write_rows(const StepPlan& plan, const PlanSequence& part);
  std::optional<std::vector<TokenId>> read_text(const StepPlan& plan, const PlanSequence& part);
  SampledToken sample(const StepPlan& plan, const PlanSequence& part, std::span<const TokenId> text);

  const LaneDescription& lane_of(const StepPlan& plan) const { return options_.lanes[plan.lane]; }
  const KvPoolDescription& pool_of(const StepPlan& plan) const { return options_.pools[lane_of(plan).pool]; }

  const ScriptedOptions options_;  // with pools and lanes
  mutable std::mutex mutex_;
  std::condition_variable submitted_;
  std::deque<Pending> pending_;
  std::vector<std::vector<Cell>> cells_;  // [pool]
  std::vector<Slot> slots_;
  std::map<uint64_t, std::map<uint32_t, TokenId>> seen_;  // per sequence: the token each position was computed with
  std::set<uint64_t> failed_;                             // sequences of failed steps
  std::optional<Status> failure_, loss_, saving_, loading_;
  std::vector<std::string> violations_;
  StepId last_step_ = 0;
  uint64_t steps_run_ = 0, rows_run_ = 0;
};

}  // namespace motley::testing
