#include "runtime/flight.hpp"

namespace motley {

void Flight::prepare(uint32_t block_size, uint32_t slots) {
  kv_slots_.resize(plan.tokens.size());
  seq_row_begin_.push_back(0);
  seq_block_begin_.push_back(0);
  for (const PlanSequence& sequence : plan.sequences) {
    const BlockId* blocks = plan.blocks.data() + sequence.block_begin;
    for (uint32_t i = 0; i < sequence.row_count; ++i) {
      const uint32_t position = sequence.context - sequence.row_count + i;
      kv_slots_[sequence.row_begin + i] = static_cast<int32_t>(
          static_cast<uint32_t>(blocks[position / block_size]) * block_size + position % block_size);
    }
    seq_row_begin_.push_back(sequence.row_begin + sequence.row_count);
    seq_context_.push_back(static_cast<int32_t>(sequence.context));
    seq_blocks_.insert(seq_blocks_.end(), blocks, blocks + sequence.block_count);
    seq_block_begin_.push_back(static_cast<uint32_t>(seq_blocks_.size()));
  }
  batch.struct_size = sizeof batch;
  batch.rows = static_cast<uint32_t>(plan.tokens.size());
  batch.token_ids = plan.tokens.data();
  batch.token_slots = plan.token_slots.data();
  batch.positions = plan.positions.data();
  batch.kv_slots = kv_slots_.data();
  batch.generated = plan.generated.data();
  batch.seqs = static_cast<uint32_t>(plan.sequences.size());
  batch.seq_row_begin = seq_row_begin_.data();
  batch.seq_context = seq_context_.data();
  batch.seq_block_begin = seq_block_begin_.data();
  batch.blocks = seq_blocks_.data();
  batch.head_row_count = static_cast<uint32_t>(plan.logit_rows.size());
  batch.head_rows = plan.logit_rows.data();
  batch.samples = plan.samples.data();
  batch.counts = plan.counts.data();
  batch.pending = plan.pending.data();
  batch.biases = plan.biases.data();
  batch.slot_count = slots;
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
