// KV pools: memory, and the canonical form (docs/formats/kv.md).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "kit/memory.hpp"

namespace motley::kit {

// A checked motley_kv_desc.
struct KvShape {
  struct Layer {
    int32_t heads, dim, window;
    uint64_t plane_bytes, scale_bytes;  // of one block of k (and as much of v)
  };
  int32_t dtype = MOTLEY_F32;
  uint32_t block_size = 0, blocks = 0;
  std::vector<Layer> layers;
  uint64_t bytes_per_block = 0, bytes_total = 0;
  uint64_t canonical_bytes(uint32_t layer_begin, uint32_t layer_end) const;  // of one block
};

KvShape check_kv(const motley_kv_desc& desc);  // throws Error

// The block list of an export or import of layers [begin, end), after all checks; throws Error.
std::vector<int32_t> check_kv_move(const KvShape& shape, const int32_t* blocks, uint32_t count, uint32_t begin,
                                   uint32_t end, uint64_t bytes);

class KvMemory {
 public:
  KvMemory(const KvShape& shape, KvOrder order, Memory& memory);
  const KvShape& shape() const { return shape_; }
  const KvPool& pool() const { return pool_; }

 private:
  KvShape shape_;
  Allocation memory_;
  KvPool pool_;
};

// Blocks and layers are checked by the caller; the bytes are count * canonical_bytes(begin, end).
void kv_to_canonical(const KvPool&, std::span<const int32_t> blocks, uint32_t layer_begin, uint32_t layer_end,
                     std::byte* out);
void kv_from_canonical(const KvPool&, std::span<const int32_t> blocks, uint32_t layer_begin, uint32_t layer_end,
                       const std::byte* from);
// The runs of a pool in KvOrder::kPositionMajor that make up the canonical bytes, in their order.
void each_kv_run(const KvPool&, std::span<const int32_t> blocks, uint32_t layer_begin, uint32_t layer_end,
                 const std::function<void(std::byte* run, uint64_t bytes)>& each);

}  // namespace motley::kit
