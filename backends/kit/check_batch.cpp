// Batches: every index within what it indexes.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kit/check.hpp"

namespace motley::kit {

namespace {

constexpr uint32_t kListMax = 1u << 26;  // counts, pending slots, biases of a batch

template <class T>
const T* need(const T* array, uint64_t count, const char* name) {
  if (count > 0 && !array) fail(MOTLEY_INVALID_ARGUMENT, "batch: %s is null", name);
  return array;
}

void check_tokens(const motley_batch& b, int64_t vocab) {
  const int32_t* ids = need(b.token_ids, b.rows, "token_ids");
  for (uint32_t r = 0; r < b.rows; ++r) {
    const int32_t slot = b.token_slots ? b.token_slots[r] : -1;
    if (slot >= 0 ? static_cast<uint32_t>(slot) >= b.slot_count : ids[r] < 0 || ids[r] >= vocab)
      fail(MOTLEY_OUT_OF_RANGE, "batch: row %u has token %d (of %lld) from slot %d (of %u)", r, ids[r],
           static_cast<long long>(vocab), slot, b.slot_count);
  }
}

// Whether some of the sequence's blocks lie elsewhere.
bool check_blocks(const motley_batch& b, uint32_t seq, const KvPool& kv) {
  bool holes = false;
  for (uint32_t i = b.seq_block_begin[seq]; i < b.seq_block_begin[seq + 1]; ++i) {
    if (b.blocks[i] == MOTLEY_NONE)
      holes = true;
    else if (b.blocks[i] < 0 || static_cast<uint32_t>(b.blocks[i]) >= kv.blocks)
      fail(MOTLEY_OUT_OF_RANGE, "batch: sequence %u names block %d of %u", seq, b.blocks[i], kv.blocks);
  }
  return holes;
}

void check_sequences(const motley_batch& b, const KvPool& kv, CheckedBatch* checked) {
  if (b.seqs > b.rows) fail(MOTLEY_INVALID_ARGUMENT, "batch: %u sequences of %u rows", b.seqs, b.rows);
  checked->row_sequence.assign(b.rows, 0);
  if (b.rows == 0) return;
  need(b.seq_row_begin, 1, "seq_row_begin");
  need(b.seq_context, 1, "seq_context");
  need(b.seq_block_begin, 1, "seq_block_begin");
  if (b.seqs == 0 || b.seq_row_begin[0] != 0 || b.seq_row_begin[b.seqs] != b.rows || b.seq_block_begin[0] != 0)
    fail(MOTLEY_INVALID_ARGUMENT, "batch: the sequences do not cover the %u rows", b.rows);
  const int64_t pool_positions = int64_t{kv.blocks} * kv.block_size;
  for (uint32_t s = 0; s < b.seqs; ++s) {
    const uint32_t begin = b.seq_row_begin[s], end = b.seq_row_begin[s + 1];
    const uint32_t blocks_begin = b.seq_block_begin[s], blocks_end = b.seq_block_begin[s + 1];
    if (end <= begin || end > b.rows || blocks_end < blocks_begin || blocks_end > kListMax)
      fail(MOTLEY_INVALID_ARGUMENT, "batch: sequence %u has rows [%u, %u) and blocks [%u, %u)", s, begin, end,
           blocks_begin, blocks_end);
    const int64_t context = b.seq_context[s];
    if (context < end - begin || context > int64_t{blocks_end - blocks_begin} * kv.block_size)
      fail(MOTLEY_OUT_OF_RANGE, "batch: sequence %u has %lld positions in %u blocks of %u", s,
           static_cast<long long>(context), blocks_end - blocks_begin, kv.block_size);
    need(b.blocks, blocks_end - blocks_begin, "blocks");
    const bool holes = check_blocks(b, s, kv);
    if (!holes && context > pool_positions)
      fail(MOTLEY_OUT_OF_RANGE, "batch: sequence %u has %lld positions in a pool of %lld", s,
           static_cast<long long>(context), static_cast<long long>(pool_positions));
    checked->holes |= holes;
    for (uint32_t r = begin; r < end; ++r) {
      const bool ascends = r == begin || b.positions[r] > b.positions[r - 1];
      if (!ascends || (r + 1 == end && b.positions[r] != context - 1))
        fail(MOTLEY_INVALID_ARGUMENT, "batch: row %u of sequence %u is at position %d of %lld", r, s, b.positions[r],
             static_cast<long long>(context));
      checked->row_sequence[r] = static_cast<int32_t>(s);
    }
  }
}

void check_list(uint32_t row, const char* name, uint32_t begin, uint32_t end, const void* array) {
  if (end < begin || end > kListMax || (end > begin && !array))
    fail(MOTLEY_INVALID_ARGUMENT, "batch: sample %u has %s [%u, %u)", row, name, begin, end);
}

void check_sample(const motley_batch& b, uint32_t h, int64_t vocab) {
  const motley_sample_row& s = b.samples[h];
  const auto at_least = [](float value, float low) { return std::isfinite(value) && value >= low; };
  if (!at_least(s.temperature, 0) || !at_least(s.top_p, 0) || s.top_p > 1 || !at_least(s.min_p, 0) || s.min_p > 1 ||
      s.top_k < 0 || !std::isfinite(s.presence_penalty) || !std::isfinite(s.frequency_penalty) ||
      !at_least(s.repetition_penalty, 0) || s.repetition_penalty == 0 || s.top_logprobs < -1 ||
      s.top_logprobs > MOTLEY_TOP_MAX)
    fail(MOTLEY_INVALID_ARGUMENT, "batch: sample %u has a parameter out of range", h);
  if (s.out_slot < MOTLEY_NONE || (s.out_slot >= 0 && static_cast<uint32_t>(s.out_slot) >= b.slot_count))
    fail(MOTLEY_OUT_OF_RANGE, "batch: sample %u writes slot %d of %u", h, s.out_slot, b.slot_count);
  check_list(h, "counts", s.counts_begin, s.counts_end, b.counts);
  check_list(h, "pending", s.pending_begin, s.pending_end, b.pending);
  check_list(h, "biases", s.biases_begin, s.biases_end, b.biases);
  for (uint32_t i = s.counts_begin; i < s.counts_end; ++i)
    if (b.counts[i].id < 0 || b.counts[i].id >= vocab || b.counts[i].in_output < 0)
      fail(MOTLEY_OUT_OF_RANGE, "batch: sample %u counts token %d of %lld", h, b.counts[i].id,
           static_cast<long long>(vocab));
  for (uint32_t i = s.pending_begin; i < s.pending_end; ++i)
    if (b.pending[i] < 0 || static_cast<uint32_t>(b.pending[i]) >= b.slot_count)
      fail(MOTLEY_OUT_OF_RANGE, "batch: sample %u waits for slot %d of %u", h, b.pending[i], b.slot_count);
  for (uint32_t i = s.biases_begin; i < s.biases_end; ++i)
    if (b.biases[i].id < 0 || b.biases[i].id >= vocab || (i > s.biases_begin && b.biases[i].id <= b.biases[i - 1].id))
      fail(MOTLEY_OUT_OF_RANGE, "batch: sample %u biases token %d: beyond the vocabulary or out of order", h,
           b.biases[i].id);
}

}  // namespace

CheckedBatch check_batch(const CheckedSegment& segment, const motley_batch& b, const BatchLimits& limits,
                         const KvPool* kv) {
  if (b.struct_size < sizeof b) fail(MOTLEY_INVALID_ARGUMENT, "batch: struct_size %u", b.struct_size);
  if (b.adapters || b.overrides) fail(MOTLEY_UNIMPLEMENTED, "batch: adapters and overrides are reserved");
  if (b.rows > limits.rows)
    fail(MOTLEY_OUT_OF_RANGE, "batch: %u rows; the program takes %lld", b.rows, static_cast<long long>(limits.rows));
  if (b.slot_count > kSlotsMax) fail(MOTLEY_OUT_OF_RANGE, "batch: %u token slots", b.slot_count);
  if (b.head_row_count > limits.rows)
    fail(MOTLEY_OUT_OF_RANGE, "batch: %u head rows; the program takes %lld", b.head_row_count,
         static_cast<long long>(limits.rows));
  need(b.generated, b.rows, "generated");
  if (segment.needs_tokens) check_tokens(b, limits.vocab);
  if (segment.needs_positions) {
    need(b.positions, b.rows, "positions");
    for (uint32_t r = 0; r < b.rows; ++r)
      if (b.positions[r] < 0) fail(MOTLEY_OUT_OF_RANGE, "batch: row %u is at position %d", r, b.positions[r]);
  }
  if (segment.needs_kv_slots) {
    need(b.kv_slots, b.rows, "kv_slots");
    for (uint32_t r = 0; r < b.rows; ++r)
      if (b.kv_slots[r] >= 0 && static_cast<uint32_t>(b.kv_slots[r]) / kv->block_size >= kv->blocks)
        fail(MOTLEY_OUT_OF_RANGE, "batch: row %u is stored at KV slot %d of %u blocks", r, b.kv_slots[r], kv->blocks);
  }
  CheckedBatch checked;
  if (segment.needs_sequences) check_sequences(b, *kv, &checked);
  if (checked.holes && !limits.holes)
    fail(MOTLEY_UNIMPLEMENTED, "batch: a block lies elsewhere, and this device does not attend partially");
  if (checked.holes && !segment.only_partial)
    fail(MOTLEY_INVALID_ARGUMENT, "batch: a block lies elsewhere, and an attention gives no log-sum-exp");
  if (segment.needs_head_rows) {
    need(b.head_rows, b.head_row_count, "head_rows");
    for (uint32_t h = 0; h < b.head_row_count; ++h)
      if (b.head_rows[h] < 0 || static_cast<uint32_t>(b.head_rows[h]) >= b.rows)
        fail(MOTLEY_OUT_OF_RANGE, "batch: head row %u is row %d of %u", h, b.head_rows[h], b.rows);
  }
  if (segment.needs_samples) {
    need(b.samples, b.head_row_count, "samples");
    for (uint32_t h = 0; h < b.head_row_count; ++h) check_sample(b, h, segment.sample_vocab);
  }
  return checked;
}

}  // namespace motley::kit
