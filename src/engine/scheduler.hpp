// Scheduler: which tokens run in which step. Pure: no thread, no clock, no executor; the same calls give the same
// plans.
//
// A request is only text of which some positions are computed; every step hands out rows so that computed catches up:
// prompt, chunk, decode and recomputation are one path. Promises: a sequence's blocks are written by no one else and
// are freed only after its last step under way is done; the running sequence of the highest rank is never preempted, so
// that one always ends; preempted requests keep their rank. Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "engine/block_pool.hpp"
#include "engine/engine.hpp"
#include "engine/sequence.hpp"
#include "engine/step_budget.hpp"

namespace motley {

// Options and executor, reconciled; no zeros left.
struct SchedulerConfig {
  EngineOptions options;
  bool chosen_budget = false;  // max_num_batched_tokens was left to us
  Epoch epoch = 0;
  LaneDescription lane;
  KvPoolDescription pool;
  uint32_t vocab_size = 0;
  uint32_t slots_each = 0;  // token slots of a running sequence; 0 = none
  uint32_t lookahead = 0;
  uint32_t pipeline = 1;
  uint32_t steps_max = 1;  // under way together
};

// INVALID_ARGUMENT where the options ask for what the executor cannot give; UNIMPLEMENTED for several lanes.
Result<SchedulerConfig> resolve_config(const ExecutorDescription& executor, const EngineOptions& options);

// The same for an executor that takes the place of one that served `options`: where it can give less, the options are
// lowered to that instead of refused.
Result<SchedulerConfig> resolve_replacement(const ExecutorDescription& executor, const EngineOptions& options);

struct SchedulerCounters {
  uint64_t prefix_queries = 0, prefix_hits = 0, preemptions = 0, recomputed_tokens = 0;
};

class Scheduler {
 public:
  // Hears of every update, the final one before the sequence is gone. Must not call back.
  using Sink = std::function<void(const Sequence&, RequestUpdate)>;

  Scheduler(const SchedulerConfig& config, Sink sink, BlockPool::Hash hash = BlockPool::default_hash);

  // `request` has passed check_request() and has an unused id. (Should the limits have shrunk since, it may end at
  // once.)
  void add(Request request, int64_t now_ns);
  // Gives the request its final update now. Unknown ids and ended requests are left alone.
  void end(RequestId id, FinishReason reason);
  // Gives every request its final update now.
  void end_all(FinishReason reason, const Status& status);

  // The next step, or nullopt if none can be planned before a result or a request comes.
  std::optional<StepPlan> plan_step(int64_t now_ns);
  // Results come in the order of plans. Not OK: the result does not fit the plan, and the executor is not to be
  // trusted.
  Status apply(StepResult result, int64_t now_ns);

  // Like apply() for a step that does not count, whatever it brought: its requests go on, without its tokens. From then
  // on all steps under way must be discarded, and then restart() called, before anything is planned.
  Status discard(const StepResult& result);
  // Begins anew with another executor, once no step is under way: every request waits again with its rank and its known
  // text. A request that has no room left under the new limits ends with RESOURCE_EXHAUSTED, now or when it comes to
  // them. How many positions' rows had run, and must run again.
  uint64_t restart(const SchedulerConfig& config);

  uint32_t waiting() const { return static_cast<uint32_t>(waiting_.size()); }
  uint32_t running() const { return static_cast<uint32_t>(running_.size()); }
  // Requests that have not had their final update.
  uint32_t unfinished() const { return unfinished_; }
  uint32_t steps_in_flight() const { return static_cast<uint32_t>(in_flight_.size()); }
  const BlockPool& pool() const { return pool_; }
  const StepBudget& budget() const { return budget_; }
  // A prompt is long while more rows than this are missing.
  uint32_t short_rows() const;
  const SchedulerCounters& counters() const { return counters_; }

 private:
  struct Entry {
    Sequence* sequence = nullptr;
    uint32_t end = 0;  // positions computed when the step is done
    bool draws = false;
  };
  struct Step {
    StepId id = 0;
    std::vector<Entry> entries;
    double rows = 0, reads = 0;
  };
  struct Draft {
    StepPlan plan;
    Step step;
    double target_ns = 0;  // what the step may take
  };
  enum class Admission { kAdmitted, kNoRoom, kPassOver };
  struct RankLess {
    bool by_priority = false;
    bool operator()(const Sequence* a, const Sequence* b) const;
  };

  void fill(Draft& draft, int64_t now_ns);
  bool catches_up();
  bool can_decode(const Sequence& sequence) const;
  std::vector<Sequence*> choose_decodes();
  bool reserve_blocks(const std::vector<Sequence*>& decodes);
  Sequence* choose_victim();
  void preempt(Sequence& victim);
  void plan_decodes(Draft& draft, const std::vector<Sequence*>& decodes);
  void plan_prefills(Draft& draft, bool may_admit, int64_t now_ns);
  void share_rows(Draft& draft, const std::vector<Sequence*>& prefills);
  void admit(Draft& draft, std::vector<Sequence*>& prefills, uint32_t longs);
  Admission try_admit(Sequence& sequence, uint32_t rows_left, uint32_t missing_max);
  void start(Sequence& sequence, uint32_t blocks_found, ChainId chain);
  bool waits_for_shared_prefix(const Sequence& sequence, uint32_t hits, ChainId chain) const;
  void append(Draft& draft, Sequence& sequence, uint32_t rows);
  uint32_t rows_left(const Draft& draft, uint32_t position) const;

  Result<Step> take_step(const StepResult& result);
  Status check_result(const Step& step, const StepResult& result) const;
  void accept(Sequence& sequence, SampledToken token, int64_t now_ns);
  void publish(Sequence& sequence);
  void finish(Sequence& sequence, FinishReason reason, RequestUpdate update);
  void leave(Sequence& sequence);
  void settle(Sequence& sequence);
  void fit(Sequence& sequence);
  Status no_room(const Sequence& sequence) const;
  void make_slots();
  RequestUpdate update_of(const Sequence& sequence) const;

  SchedulerConfig config_;
  const Sink sink_;
  const BlockPool::Hash hash_;
  BlockPool pool_;
  StepBudget budget_;
  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  std::set<Sequence*, RankLess> waiting_;
  std::vector<Sequence*> running_;  // by rank
  std::vector<SlotId> free_slots_;  // first slots of unused groups
  std::deque<Step> in_flight_;
  SchedulerCounters counters_;
  uint64_t arrivals_ = 0;
  StepId last_step_ = 0;
  uint32_t unfinished_ = 0;
  uint32_t draining_ = 0;     // sequences in kLeaving that still hold blocks
  bool catching_up_ = false;  // some may be interrupted
  uint32_t catch_up_steps_ = 0;
  bool prompts_first_ = false;  // without chunking: the next step begins with the prompt that found no room
};

// The longest sequence that `config` can serve is config.options.max_model_len. INVALID_ARGUMENT if `request` is not
// servable.
Status check_request(const SchedulerConfig& config, const Request& request);

}  // namespace motley
