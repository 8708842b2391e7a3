// KV blocks in the host's memory, on their way from one pool to another. Flat, as all that crosses executor.hpp.
#pragma once

#include <algorithm>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/ids.hpp"

namespace motley {

struct KvBlock {
  uint32_t pool = 0;  // of an executor
  BlockId block = 0;
  auto operator<=>(const KvBlock&) const = default;
};

struct KvMove {
  KvBlock from, to;  // of the executor whose contents they are; of the one that takes them
};

// What an owner keeps of a pool's blocks: its heads of its layers. Where the blocks of a pool lie with several owners
// (sections), those of an owner are neighbours among the saved ones.
struct KvSlice {
  uint32_t pool = 0;
  size_t place_begin = 0, place_end = 0;  // of KvContents::blocks
  uint32_t layer_begin = 0;
  std::vector<uint32_t> head_dims;  // [layer - layer_begin]
  std::vector<uint32_t> heads;      // as the model numbers them, in the order in which they lie
  // The canonical form (docs/formats/kv.md) of these blocks in their order, a run of `run_blocks` behind the
  // other; the last may be shorter.
  uint32_t run_blocks = 1;
  uint64_t size = 0;
  std::unique_ptr<std::byte[]> bytes;
};

using KvSavedBlocks = std::vector<std::vector<BlockId>>;  // [pool] ascending

inline bool was_saved(const KvSavedBlocks& saved, const KvBlock& block) {
  return block.pool < saved.size() &&
         std::binary_search(saved[block.pool].begin(), saved[block.pool].end(), block.block);
}

struct KvContents {
  uint32_t block_size = 0;      // positions
  int32_t dtype = 0;            // motley_dtype
  KvSavedBlocks blocks;         // that were saved
  std::vector<KvSlice> slices;  // together each head of each layer of each saved block
  uint64_t bytes = 0;           // of all slices
  int64_t busy_ns = 0;          // that saving took, as the executor's steps count time
};

// What was saved of an executor, at different times; no block twice. Shared: a device that hangs may read it still.
using KvSaved = std::vector<std::shared_ptr<const KvContents>>;

// What loading took.
struct KvLoaded {
  uint64_t bytes = 0;  // written, copies included
  int64_t busy_ns = 0;
};

}  // namespace motley
