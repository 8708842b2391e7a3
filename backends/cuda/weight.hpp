// Weights on the GPU: tiles of the formats that have them (products/packed.cuh), else the file's blocks as they are.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/memory.hpp"
#include "kit/memory.hpp"

namespace motley::cuda {

// What of a file's row is kept: blocks, in this order, and, where a cut falls inside one, which of the held sub-blocks
// each kept sub-block is.
struct Columns {
  std::vector<int64_t> blocks;        // of the file's row
  std::vector<int32_t> sub_block_of;  // empty: kept elements are the held ones
};
Columns cut_columns(const kit::Format& format, std::span<const motley_range> ranges);

// A weight as kernels see it.
struct WeightView {
  const uint8_t* data = nullptr;
  int64_t row_bytes = 0, rows = 0, cols = 0;  // row_bytes: of 16 rows if tiled
  bool tiled = false;
  bool streams = false;  // products/stream.hpp serves it
  bool direct = false;   // rows that products/library.hpp takes as they are
  int64_t expert_bytes = 0;
  const int32_t* sub_block_of = nullptr;
  // By the file's id: the held row or expert, -1 for one that is another shard's; null: all are held.
  const int32_t *row_of = nullptr, *expert_of = nullptr;
  int64_t source_rows = 0, source_experts = 0;
};

class CudaWeight : public kit::Weight {
 public:
  // streaming: this GPU runs the kernels of products/stream.hpp.
  CudaWeight(CudaMemory& memory, const kit::WeightSource& source, bool streaming);
  const float* vector() const override { return host_vector_.empty() ? nullptr : data_.as<float>(); }
  // A VECTOR weight as it was before it went to the GPU.
  const std::vector<float>& host_vector() const { return host_vector_; }
  const WeightView& view() const { return view_; }

 private:
  void hold(CudaMemory& memory, const kit::WeightSource& source);
  void make_tiles(CudaMemory& memory);
  kit::Allocation tiles_;
  DeviceBytes data_, sub_block_of_, row_of_, expert_of_;
  std::vector<float> host_vector_;
  WeightView view_;
};

}  // namespace motley::cuda
