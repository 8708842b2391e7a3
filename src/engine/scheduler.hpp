// Scheduler: which tokens run in which step. Pure: no thread, no clock, no executor; the same calls give the same
// plans.
//
// A request is only text of which some positions are computed; every step hands out rows so that computed catches up:
// prompt, chunk, decode and recomputation are one path. Promises: a sequence's blocks are written by no one else and
// are freed only after its last step under way is done; the running sequence of the highest rank in a pool is never
// preempted for another, so that it ends or outgrows the pool; preempted requests keep their rank. Not thread-safe.
//
// Over several lanes: each lane plans steps of its own, of sequences whose blocks lie in its pool and that are not
// under way in another lane; lanes of one pool share its sequences by their roles. A waiting request goes to the first
// pool, by the preference of the lanes, that has KV room for it now; where pools have shares, to the one with room that
// has the fewest sequences for its share. That its lanes are busy is no reason to take a less preferred one: their next
// step comes soon, room may not. A pool whose steps fail one after another, each with its requests, is passed by where
// others can take them: while some begin elsewhere, then it is tried with one, and passed by for twice as many where
// that fails, too. A request passes nobody whose place it could take: only in a pool that the passed one does not fit
// into, or does not need. A sequence that outgrows its pool, or is preempted, moves to another one that has room for
// it, where the executor moves KV and nobody of higher rank waits for that room; else it waits again, with its rank.
// The largest pool holds any.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/block_pool.hpp"
#include "engine/engine.hpp"
#include "engine/sequence.hpp"
#include "engine/step_budget.hpp"
#include "engine/transfers.hpp"

namespace motley {

// Options and executor, reconciled; no zeros left.
struct SchedulerConfig {
  EngineOptions options;
  bool chosen_budget = false;  // max_num_batched_tokens was left to us
  Epoch epoch = 0;
  std::vector<KvPoolDescription> pools;
  std::vector<LaneDescription> lanes;  // with the depths that the slots allow
  bool moves_kv = false;
  uint32_t vocab_size = 0;
  uint32_t slots_each = 0;  // token slots of a running sequence; 0 = none

  // Rows of a step of the lane, prompts apart, that options and executor allow.
  uint32_t step_rows_max(const LaneDescription& lane) const;
  // The rows of its steps are what the plan is made for; else what their times tell, or what the options say.
  bool has_planned_steps(const LaneDescription& lane) const;
  bool has_fixed_steps(const LaneDescription& lane) const { return !chosen_budget || has_planned_steps(lane); }
  // Sequences that may run in a pool.
  uint32_t sequences_max(uint32_t pool) const;
};

// INVALID_ARGUMENT where the options ask for what the executor cannot give, or its description makes no sense.
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

  // The next step, of the first lane that has one, or nullopt if none can be planned before a result or a request
  // comes.
  std::optional<StepPlan> plan_step(int64_t now_ns);
  // Results of a lane come in the order of its plans. Not OK: the result does not fit the plan, and the executor is not
  // to be trusted.
  Status apply(StepResult result, int64_t now_ns);

  // Like apply() for a step that does not count, whatever it brought: its requests go on, without its tokens. From then
  // on all steps under way must be discarded, and then restart() called, before anything is planned.
  Status discard(const StepResult& result);
  // Begins anew with another executor, once no step is under way: every request waits again with its rank and its known
  // text. A request that has no room left under the new limits ends with RESOURCE_EXHAUSTED, now or when it comes to
  // them. How many positions' rows had run, and must run again.
  uint64_t restart(const SchedulerConfig& config);

  // Moves to be made beside the steps, by rank: of late ones of carry_on() the next, once the one before it is
  // answered, or else those between pools of the executor. Each is answered by moved(); until then its request runs
  // nowhere, and its blocks are left alone.
  std::vector<Transfer> take_transfers();
  // Not OK: the request waits again instead.
  void moved(RequestId id, bool ok);
  uint32_t transfers_in_flight() const { return transfers_in_flight_; }  // not answered
  bool some_come_late() const;                                           // of these

  // What another executor may need of the one in service: the blocks of those that run, by rank, and then of the prefix
  // cache the latest used, `cached_max` at most and about as many as of those that run, but not of pools whose memory
  // `next` has, too, and none that is saved.
  std::vector<KvBlock> blocks_to_save(std::span<const KvPoolDescription> next, const KvSavedBlocks& saved = {},
                                      size_t cached_max = SIZE_MAX) const;
  // Of these, the ones of those that run that no step writes any more: they can be saved beside the steps, and are held
  // until carry_on(), restart() or let_go(). Nobody is preempted for them: who lacks a block meanwhile sits out.
  std::vector<KvBlock> hold_written(std::span<const KvPoolDescription> next);
  void let_go();
  struct CarriedOn {
    std::vector<KvMove> moves;
    size_t late = 0;    // requests that are among take_transfers(), to be loaded from what was saved
    uint64_t lost = 0;  // positions whose rows had run, and must run again
  };
  // Goes on with another executor, once no step is under way and none was discarded. Requests keep what has run where
  // their pool lies in the same memory, or else their blocks were saved and there is room; the others wait again with
  // their rank, as after restart(). So does the prefix cache. Whose blocks would be more than `at_once` with those of
  // the others comes late. Nothing is to be planned before the moves have ended; if they fail, restart().
  CarriedOn carry_on(const SchedulerConfig& config, const KvSavedBlocks& saved, size_t at_once = SIZE_MAX);

  uint32_t waiting() const { return static_cast<uint32_t>(waiting_.size()); }
  uint32_t running() const;
  // Requests that have not had their final update.
  uint32_t unfinished() const { return unfinished_; }
  uint32_t steps_in_flight() const;
  uint32_t pools() const { return static_cast<uint32_t>(pools_.size()); }
  const BlockPool& pool(uint32_t index) const { return pools_[index].blocks; }
  // For a lane, a prompt is long while more rows than this are missing.
  uint32_t short_rows(uint32_t lane) const { return short_rows(lanes_[lane]); }
  const SchedulerCounters& counters() const { return counters_; }

 private:
  struct Entry {
    Sequence* sequence = nullptr;
    uint32_t end = 0;  // positions computed when the step is done
    bool draws = false;
  };
  struct Step {
    StepId id = 0;
    uint32_t lane = 0;
    std::vector<Entry> entries;
    double rows = 0, reads = 0;
  };
  struct Lane {
    Lane(const LaneDescription& from, uint32_t lane_id, StepBudget rows) : is(from), id(lane_id), budget(rows) {}
    LaneDescription is;
    uint32_t id;
    StepBudget budget;
    std::deque<Step> in_flight;
    uint32_t catch_up_steps = 0;
    uint32_t failed = 0;         // steps on end
    bool prompts_first = false;  // without chunking: the next step begins with the prompt that found no room
  };
  // The sequences whose KV lies together.
  struct Pool {
    Pool(uint32_t pool_id, BlockPool empty) : id(pool_id), blocks(std::move(empty)) {}
    uint32_t id;
    BlockPool blocks;
    std::vector<Sequence*> running;  // by rank
    uint32_t draining = 0;           // sequences in kLeaving or kMoving that still hold blocks
    uint32_t arriving = 0;           // sequences in kMoving that come here
    uint32_t late = 0;               // of these, from no pool of the executor
    bool held = false;               // some of its blocks are
    uint32_t sequences_max = 0;      // that run
    uint32_t decode_steps = 0;       // of disjoint sequences that its lanes can have under way
    uint32_t preference = 0;         // the least first: its first lane
    double share = 0;                // as described
    uint32_t troubles = 0;           // how often it came to be passed by since its steps succeeded
    uint32_t passed_by = 0;          // requests yet that are for others; then it is tried with one

    size_t sequences() const { return running.size() + draining + arriving; }
  };
  struct Draft {
    Draft(Lane& of, Pool& in, StepPlan& to) : lane(of), pool(in), plan(to) {}
    Lane& lane;
    Pool& pool;
    StepPlan& plan;
    Step step;
    double target_ns = 0;  // what the step may take
  };
  // What a pool has for a waiting request.
  struct Offer {
    std::vector<BlockPool::Hit> hits;
    ChainId chain = kChainRoot;
    uint32_t fresh = 0;    // blocks beside the hits
    uint32_t missing = 0;  // rows
    bool fits = false;     // into the empty pool
    bool room = false;     // now
  };
  enum class Admission {
    kAdmitted,
    kNoRoom,    // waits for the lane's pool, and nobody passes it there
    kPassOver,  // waits for somebody who runs in the lane's pool
    kNotHere,   // another pool is the one for it
  };
  // One pass over the waiting requests, for a draft.
  struct AdmissionPass {
    uint64_t closed = 0;                 // pools, a bit each, that a passed request waits for
    uint32_t elsewhere = 0;              // passed requests that another pool takes
    std::vector<uint32_t> by_pool = {};  // of these, for which
    uint32_t rows_left = 0;              // of the step
    uint32_t missing_max = 0;            // rows that may be missing of the next one
    uint32_t claims() const;
  };
  struct RankLess {
    bool by_priority = false;
    bool operator()(const Sequence* a, const Sequence* b) const;
  };

  // Planning (scheduler_planning.cpp).
  bool plan_step(Lane& lane, int64_t now_ns, StepPlan& plan);
  void fill(Draft& draft, int64_t now_ns);
  bool catches_up(Lane& lane);
  bool nobody_decodes() const;
  static bool may_run(const Sequence& sequence, const Lane& lane);
  std::vector<Sequence*> choose_decodes(const Lane& lane, const Pool& pool, bool shared) const;
  bool reserve_blocks(Pool& pool, const std::vector<Sequence*>& decodes);
  Sequence* choose_victim(const Pool& pool) const;
  void preempt(Sequence& victim);
  void plan_decodes(Draft& draft, const std::vector<Sequence*>& decodes);
  void plan_prefills(Draft& draft, bool may_admit, int64_t now_ns);
  void share_rows(Draft& draft, const std::vector<Sequence*>& prefills);
  static uint32_t rows_wanted(const Draft& draft, const Sequence& sequence);
  uint32_t prompt_rows(const Draft& draft, const std::vector<Sequence*>& prefills) const;
  void append(Draft& draft, Sequence& sequence, uint32_t rows);
  uint32_t rows_left(const Draft& draft, uint32_t position) const;
  uint32_t short_rows(const Lane& lane) const;

  // From pool to pool, and from executor to executor (scheduler_moving.cpp).
  struct Landing {
    std::vector<BlockId> hits;  // leading blocks that are there already, or will be
    uint32_t known = 0;         // of them, those of late ones
    uint32_t fresh = 0;         // blocks beside them
    bool room = false;
  };
  // `known`: where leading blocks will lie anyway.
  Landing landing(const Pool& pool, const Sequence& sequence, uint32_t block_size, uint32_t blocks,
                  const std::vector<std::optional<BlockId>>& known = {}) const;
  bool move_on(Sequence& sequence);
  bool is_waited_for(const Pool& pool, const Sequence& sequence) const;
  static std::vector<BlockId> take_blocks(Pool& pool, const Landing& landing);
  void publish_again(Pool& pool, Sequence& sequence) const;
  struct Carrying;
  std::vector<Sequence*> by_rank() const;
  bool has_seat(const Pool& pool) const;
  void seat(Pool& pool, Sequence& sequence);
  void carry(Carrying& carrying, Sequence& sequence);
  bool carry_to(Carrying& carrying, Sequence& sequence, Pool& pool);
  void come_late(Pool& pool, Sequence& sequence, std::vector<KvMove> moves);
  static void carry_cache(Carrying& carrying);
  static void carry_cache(Carrying& carrying, const Pool& before, Pool& to);
  static std::span<const TokenId> text_of_block(const Sequence& sequence, size_t block, uint32_t size);

  // Admission (scheduler_admission.cpp).
  void admit(Draft& draft, std::vector<Sequence*>& prefills, uint32_t longs);
  Admission try_admit(Draft& draft, Sequence& sequence, AdmissionPass& pass);
  Offer offer(const Pool& pool, const Sequence& sequence) const;
  static bool comes_first(const Pool& pool, const Pool& other, const std::vector<uint32_t>& more = {});
  bool may_take(const Pool& pool, const Sequence& sequence, const AdmissionPass& pass) const;
  bool within_share(const Pool& pool, const Sequence& sequence, const AdmissionPass& pass) const;
  bool is_passed_by(const Pool& pool, const Sequence& sequence, const AdmissionPass& pass) const;
  void step_ended(Lane& lane, bool well);
  const Pool* better_pool(const Pool& pool, const Sequence& sequence, const Offer& own,
                          const AdmissionPass& pass) const;
  bool uses_cache(const Sequence& sequence) const;
  void close_pools(const Sequence& sequence, AdmissionPass& pass) const;
  uint32_t holding() const;
  void start(Pool& pool, Sequence& sequence, const Offer& offer);
  static bool waits_for_shared_prefix(const Pool& pool, const Sequence& sequence, const Offer& offer);

  Result<Step> take_step(const StepResult& result);
  Status check_result(const Step& step, const StepResult& result) const;
  void accept(Sequence& sequence, SampledToken token, int64_t now_ns);
  void publish(Sequence& sequence);
  void finish(Sequence& sequence, FinishReason reason, RequestUpdate update);
  void leave(Sequence& sequence);
  void settle(Sequence& sequence);
  void give_back(Sequence& sequence, bool preempted = true);
  void fit(Sequence& sequence);
  Status no_room(const Sequence& sequence) const;
  void take_config();
  RequestUpdate update_of(const Sequence& sequence) const;

  SchedulerConfig config_;
  const Sink sink_;
  const BlockPool::Hash hash_;
  std::vector<Lane> lanes_;
  std::vector<Pool> pools_;
  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  std::set<Sequence*, RankLess> waiting_;
  std::vector<SlotId> free_slots_;  // first slots of unused groups
  SchedulerCounters counters_;
  uint64_t arrivals_ = 0;
  StepId last_step_ = 0;
  std::vector<Transfer> transfers_;  // not taken
  std::vector<KvBlock> held_;        // by hold_written()
  bool late_taken_ = false;          // one of take_transfers() is not answered: the next may share its blocks,
  bool late_failed_ = false;         // and fails with it
  uint32_t transfers_in_flight_ = 0;
  uint64_t evictions_ = 0;  // from pools, so far
  uint32_t unfinished_ = 0;
  bool catching_up_ = false;  // some may be interrupted
};

// The longest sequence that `config` can serve is config.options.max_model_len. INVALID_ARGUMENT if `request` is not
// servable.
Status check_request(const SchedulerConfig& config, const Request& request);

}  // namespace motley
