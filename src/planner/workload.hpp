// The load that a plan is made for, and the steps that it makes. Values.
//
// C sequences are in flight; each has S prompt tokens, fed in n = ceil(S / chunk) chunks, and N generated ones. So it
// takes part in n + N steps, of which N give a token: D = C N / (N + n) sequences decode in a step, and a share q of
// the steps carries a chunk besides. With M micro-batches each step has D / M of those rows. Where chunks come faster
// than one a step, decode starves and D is what one chunk a step feeds.
// Chunks are of request.chunk_rows, or *even*: so small that every step carries one. Then all steps are alike, which a
// pipeline needs: behind a long step its short successor waits at every stage.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "base/status.hpp"
#include "planner/model_shape.hpp"

namespace motley {

enum class Objective {
  kThroughput,  // output tokens/s of all sequences
  kLatency      // the time of one request that is alone
};

struct KvOptions {
  uint32_t block_size = 16;
  int32_t dtype = 0;           // motley_dtype, handed through to the placement
  double element_bytes = 2;    // of a stored key or value element, scales included
  uint64_t bytes = 0;          // of all pools together; 0 = what the load needs, or default_pool_bytes
  uint32_t max_model_len = 0;  // positions that one sequence may need; 0 = as much of the load as fits
  bool any_room = false;       // a pool need not hold a sequence
};

// What buffers and programs of a step are made for.
struct StepBuffers {
  uint32_t rows = 0, logit_rows = 0;  // of a step, at most; 0 rows = not known: each lane has step_bytes on each device
  uint32_t slots = 0;                 // for tokens of a lane
  uint64_t workspace_bytes = 0;       // of programs: once a device, whatever it has parts of
};

// Of a device that runs the whole model: the residual stream, logits, slots, two sets of results, and the workspace.
uint64_t step_bytes(const StepBuffers& buffers, int64_t hidden, int64_t vocab);
// Of one set of results.
uint64_t result_bytes(const StepBuffers& buffers);

struct PlanRequest {
  Objective objective = Objective::kThroughput;
  double ttft_ms_max = 0, tpot_ms_max = 0;  // 0 = none asked for
  uint32_t concurrency = 16, prompt_len = 512, output_len = 128;
  uint32_t chunk_rows = 512;                                      // of a prompt in one step, at most
  uint32_t tensor_parallel_size = 0, pipeline_parallel_size = 0;  // 0 = free
  bool use_all_devices = false;
  uint64_t step_bytes = 0;  // of every device, beside weights and KV, at most; 0 = by formula (memory_model.hpp)
  StepBuffers buffers;      // by which parts of lanes are counted
  KvOptions kv;
};

// One step, or one micro-batch of it.
struct StepLoad {
  double decode_rows = 1, context = 0;       // each reads `context` positions
  double chunk_rows = 0, chunk_context = 0;  // of a prompt; positions that each reads on average
  double head_rows = 1;                      // whose logits are asked for

  double rows() const { return decode_rows + chunk_rows; }
  // Positions read by the rows that decode, and by those of a chunk, in a layer that sees `window` of them (0: all).
  double decode_positions(uint32_t window) const { return decode_rows * std::min(context, limit(window)); }
  double chunk_positions(uint32_t window) const { return chunk_rows * std::min(chunk_context, limit(window)); }

 private:
  static double limit(uint32_t window) { return window == 0 ? 1e300 : window; }
};

struct SteadyLoad {
  double decoding = 1;     // D
  double chunk_share = 0;  // q: of the micro-batches that carry a chunk
  double chunks = 1;       // n
  StepLoad decode, mixed;
  double mean(double decode_ns, double mixed_ns) const {
    return (1 - chunk_share) * decode_ns + chunk_share * mixed_ns;
  }
};

enum class Chunks { kWhole, kEven };

// concurrency >= 1, micro_batches >= 1.
SteadyLoad steady_load(const PlanRequest& request, uint32_t concurrency, uint32_t micro_batches, Chunks chunks);

// Of one request alone: `mixed` is its chunk, `decode` its step.
SteadyLoad lone_load(const PlanRequest& request);

// Positions that the pool must hold for one sequence, and for all of the load.
uint64_t least_kv_tokens(const ModelShape& shape, const PlanRequest& request);
uint64_t load_kv_tokens(const ModelShape& shape, const PlanRequest& request);

// The greatest concurrency that is tried and that so many KV positions hold: one of 1 ... 16, then by steps of 1/8, and
// the request's own. Plans are compared, and bounded, at these alone.
uint32_t held_concurrency(const ModelShape& shape, const PlanRequest& request, uint64_t kv_tokens);
std::vector<uint32_t> concurrencies(const PlanRequest& request);
// Numbers of micro-batches that are tried.
std::vector<uint32_t> micro_batches(uint32_t concurrency);

Status check_request(const PlanRequest& request);

}  // namespace motley
