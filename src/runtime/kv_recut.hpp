// Cuts saved KV anew, for an owner with other heads or layers than those that kept it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.hpp"
#include "engine/executor.hpp"

namespace motley {

// Of a format's elements, as the canonical form has them.
struct KvForm {
  uint32_t block_size = 0;
  uint64_t element_bytes = 0;
  uint64_t scale_bytes = 0;  // of a head at a position; 0 = none

  // UNIMPLEMENTED: no format of KV.
  static Result<KvForm> of(uint32_t block_size, int32_t dtype);
  // Of a block's keys, or values, of one layer.
  uint64_t plane_bytes(uint64_t heads, uint64_t head_dim) const {
    return block_size * heads * (head_dim * element_bytes + scale_bytes);
  }
  // Of a block's layers.
  uint64_t block_bytes(uint64_t heads, std::span<const uint32_t> head_dims) const;
};

// Heads of layers, as KvSlice has them.
struct KvOwned {
  uint32_t layer_begin = 0;
  std::span<const uint32_t> head_dims, heads;
};

// How an owner's part of saved blocks of one pool is put together. Borrows the contents. Immutable.
class KvRecut {
 public:
  // Of the pool's saved blocks those whose slices begin at `place_begin`. FAILED_PRECONDITION where a head of a layer
  // was not saved, or has other dimensions.
  static Result<KvRecut> create(const KvContents& from, uint32_t pool, size_t place_begin, const KvOwned& to);
  // Bytes of one block.
  uint64_t block_bytes() const { return block_bytes_; }
  // The canonical form of the owner's part, for those of these blocks that are named by their places, counted from
  // `place_begin`. `to` has block_bytes() for each.
  void write(std::span<const size_t> places, std::span<std::byte> to) const;

 private:
  // Heads that follow one another in both.
  struct Run {
    const KvSlice* slice = nullptr;
    uint32_t layer = 0;  // of the slice
    uint32_t from = 0, to = 0, count = 0;
  };
  KvRecut(const KvContents& from, uint32_t pool, size_t place_begin, const KvOwned& to, KvForm form);
  Status add_layer(uint32_t layer);
  void write_plane(size_t layer, int plane, std::span<const size_t> places, std::byte* to) const;

  const KvContents& from_;
  const uint32_t pool_;
  const size_t place_begin_;
  const KvForm form_;
  const uint32_t layer_begin_;
  const std::vector<uint32_t> head_dims_, heads_;
  const uint64_t block_bytes_;
  std::vector<std::vector<Run>> runs_;  // by layer
};

}  // namespace motley
