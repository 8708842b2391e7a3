#include "cuda/weight.hpp"

#include <cstring>
#include <utility>

#include "cuda/products/pack.hpp"

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

// The kept blocks as the file has them.
void CudaWeight::hold(CudaMemory& memory, const kit::WeightSource& source) {
  const kit::Format& form = source.format();
  if (source.whole()) {
    view_.row_bytes = form.row_bytes(cols);
    bytes = static_cast<uint64_t>(experts * rows * view_.row_bytes);
    data_ = DeviceBytes(memory, source.row_data(0, 0), bytes);
    return;
  }
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

// In place of the blocks; not where a cut leaves parts of blocks. Both are there for a moment.
void CudaWeight::make_tiles(CudaMemory& memory) {
  const int64_t tile = tile_bytes(format);
  if (tile == 0 || sub_block_of_.as<int32_t>() || cols == 0 || rows == 0) return;
  const int64_t row_of_tiles = tiles_across(cols) * tile;
  const auto all = static_cast<uint64_t>(experts * tiles_down(rows) * row_of_tiles);
  tiles_ = kit::Allocation(memory, all);
  cuda::make_tiles(format, data_.as<uint8_t>(), view_.row_bytes, rows, cols, experts,
                   reinterpret_cast<uint8_t*>(tiles_.data()));
  data_ = DeviceBytes();
  bytes = all;
  view_.row_bytes = row_of_tiles, view_.tiled = true;
  view_.expert_bytes = tiles_down(rows) * row_of_tiles;
}

CudaWeight::CudaWeight(CudaMemory& memory, const kit::WeightSource& source, bool streaming) : Weight(source) {
  if (source.uses() == MOTLEY_WEIGHT_VECTOR) {
    host_vector_.resize(static_cast<size_t>(cols));
    source.read_row(0, 0, host_vector_.data());
    data_ = DeviceBytes(memory, host_vector_.data(), host_vector_.size() * sizeof(float));
    format = MOTLEY_F32, bytes = host_vector_.size() * sizeof(float);
    return;
  }
  if (source.wanted_format() != source.format().dtype)
    kit::fail(MOTLEY_UNIMPLEMENTED, "weight %s: this device does not re-quantise", source.name());
  format = source.format().dtype;
  view_.rows = rows, view_.cols = cols;
  hold(memory, source);
  view_.expert_bytes = rows * view_.row_bytes;
  if (streaming && source.uses() & MOTLEY_WEIGHT_MATMUL) make_tiles(memory);
  row_of_ = source.uses() & MOTLEY_WEIGHT_GATHER ? upload_ids(memory, kept_rows) : DeviceBytes();
  expert_of_ = upload_ids(memory, kept_experts);
  view_.data = view_.tiled ? reinterpret_cast<const uint8_t*>(tiles_.data()) : data_.as<uint8_t>();
  view_.sub_block_of = sub_block_of_.as<int32_t>();
  view_.row_of = row_of_.as<int32_t>(), view_.expert_of = expert_of_.as<int32_t>();
  view_.direct = (format == MOTLEY_BF16 || format == MOTLEY_F16) && !view_.sub_block_of && cols % 8 == 0;
  view_.streams = streaming && (view_.tiled || view_.direct);
  view_.source_rows = kept_rows.source_count(), view_.source_experts = kept_experts.source_count();
}

}  // namespace motley::cuda
