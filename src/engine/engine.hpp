// Engine: owns the requests, decides which tokens run in each step, and tells callers what came out.
//
// One thread owns all state; submit, abort, finish, drain and stats are safe from any thread and never wait for a step.
// Step n + 1 is planned and submitted while n runs (Executor lookahead). Idle, the thread sleeps.
//
// Executors may be replaced. A lost one (a step came back UNAVAILABLE or DEADLINE_EXCEEDED) is replaced by what
// RecoverFn gives, a healthy one by what replace() is given. Either way the engine stops planning, waits until every
// step under way has come back, calls the function on a thread of its own, and begins anew with the new executor: every
// request waits again with its rank and is prefilled with its prompt and the tokens it has. A healthy one's KV goes on
// instead: where pools lie in the same memory as the new one's it stays; else it is saved before the function is
// called, blocks that are full while steps still run, and loaded into the new one, as far as there is room. Requests
// whose KV would hold up the others for longer than kv_pause_ns get it beside the steps. What requests hear is the same
// as without the replacement, later; steps of the lost executor count up to the first that failed. Meanwhile requests
// may be submitted (they queue) and ended.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/clock.hpp"
#include "base/status.hpp"
#include "base/trace.hpp"
#include "engine/executor.hpp"
#include "engine/request.hpp"

namespace motley {

enum class SchedulingPolicy { kFcfs, kPriority };

struct EngineOptions {
  uint32_t max_model_len = 0;           // positions of one sequence; 0 = what the executor and its pool allow
  uint32_t max_num_seqs = 128;          // running at once
  uint32_t max_num_batched_tokens = 0;  // rows of one step of a lane; 0 = chosen (step_budget.hpp)
  // Long prompts that are computed at once: those of which more than an equal share of a step's rows is left. Shorter
  // ones pass them, as many as fit into a step.
  uint32_t max_concurrent_prefills = 4;  // in each KV pool
  bool enable_prefix_caching = true;
  bool enable_chunked_prefill = true;
  SchedulingPolicy policy = SchedulingPolicy::kFcfs;
  size_t queue_limit = 0;  // waiting requests; 0 = limits::kQueuedRequestsMax
  // Of the KV that goes to another executor, as much is loaded before a step runs as takes about so long.
  int64_t kv_pause_ns = INT64_MAX;
};

// A histogram of one quantity, cumulative since start (Prometheus shape).
struct Histogram {
  std::vector<double> bounds;    // upper bounds, ascending
  std::vector<uint64_t> counts;  // bounds.size() + 1, not cumulated; the last is +Inf
  double sum = 0;
  explicit Histogram(std::vector<double> upper_bounds = {})
      : bounds(std::move(upper_bounds)), counts(bounds.size() + 1, 0) {}
  void observe(double value);
  uint64_t total() const;
};

// Gives the executor that takes over, which outlives the engine or its own replacement. Called on a thread of its own;
// may take its time, and must not call the engine. No step is under way at the earlier executor, and once the function
// has succeeded the engine does not touch that one again: the function may destroy it. The new one has a later epoch
// and the same vocabulary; it may have other limits (a request that they leave no room ends with RESOURCE_EXHAUSTED).
// Null: the earlier one has ended, and none could be made; so does the engine.
using ReplaceFn = std::function<Result<Executor*>()>;
// The same for an executor that was lost with `why`. A failure ends the engine.
using RecoverFn = std::function<Result<Executor*>(const Status& why)>;

struct KvPoolStats {
  uint32_t blocks_total = 0, blocks_used = 0;  // used: held by a request (cached-only blocks are free)
  std::vector<uint32_t> most_used;             // of each section, at once, since the executor serves
};
struct LaneStats {
  uint64_t steps = 0, rows = 0;  // rows: without padding
};

// A snapshot of counters and gauges.
struct EngineStats {
  uint32_t running = 0, waiting = 0, moving = 0;     // moving: their KV is, counted nowhere else
  uint32_t kv_blocks_total = 0, kv_blocks_used = 0;  // of all pools
  std::vector<KvPoolStats> pools;                    // of the executor in service
  std::vector<LaneStats> lanes;                      // by number, whichever executor had them
  uint64_t prefix_queries = 0, prefix_hits = 0;      // tokens
  uint64_t preemptions = 0;
  uint64_t prompt_tokens = 0, generated_tokens = 0, steps = 0;
  uint64_t prompt_tokens_cached = 0;  // those of prompt_tokens found in the prefix cache; the others were computed
  uint64_t recomputed_tokens = 0;     // that were computed again, after a preemption or a replacement
  uint64_t recoveries = 0, replacements = 0;         // executors that took over: from a lost one, and by replace()
  uint64_t kv_blocks_moved = 0, kv_bytes_moved = 0;  // bytes: that were written, copies included
  uint64_t finished_stop = 0, finished_length = 0, finished_abort = 0, finished_error = 0;
  Histogram prefill_computed_tokens_per_request;  // prompt tokens that were not found in the prefix cache
  Histogram pause_s;  // of either: from the last step planned for the one executor to the first for the next
  Histogram iteration_tokens, prompt_tokens_per_request, generated_tokens_per_request, max_tokens_per_request;
  Histogram ttft_s, inter_token_s, e2e_s, queue_s, prefill_s, decode_s, inference_s, time_per_output_token_s;
};

class Engine {
 public:
  // `executor`, `clock` and `trace` (null: none) are borrowed and outlive the engine (the executor: or its
  // replacement). Without `recover` the loss of the executor ends the engine.
  static Result<std::unique_ptr<Engine>> create(Executor& executor, const EngineOptions& options,
                                                const Clock& clock = system_clock(), RecoverFn recover = nullptr,
                                                Trace* trace = nullptr);
  ~Engine();  // aborts what is left, then joins; waits for a function that makes an executor just now

  // The longest sequence this engine serves, after all limits of the executor in service.
  uint32_t max_model_len() const;
  EngineOptions options() const;  // with zeros resolved, for the executor in service

  // INVALID_ARGUMENT: empty prompt, prompt beyond max_model_len - 1, ids out of range, bad parameters.
  // RESOURCE_EXHAUSTED: queue full. UNAVAILABLE: draining. On success every request gets exactly one final update.
  Result<RequestId> submit(Request request);
  // Ends a request within one step; its final update says kAborted. Unknown ids are ignored.
  void abort(RequestId id);
  // The same for a request that its caller saw come to its end, at a stop string: its final update says kStop, and it
  // is counted and timed like one that ended with a stop token. Of finish() and abort() the first to come counts.
  void finish(RequestId id);
  // Refuses new requests from now on; the future is ready when none is left.
  Future<bool> drain();
  // Has another executor take over, after replacements asked for earlier. Ready with OK once it serves; if `make`
  // fails, with its failure, and the earlier executor goes on serving. RESOURCE_EXHAUSTED: too many wait; UNAVAILABLE:
  // the engine has ended. `pools`: of the executor to come, where they are known by now; what lies in their memory
  // already is not saved.
  Future<Status> replace(ReplaceFn make, std::vector<KvPoolDescription> pools = {});
  // Has `work` run while no step is under way, on a thread of its own and after what was asked for earlier; the
  // executor then goes on where it was, and requests notice nothing but the wait. Ready with what `work` answered.
  // Errors and duties of `work` as for replace().
  Future<Status> between_steps(std::function<Status()> work);
  EngineStats stats() const;
  // An error that ended the engine (every later submit answers it), or OK.
  Status health() const;
  // Why the steps of a lane fail, where several did on end and none of it has succeeded since (step_trouble.hpp), or
  // OK. Later requests are tried all the same.
  Status trouble() const;

 private:
  class Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace motley
