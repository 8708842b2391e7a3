// Executor: the line between WHAT runs (engine) and WHERE (runtime, cluster).
//
// Everything that crosses is a flat value, stamped with (epoch, step), fit to be written to a wire. The engine defines
// this interface; the runtime implements it over devices, the cluster over workers, tests over a script.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/future.hpp"
#include "base/ids.hpp"
#include "base/status.hpp"
#include "engine/kv_contents.hpp"
#include "motley/types.h"

namespace motley {

// The KV blocks of one pool. Ids run from 0 to blocks - 1, in each pool anew.
struct KvPoolDescription {
  uint32_t block_size = 0;  // positions
  uint32_t blocks = 0;
  // Where it lies in several sections: the first block of each but the first section, ascending. They have owners of
  // their own, and a sequence that has a block there meets them in every step.
  std::vector<uint32_t> section_begins = {};
  // The memory that it lies in, of all its owners, by numbers that no other memory ever has. A pool in the same memory
  // as one of the executor before has its contents. Empty: nobody knows.
  std::vector<uint64_t> memory = {};
  // Where every pool has one: of all sequences, waiting ones among them, the part that this one gets, as weights: it
  // takes no more while the others have theirs. Else (all 0) a sequence comes to the first pool that has room, by the
  // preference of the lanes.
  double share = 0;
};

// Predicted time of a step: fixed + rows * per_row + (sum of KV positions read) * per_context. Filled from measurement;
// all zero while nothing is known.
struct StepCost {
  double fixed_ns = 0, per_row_ns = 0, per_context_ns = 0;
  double predict_ns(double rows, double context) const {
    return fixed_ns + rows * per_row_ns + context * per_context_ns;
  }
};

// Which rows a lane runs. kPrefill: those of text that is known, up to the row that draws the sequence's next token
// (after a preemption or a loss: of its generated tokens, too). kDecode: those that come after, one for each token.
enum class LaneRole : uint8_t { kBoth, kPrefill, kDecode };

// A way through the stages. Its steps run one behind the other in the order of submission, and beside those of other
// lanes.
struct LaneDescription {
  uint32_t pool = 0;  // index into ExecutorDescription::pools; lanes may share one (the tightest stage bounds it)
  LaneRole role = LaneRole::kBoth;
  StepCost cost;
  uint32_t rows_max = 0;          // of one step
  std::vector<uint32_t> buckets;  // row counts that cost no padding, ascending; empty = any
  uint32_t lookahead = 0;         // further steps of the same sequence that may be submitted before the first is done
  uint32_t pipeline = 1;          // steps of disjoint sequences that may be under way together
  // Of a sequence's known text in a step beside rows behind it, at most, and of one sequence's alone unless more wait
  // than decode; of a lane that only prefills: of a whole step. 0 = any.
  uint32_t chunk_rows = 0;
};

struct ExecutorDescription {
  Epoch epoch = 0;
  std::vector<KvPoolDescription> pools;
  std::vector<LaneDescription> lanes;  // the preferred one first
  uint32_t vocab_size = 0;
  uint32_t positions_max = 0;  // longest sequence
  uint32_t slots = 0;          // token slots; ids 0 .. slots - 1
  bool moves_kv = false;       // save_kv() and load_kv() are there
};

// One sequence's part of a step: rows [row_begin, row_begin + row_count) at positions context - row_count .. context
// - 1.
struct PlanSequence {
  uint64_t sequence = 0;
  uint32_t row_begin = 0, row_count = 0;
  uint32_t context = 0;                         // KV positions visible to the last row, itself included
  uint32_t block_begin = 0, block_count = 0;    // into StepPlan::blocks; covers at least `context` positions
  uint32_t logits_begin = 0, logits_count = 0;  // into StepPlan::logit_rows
};

// Which tokens run. Row r: tokens[r], or, where token_slots[r] >= 0, the token that an earlier step of the same lane
// put in that slot.
struct StepPlan {
  Epoch epoch = 0;
  StepId step = 0;
  uint32_t lane = 0;
  std::vector<TokenId> tokens;
  std::vector<SlotId> token_slots;
  std::vector<int32_t> positions;
  std::vector<uint8_t> generated;  // 0 a prompt row, 1 a generated one
  std::vector<PlanSequence> sequences;
  std::vector<BlockId> blocks;
  std::vector<int32_t> logit_rows;         // row indices, ascending
  std::vector<motley_sample_row> samples;  // one per logit row; ranges index the three below
  std::vector<motley_token_count> counts;
  std::vector<SlotId> pending;
  std::vector<motley_token_bias> biases;
};

struct TokenAlternative {
  TokenId id = 0;
  float logprob = 0;
};

// What a logit row became.
struct SampledToken {
  TokenId id = 0;
  float logprob = 0;                  // valid if the row asked (top_logprobs >= 0)
  std::vector<TokenAlternative> top;  // as many as asked, best first
};

struct StepResult {
  Epoch epoch = 0;
  StepId step = 0;
  Status status;                     // not OK: no token of the step counts
  std::vector<SampledToken> tokens;  // one per logit row, in order
  int64_t busy_ns = 0;               // from start on the device to end
};

// Thread-safety: one thread calls; results may be set on any thread. Futures of one lane become ready in step order,
// those of different lanes in any. A sequence has steps under way in one lane at a time, and its blocks in one pool.
// Destroying an executor waits for the steps under way.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual ExecutorDescription describe() const = 0;
  // Never blocks. Steps of a lane run in the order of submission. A plan that breaks the contract (ids out of range, a
  // step beyond the depths) gives a result with INVALID_ARGUMENT.
  virtual Future<StepResult> submit(StepPlan plan) = 0;

  // KV blocks to and from the host's memory. Both block, on any thread but the one that submits; steps may be
  // under way that write none of what is saved, and touch none of what is loaded; both end before the executor does.
  // UNAVAILABLE or DEADLINE_EXCEEDED: a device is lost, and so says every later step.

  // A copy of blocks, each named once, the most important first: where the host has no memory for all, the others are
  // left out.
  virtual Result<KvContents> save_kv(std::vector<KvBlock> blocks);
  // Blocks of this executor become what `contents` has of another's, or of its own. Shared: a device that hangs may
  // read it still. FAILED_PRECONDITION: the contents do not fit.
  virtual Result<KvLoaded> load_kv(std::shared_ptr<const KvContents> contents, std::vector<KvMove> moves);
};

inline Result<KvContents> Executor::save_kv(std::vector<KvBlock>) {
  return error(MOTLEY_UNIMPLEMENTED, "this executor's KV does not move");
}
inline Result<KvLoaded> Executor::load_kv(std::shared_ptr<const KvContents>, std::vector<KvMove>) {
  return error(MOTLEY_UNIMPLEMENTED, "this executor's KV does not move");
}

}  // namespace motley
