#include "runtime/step_check.hpp"

#include <cmath>

namespace motley {
namespace {

Status check_rows(const StepPlan& plan, const ExecutorDescription& description) {
  for (size_t r = 0; r < plan.tokens.size(); ++r) {
    const SlotId slot = plan.token_slots[r];
    if (slot >= static_cast<SlotId>(description.slots))
      return invalid_argument("row {}: slot {} out of range", r, slot);
    const TokenId token = plan.tokens[r];
    if (slot < 0 && (token < 0 || token >= static_cast<TokenId>(description.vocab_size))) {
      return invalid_argument("row {}: token {} out of range", r, token);
    }
    const int32_t position = plan.positions[r];
    if (position < 0 || position >= static_cast<int32_t>(description.positions_max)) {
      return invalid_argument("row {}: position {} out of range", r, position);
    }
  }
  return ok_status();
}

Status check_sequences(const StepPlan& plan, const KvPoolDescription& pool) {
  uint64_t row = 0;
  for (const PlanSequence& sequence : plan.sequences) {
    if (sequence.row_begin != row || sequence.row_count == 0 || sequence.row_count > sequence.context) {
      return invalid_argument("sequence {}: rows are not contiguous", sequence.sequence);
    }
    row += sequence.row_count;
    if (row > plan.tokens.size()) return invalid_argument("sequence {}: rows out of range", sequence.sequence);
    for (uint32_t i = 0; i < sequence.row_count; ++i) {
      const uint32_t expected = sequence.context - sequence.row_count + i;
      if (plan.positions[sequence.row_begin + i] != static_cast<int32_t>(expected)) {
        return invalid_argument("sequence {}: row {} is not at position {}", sequence.sequence, i, expected);
      }
    }
    const uint64_t block_end = uint64_t{sequence.block_begin} + sequence.block_count;
    if (block_end > plan.blocks.size() || uint64_t{sequence.block_count} * pool.block_size < sequence.context) {
      return invalid_argument("sequence {}: its blocks do not cover its context", sequence.sequence);
    }
  }
  if (row != plan.tokens.size()) return invalid_argument("{} rows belong to no sequence", plan.tokens.size() - row);
  for (const BlockId block : plan.blocks) {
    if (block < 0 || static_cast<uint32_t>(block) >= pool.blocks)
      return invalid_argument("block {} out of range", block);
  }
  return ok_status();
}

bool within(uint32_t begin, uint32_t end, size_t size) { return begin <= end && end <= size; }

bool at_least(float value, float low) { return std::isfinite(value) && value >= low; }

bool parameters_in_range(const motley_sample_row& s) {
  return at_least(s.temperature, 0) && at_least(s.top_p, 0) && s.top_p <= 1 && at_least(s.min_p, 0) && s.min_p <= 1 &&
         s.top_k >= 0 && std::isfinite(s.presence_penalty) && std::isfinite(s.frequency_penalty) &&
         at_least(s.repetition_penalty, 0) && s.repetition_penalty > 0 && s.top_logprobs >= -1 &&
         s.top_logprobs <= MOTLEY_TOP_MAX;
}

bool biases_ascend(const StepPlan& plan, const motley_sample_row& sample) {
  for (uint32_t i = sample.biases_begin + 1; i < sample.biases_end; ++i) {
    if (plan.biases[i].id <= plan.biases[i - 1].id) return false;
  }
  return true;
}

Status check_samples(const StepPlan& plan, const ExecutorDescription& description) {
  for (size_t i = 0; i < plan.logit_rows.size(); ++i) {
    const int32_t row = plan.logit_rows[i];
    if (row < 0 || static_cast<size_t>(row) >= plan.tokens.size())
      return invalid_argument("logit row {} out of range", row);
    const motley_sample_row& sample = plan.samples[i];
    if (!within(sample.counts_begin, sample.counts_end, plan.counts.size()) ||
        !within(sample.pending_begin, sample.pending_end, plan.pending.size()) ||
        !within(sample.biases_begin, sample.biases_end, plan.biases.size())) {
      return invalid_argument("sample {}: a range is out of bounds", i);
    }
    if (sample.out_slot < MOTLEY_NONE || sample.out_slot >= static_cast<SlotId>(description.slots)) {
      return invalid_argument("sample {}: slot {} out of range", i, sample.out_slot);
    }
    if (!parameters_in_range(sample)) return invalid_argument("sample {}: a parameter is out of range", i);
    if (!biases_ascend(plan, sample)) return invalid_argument("sample {}: bias ids do not ascend", i);
  }
  for (const auto& count : plan.counts) {
    if (count.id < 0 || count.id >= static_cast<TokenId>(description.vocab_size) || count.in_output < 0) {
      return invalid_argument("penalty on token {} out of range", count.id);
    }
  }
  for (const auto& bias : plan.biases) {
    if (bias.id < 0 || bias.id >= static_cast<TokenId>(description.vocab_size)) {
      return invalid_argument("bias on token {} out of range", bias.id);
    }
  }
  for (const SlotId slot : plan.pending) {
    if (slot < 0 || slot >= static_cast<SlotId>(description.slots))
      return invalid_argument("pending slot {} out of range", slot);
  }
  return ok_status();
}

}  // namespace

Status check_step(const StepPlan& plan, const ExecutorDescription& description, const StepLimits& limits) {
  if (plan.epoch != description.epoch) return error(MOTLEY_ABORTED, "epoch {} is over", plan.epoch);
  if (plan.lane >= description.lanes.size()) return invalid_argument("lane {} out of range", plan.lane);
  const size_t rows = plan.tokens.size();
  if (rows == 0 || rows > limits.rows) return invalid_argument("{} rows; a step takes 1 to {}", rows, limits.rows);
  if (plan.token_slots.size() != rows || plan.positions.size() != rows || plan.generated.size() != rows) {
    return invalid_argument("row arrays differ in length");
  }
  if (plan.logit_rows.size() > limits.logit_rows || plan.samples.size() != plan.logit_rows.size()) {
    return invalid_argument("{} logit rows; a step takes up to {}", plan.logit_rows.size(), limits.logit_rows);
  }
  RETURN_IF_ERROR(check_rows(plan, description));
  RETURN_IF_ERROR(check_sequences(plan, description.pools[description.lanes[plan.lane].pool]));
  return check_samples(plan, description);
}

}  // namespace motley
