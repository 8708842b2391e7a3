#include "device/worker/wire_structs.hpp"

#include <algorithm>

namespace motley::worker {
namespace {

void put_optional(Writer& writer, const std::optional<std::string>& text) {
  writer.put_text(text ? text->c_str() : nullptr);
}

template <class T>
bool length_is(const Array<T>& array, uint64_t count) {
  return !array.present || array.count == count;
}

}  // namespace

void OpenCall::encode(Writer& writer) const {
  writer.put(index);
  writer.put(threads);
  writer.put(memory_cap);
  writer.put(deterministic);
  for (const auto* text : {&cores, &cache_dir, &variant, &spec}) put_optional(writer, *text);
}

bool OpenCall::decode(Reader& reader) {
  index = reader.get<uint32_t>();
  threads = reader.get<uint32_t>();
  memory_cap = reader.get<uint64_t>();
  deterministic = reader.get<int32_t>();
  for (auto* text : {&cores, &cache_dir, &variant, &spec}) *text = reader.get_text();
  return reader.ok();
}

bool encode_weight(Writer& writer, const motley_weight_desc& desc) {
  if (desc.row_range_count > kItemsMax || desc.col_range_count > kItemsMax || desc.expert_range_count > kItemsMax) {
    return false;
  }
  writer.put_text(desc.name);
  for (const int32_t number : {desc.dtype, desc.format}) writer.put(number);
  writer.put(desc.uses);
  for (const int64_t number : {desc.experts, desc.rows, desc.cols}) writer.put(number);
  writer.put(desc.bytes);
  writer.put<uint8_t>(desc.data != nullptr);
  writer.put_array(desc.row_ranges, desc.row_range_count);
  writer.put_array(desc.col_ranges, desc.col_range_count);
  writer.put_array(desc.expert_ranges, desc.expert_range_count);
  return true;
}

bool WeightCopy::decode(Reader& reader) {
  desc.struct_size = sizeof desc;
  name = reader.get_text().value_or("");
  desc.dtype = reader.get<int32_t>();
  desc.format = reader.get<int32_t>();
  desc.uses = reader.get<uint32_t>();
  desc.experts = reader.get<int64_t>();
  desc.rows = reader.get<int64_t>();
  desc.cols = reader.get<int64_t>();
  desc.bytes = reader.get<uint64_t>();
  has_data = reader.get<uint8_t>() != 0;
  rows = reader.get_array<motley_range>(kItemsMax);
  cols = reader.get_array<motley_range>(kItemsMax);
  experts = reader.get_array<motley_range>(kItemsMax);
  return reader.ok();
}

motley_weight_desc WeightCopy::view(const void* data) const {
  motley_weight_desc out = desc;
  out.name = name.c_str();
  out.data = data;
  out.row_ranges = rows.data(), out.row_range_count = rows.count;
  out.col_ranges = cols.data(), out.col_range_count = cols.count;
  out.expert_ranges = experts.data(), out.expert_range_count = experts.count;
  return out;
}

bool encode_kv(Writer& writer, const motley_kv_desc& desc) {
  if (desc.layers > kLayersMax) return false;
  writer.put(desc.dtype);
  for (const uint32_t number : {desc.block_size, desc.blocks, desc.layers}) writer.put(number);
  for (const int32_t* array : {desc.kv_heads, desc.head_dim, desc.windows}) writer.put_array(array, desc.layers);
  return true;
}

bool KvCopy::decode(Reader& reader) {
  desc.struct_size = sizeof desc;
  desc.dtype = reader.get<int32_t>();
  desc.block_size = reader.get<uint32_t>();
  desc.blocks = reader.get<uint32_t>();
  desc.layers = reader.get<uint32_t>();
  for (auto* array : {&kv_heads, &head_dim, &windows}) *array = reader.get_array<int32_t>(kLayersMax);
  return reader.ok() && length_is(kv_heads, desc.layers) && length_is(head_dim, desc.layers) &&
         length_is(windows, desc.layers);
}

motley_kv_desc KvCopy::view() const {
  motley_kv_desc out = desc;
  out.kv_heads = kv_heads.data(), out.head_dim = head_dim.data(), out.windows = windows.data();
  return out;
}

bool encode_segment(Writer& writer, const motley_segment& segment) {
  for (const uint32_t count :
       {segment.value_count, segment.op_count, segment.input_count, segment.output_count, segment.weight_count}) {
    if (count > kItemsMax) return false;
  }
  for (const int32_t number : {segment.cut, segment.layer_begin, segment.layer_end}) writer.put(number);
  writer.put(segment.weight_count);
  writer.put(segment.hash);
  writer.put_array(segment.values, segment.value_count);
  writer.put_array(segment.ops, segment.op_count);
  writer.put_array(segment.inputs, segment.input_count);
  writer.put_array(segment.outputs, segment.output_count);
  return true;
}

bool SegmentCopy::decode(Reader& reader) {
  segment.struct_size = sizeof segment;
  segment.cut = reader.get<int32_t>();
  segment.layer_begin = reader.get<int32_t>();
  segment.layer_end = reader.get<int32_t>();
  segment.weight_count = reader.get<uint32_t>();
  segment.hash = reader.get<uint64_t>();
  values = reader.get_array<motley_value>(kItemsMax);
  ops = reader.get_array<motley_op>(kItemsMax);
  inputs = reader.get_array<int32_t>(kItemsMax);
  outputs = reader.get_array<int32_t>(kItemsMax);
  return reader.ok() && segment.weight_count <= kItemsMax;
}

motley_segment SegmentCopy::view() const {
  motley_segment out = segment;
  out.values = values.data(), out.value_count = values.count;
  out.ops = ops.data(), out.op_count = ops.count;
  out.inputs = inputs.data(), out.input_count = inputs.count;
  out.outputs = outputs.data(), out.output_count = outputs.count;
  return out;
}

bool encode_batch(Writer& writer, const motley_batch& b) {
  if (b.rows > kItemsMax || b.seqs > kItemsMax || b.head_row_count > kItemsMax) return false;
  const uint32_t blocks = b.seq_block_begin != nullptr ? b.seq_block_begin[b.seqs] : 0;
  uint32_t counts = 0, pending = 0, biases = 0;
  for (uint32_t h = 0; b.samples != nullptr && h < b.head_row_count; ++h) {
    counts = std::max(counts, b.samples[h].counts_end);
    pending = std::max(pending, b.samples[h].pending_end);
    biases = std::max(biases, b.samples[h].biases_end);
  }
  if (std::max({blocks, counts, pending, biases}) > kBatchItemsMax) return false;
  for (const uint32_t number : {b.rows, b.seqs, b.head_row_count, b.slot_count}) writer.put(number);
  for (const int32_t* array : {b.token_ids, b.token_slots, b.positions, b.kv_slots}) writer.put_array(array, b.rows);
  writer.put_array(b.generated, b.rows);
  writer.put_array(b.seq_row_begin, b.seqs + 1);
  writer.put_array(b.seq_context, b.seqs);
  writer.put_array(b.seq_block_begin, b.seqs + 1);
  writer.put_array(b.blocks, blocks);
  writer.put_array(b.head_rows, b.head_row_count);
  writer.put_array(b.samples, b.head_row_count);
  writer.put_array(b.counts, counts);
  writer.put_array(b.pending, pending);
  writer.put_array(b.biases, biases);
  return true;
}

bool BatchCopy::decode(Reader& reader) {
  batch.struct_size = sizeof batch;
  batch.rows = reader.get<uint32_t>();
  batch.seqs = reader.get<uint32_t>();
  batch.head_row_count = reader.get<uint32_t>();
  batch.slot_count = reader.get<uint32_t>();
  for (auto* array : {&token_ids, &token_slots, &positions, &kv_slots}) *array = reader.get_array<int32_t>(kItemsMax);
  generated = reader.get_array<uint8_t>(kItemsMax);
  seq_row_begin = reader.get_array<uint32_t>(kItemsMax + 1);
  seq_context = reader.get_array<int32_t>(kItemsMax);
  seq_block_begin = reader.get_array<uint32_t>(kItemsMax + 1);
  blocks = reader.get_array<int32_t>(kBatchItemsMax);
  head_rows = reader.get_array<int32_t>(kItemsMax);
  samples = reader.get_array<motley_sample_row>(kItemsMax);
  counts = reader.get_array<motley_token_count>(kBatchItemsMax);
  pending = reader.get_array<int32_t>(kBatchItemsMax);
  biases = reader.get_array<motley_token_bias>(kBatchItemsMax);
  return reader.ok() && ranges_hold();
}

bool BatchCopy::ranges_hold() const {
  const uint64_t rows = batch.rows, borders = uint64_t{batch.seqs} + 1;
  bool holds = length_is(generated, rows) && length_is(seq_row_begin, borders) && length_is(seq_block_begin, borders) &&
               length_is(seq_context, batch.seqs) && length_is(head_rows, batch.head_row_count) &&
               length_is(samples, batch.head_row_count);
  for (const auto* array : {&token_ids, &token_slots, &positions, &kv_slots}) holds = holds && length_is(*array, rows);
  for (const uint32_t border : seq_block_begin.items) holds = holds && border <= blocks.count;
  for (const motley_sample_row& row : samples.items) {
    holds =
        holds && row.counts_end <= counts.count && row.pending_end <= pending.count && row.biases_end <= biases.count;
  }
  return holds;
}

motley_batch BatchCopy::view() const {
  motley_batch out = batch;
  out.token_ids = token_ids.data(), out.token_slots = token_slots.data(), out.positions = positions.data();
  out.kv_slots = kv_slots.data(), out.generated = generated.data();
  out.seq_row_begin = seq_row_begin.data(), out.seq_context = seq_context.data();
  out.seq_block_begin = seq_block_begin.data(), out.blocks = blocks.data();
  out.head_rows = head_rows.data(), out.samples = samples.data();
  out.counts = counts.data(), out.pending = pending.data(), out.biases = biases.data();
  return out;
}

}  // namespace motley::worker
