#include "runtime/flight.hpp"

#include <limits>
#include <utility>

namespace motley {

void Flight::prepare(uint32_t block_size, uint32_t slots, std::span<const uint32_t> sections) {
  uint32_t blocks = 0;
  seq_row_begin_.push_back(0);
  seq_block_begin_.push_back(0);
  for (const PlanSequence& sequence : plan.sequences) {
    seq_row_begin_.push_back(sequence.row_begin + sequence.row_count);
    seq_context_.push_back(static_cast<int32_t>(sequence.context));
    seq_block_begin_.push_back(blocks += sequence.block_count);
  }
  batch.struct_size = sizeof batch;
  batch.rows = static_cast<uint32_t>(plan.tokens.size());
  batch.token_ids = plan.tokens.data();
  batch.token_slots = plan.token_slots.data();
  batch.positions = plan.positions.data();
  batch.generated = plan.generated.data();
  batch.seqs = static_cast<uint32_t>(plan.sequences.size());
  batch.seq_row_begin = seq_row_begin_.data();
  batch.seq_context = seq_context_.data();
  batch.seq_block_begin = seq_block_begin_.data();
  batch.head_row_count = static_cast<uint32_t>(plan.logit_rows.size());
  batch.head_rows = plan.logit_rows.data();
  batch.samples = plan.samples.data();
  batch.counts = plan.counts.data();
  batch.pending = plan.pending.data();
  batch.biases = plan.biases.data();
  batch.slot_count = slots;
  const bool one = sections.size() <= 1;
  BlockId first = 0, end = one ? std::numeric_limits<BlockId>::max() : static_cast<BlockId>(sections[0]);
  place(block_size, first, end, &first_);
  batch = first_.batch;
  if (one) return;
  further_.resize(sections.size() - 1);
  for (size_t s = 1; s < sections.size(); ++s) {
    first = std::exchange(end, end + static_cast<BlockId>(sections[s]));
    place(block_size, first, end, &further_[s - 1]);
  }
}

// The batch with the blocks [first, end) of the pool, counted from 0, alone.
void Flight::place(uint32_t block_size, BlockId first, BlockId end, Places* places) const {
  const auto here = [&](BlockId block) { return block >= first && block < end ? block - first : MOTLEY_NONE; };
  places->kv_slots.resize(plan.tokens.size());
  for (const PlanSequence& sequence : plan.sequences) {
    const BlockId* blocks = plan.blocks.data() + sequence.block_begin;
    for (uint32_t i = 0; i < sequence.row_count; ++i) {
      const uint32_t position = sequence.context - sequence.row_count + i;
      const BlockId block = here(blocks[position / block_size]);
      places->kv_slots[sequence.row_begin + i] =
          block < 0 ? MOTLEY_NONE
                    : static_cast<int32_t>(static_cast<uint32_t>(block) * block_size + position % block_size);
    }
    for (uint32_t b = 0; b < sequence.block_count; ++b) {
      places->blocks.push_back(here(blocks[b]));
      places->touched = places->touched || (places->blocks.back() >= 0 && b * block_size < sequence.context);
    }
  }
  places->batch = batch;
  places->batch.kv_slots = places->kv_slots.data();
  places->batch.blocks = places->blocks.data();
}

void Flight::fail(const Status& status) {
  std::lock_guard lock(mutex_);
  if (status_.ok()) status_ = status;
}

Status Flight::status() const {
  std::lock_guard lock(mutex_);
  return status_;
}

bool Flight::leave(int64_t at_ns) {
  int64_t seen = ended_ns.load();
  while (seen < at_ns && !ended_ns.compare_exchange_weak(seen, at_ns)) {
  }
  return drivers.fetch_sub(1) == 1;
}

}  // namespace motley
