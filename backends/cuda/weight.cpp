#include "cuda/weight.hpp"

#include <cstring>

namespace motley::cuda {

namespace {

DeviceBytes upload_ids(CudaMemory& memory, const kit::Kept& kept) {
  if (kept.whole()) return {};
  std::vector<int32_t> held(static_cast<size_t>(kept.source_count()));
  for (size_t i = 0; i < held.size(); ++i) held[i] = static_cast<int32_t>(kept.kept_of(static_cast<int64_t>(i)));
  return {memory, held.data(), held.size() * sizeof(int32_t)};
}

}  // namespace

Columns cut_columns(const kit::Format& format, std::span<const motley_range> ranges) {
  Columns columns;
  const int64_t sub_blocks = format.block / format.sub_block;  // of a block
  bool whole_blocks = true;
  for (const motley_range& range : ranges) {
    whole_blocks = whole_blocks && range.begin % format.block == 0 && range.end % format.block == 0;
    for (int64_t at = range.begin; at < range.end; at += format.sub_block) {
      const int64_t block = at / format.block;
      if (columns.blocks.empty() || columns.blocks.back() != block) columns.blocks.push_back(block);
      const int64_t held = static_cast<int64_t>(columns.blocks.size()) - 1;
      columns.sub_block_of.push_back(static_cast<int32_t>(held * sub_blocks + at % format.block / format.sub_block));
    }
  }
  if (whole_blocks) columns.sub_block_of.clear();
  return columns;
}

CudaWeight::CudaWeight(CudaMemory& memory, const kit::WeightSource& source) : Weight(source) {
  if (source.uses() == MOTLEY_WEIGHT_VECTOR) {
    host_vector_.resize(static_cast<size_t>(cols));
    source.read_row(0, 0, host_vector_.data());
    data_ = DeviceBytes(memory, host_vector_.data(), host_vector_.size() * sizeof(float));
    format = MOTLEY_F32, bytes = host_vector_.size() * sizeof(float);
    return;
  }
  if (source.wanted_format() != source.format().dtype)
    kit::fail(MOTLEY_UNIMPLEMENTED, "weight %s: this device does not re-quantise", source.name());
  const kit::Format& form = source.format();
  format = form.dtype;
  view_.rows = rows, view_.cols = cols;
  if (source.whole()) {
    view_.row_bytes = form.row_bytes(cols);
    bytes = static_cast<uint64_t>(experts * rows * view_.row_bytes);
    data_ = DeviceBytes(memory, source.row_data(0, 0), bytes);
  } else {
    const Columns columns = cut_columns(form, source.col_ranges());
    view_.row_bytes = static_cast<int64_t>(columns.blocks.size()) * form.bytes;
    bytes = static_cast<uint64_t>(experts * rows * view_.row_bytes);
    std::vector<std::byte> held(bytes);
    std::byte* to = held.data();
    for (int64_t e = 0; e < experts; ++e) {
      for (int64_t r = 0; r < rows; ++r) {
        const std::byte* from = source.row_data(e, r);
        for (const int64_t block : columns.blocks) {
          std::memcpy(to, from + block * form.bytes, static_cast<size_t>(form.bytes));
          to += form.bytes;
        }
      }
    }
    data_ = DeviceBytes(memory, held.data(), bytes);
    sub_block_of_ = DeviceBytes(memory, columns.sub_block_of.data(), columns.sub_block_of.size() * sizeof(int32_t));
  }
  row_of_ = source.uses() & MOTLEY_WEIGHT_GATHER ? upload_ids(memory, kept_rows) : DeviceBytes();
  expert_of_ = upload_ids(memory, kept_experts);
  view_.data = data_.as<uint8_t>();
  view_.sub_block_of = sub_block_of_.as<int32_t>();
  view_.row_of = row_of_.as<int32_t>(), view_.expert_of = expert_of_.as<int32_t>();
  view_.source_rows = kept_rows.source_count(), view_.source_experts = kept_experts.source_count();
}

}  // namespace motley::cuda
