// Any bytes, read as what crosses between a host and its worker: whatever decodes holds only ranges inside its arrays.
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>

#include "base/check.hpp"
#include "device/worker/wire_structs.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace motley::worker;

void read_batch(Reader reader) {
  BatchCopy copy;
  if (!copy.decode(reader)) return;
  const motley_batch batch = copy.view();
  CHECK(batch.token_ids == nullptr || copy.token_ids.items.size() == batch.rows, "{} tokens", batch.rows);
  CHECK(batch.generated == nullptr || copy.generated.items.size() == batch.rows, "{} rows", batch.rows);
  for (uint32_t s = 0; batch.seq_block_begin != nullptr && s <= batch.seqs; ++s) {
    CHECK(batch.seq_block_begin[s] <= copy.blocks.count, "{} of {}", batch.seq_block_begin[s], copy.blocks.count);
  }
  for (uint32_t h = 0; batch.samples != nullptr && h < batch.head_row_count; ++h) {
    const motley_sample_row& row = batch.samples[h];
    CHECK(row.counts_end <= copy.counts.count && row.pending_end <= copy.pending.count &&
              row.biases_end <= copy.biases.count,
          "row {}", h);
  }
}

void read_kv(Reader reader) {
  KvCopy copy;
  if (!copy.decode(reader)) return;
  const motley_kv_desc desc = copy.view();
  CHECK(desc.kv_heads == nullptr || copy.kv_heads.items.size() == desc.layers, "{} layers", desc.layers);
  CHECK(desc.windows == nullptr || copy.windows.items.size() == desc.layers, "{} layers", desc.layers);
}

void read_segment(Reader reader) {
  SegmentCopy copy;
  if (!copy.decode(reader)) return;
  const motley_segment segment = copy.view();
  CHECK(segment.ops == nullptr || copy.ops.items.size() == segment.op_count, "{} ops", segment.op_count);
  CHECK(segment.values == nullptr || copy.values.items.size() == segment.value_count, "{}", segment.value_count);
}

void read_weight(Reader reader) {
  WeightCopy copy;
  if (!copy.decode(reader)) return;
  const motley_weight_desc desc = copy.view(nullptr);
  CHECK(desc.row_ranges == nullptr || copy.rows.items.size() == desc.row_range_count, "{}", desc.row_range_count);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const Reader reader(std::as_bytes(std::span(data + 1, size - 1)));
  constexpr void (*kReads[])(Reader) = {read_batch, read_kv, read_segment, read_weight};
  kReads[data[0] % std::size(kReads)](reader);
  return 0;
}
