#include "planning/step_shape.hpp"

namespace motley::testing {
namespace {

motley_sample_row greedy(uint32_t position) {
  motley_sample_row sample{};
  sample.top_p = sample.repetition_penalty = 1;
  sample.position = position;
  sample.top_logprobs = MOTLEY_NONE;
  sample.out_slot = MOTLEY_NONE;
  return sample;
}

// Appends a sequence's last `rows` of `context` positions. All sequences share blocks: what they hold does not matter.
void append(StepPlan* plan, uint32_t rows, uint32_t context, bool prompt, bool draws) {
  const auto begin = static_cast<uint32_t>(plan->tokens.size());
  const uint32_t blocks = (context + kKvBlockSize - 1) / kKvBlockSize;
  const auto sequence = static_cast<uint64_t>(plan->sequences.size());
  for (uint32_t r = 0; r < rows; ++r) {
    plan->tokens.push_back(kFirstToken + static_cast<TokenId>(r % 64));
    plan->token_slots.push_back(MOTLEY_NONE);
    plan->positions.push_back(static_cast<int32_t>(context - rows + r));
    plan->generated.push_back(prompt ? 0 : 1);
  }
  PlanSequence made{sequence, begin, rows, context, static_cast<uint32_t>(plan->blocks.size()), blocks, 0, 0};
  made.logits_begin = static_cast<uint32_t>(plan->logit_rows.size());
  made.logits_count = draws ? 1 : 0;
  for (uint32_t b = 0; b < blocks; ++b)  // one sequence's blocks are its own
    plan->blocks.push_back(static_cast<BlockId>((sequence * blocks + b) % kKvBlocks));
  plan->sequences.push_back(made);
  if (!draws) return;
  plan->logit_rows.push_back(static_cast<int32_t>(begin + rows) - 1);
  plan->samples.push_back(greedy(context));
}

}  // namespace

StepLoad StepShape::load() const {
  StepLoad load;
  load.decode_rows = decode_rows;
  load.context = context;
  load.chunk_rows = chunk_rows;
  load.chunk_context = chunk_rows > 0 ? chunk_end - (chunk_rows - 1) / 2.0 : 0;
  load.head_rows = decode_rows + (chunk_rows > 0 && draws ? 1 : 0);
  return load;
}

StepPlan step_plan(const StepShape& shape, uint64_t epoch, StepId step) {
  StepPlan plan;
  plan.epoch = epoch;
  plan.step = step;
  for (uint32_t s = 0; s < shape.decode_rows; ++s) append(&plan, 1, shape.context, false, true);
  if (shape.chunk_rows > 0) append(&plan, shape.chunk_rows, shape.chunk_end, true, shape.draws);
  return plan;
}

}  // namespace motley::testing
