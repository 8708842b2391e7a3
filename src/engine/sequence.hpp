// Sequence: one request on its way through the scheduler, and how its rows and samples are written into a step plan.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/block_pool.hpp"
#include "engine/request.hpp"

namespace motley {

// When what happened to a request, by the engine's clock; 0 = not yet.
struct SequenceTimes {
  int64_t arrival_ns = 0;
  int64_t first_scheduled_ns = 0;
  int64_t first_token_ns = 0;
  int64_t last_token_ns = 0, previous_token_ns = 0;  // of the newest token and of the one before
};

class Sequence {
 public:
  enum class State {
    kWaiting,  // holds nothing
    kRunning,  // holds blocks and slots
    kLeaving,  // finished or preempted; holds them until its last step under way is done
    kMoving,   // its KV goes to another pool, or comes late; holds blocks there, and where it was, and runs nowhere
  };

  // max_output: tokens it may generate, after all limits. Takes request.prompt.
  Sequence(Request from, uint32_t max_output, uint64_t arrival, int64_t now_ns);

  RequestId id() const { return request.id; }
  uint32_t prompt_length() const { return prompt_length_; }
  uint32_t max_output() const { return max_output_; }
  // Tokens drawn or being drawn, the prompt included.
  uint32_t total() const { return static_cast<uint32_t>(tokens.size()) + unknown; }
  uint32_t known_output() const { return static_cast<uint32_t>(tokens.size()) - prompt_length_; }
  bool all_drawn() const { return total() - prompt_length_ >= output_room; }
  // Rows that must run before the next token can be drawn.
  uint32_t rows_missing() const { return total() - computed; }
  bool is_end(TokenId token) const;

  // Appends rows [computed, computed + count) and, if they end at total(), the sample of the next token, and moves
  // `computed` and `unknown` on. `slots_each` slots from slot_base on are the sequence's own; 0 = no slots.
  // True if a token is drawn.
  bool append_rows(StepPlan& plan, uint32_t count, uint32_t block_size, uint32_t slots_each);
  // Back to waiting as if it had never run: its known text stays, whatever it held is gone with the pool.
  void forget_progress();
  // The oldest unknown token has become known.
  void learn(TokenId token);

  Request request;
  SequenceTimes times;
  std::vector<TokenId> tokens;  // the prompt and the known output
  std::vector<BlockId> blocks;
  const uint64_t arrival;  // rank; kept across preemption and loss
  uint32_t output_room;    // of max_output(), what the limits in force allow; less only once they have shrunk
  State state = State::kWaiting;
  bool finished = false;
  bool draining = false;    // kLeaving with steps under way, or kMoving from a pool
  bool prefilling = false;  // rows of known text are still missing
  bool admitted_before = false;
  bool interrupted = false;    // its executor was replaced while it ran, and its known text is not computed again yet
  bool broken = false;         // a step of it failed: its KV is not to be shared
  uint32_t unknown = 0;        // tokens that steps under way draw
  uint32_t computed = 0;       // positions whose rows have been submitted
  uint32_t committed = 0;      // positions whose rows have run
  uint32_t published = 0;      // leading blocks whose content is in the prefix cache
  ChainId chain = kChainRoot;  // of those
  uint32_t in_flight = 0;      // steps under way with rows of it
  uint32_t cached_tokens = 0;  // prompt tokens found in the prefix cache when first admitted
  SlotId slot_base = MOTLEY_NONE;
  uint32_t pool = 0;                 // of the blocks
  std::vector<BlockId> next_blocks;  // in kMoving
  uint32_t next_pool = 0;
  uint32_t lane = 0;  // of its last step
  StepId last_step = 0;

 private:
  bool penalised() const;
  SlotId slot_of(uint32_t output, uint32_t slots_each) const;
  void append_sample(StepPlan& plan, uint32_t slots_each);
  void build_counts();
  void build_biases();

  const uint32_t prompt_length_;
  const uint32_t max_output_;
  std::vector<motley_token_count> counts_;       // ascending ids; empty unless a penalty is set
  std::vector<motley_token_bias> biases_;        // the request's own, ascending ids
  std::vector<motley_token_bias> early_biases_;  // the same with end and stop tokens forbidden; while below min_tokens
};

}  // namespace motley
