// How the rows of a batch are dealt to attention's kernels. Host code; no GPU is needed.
//
// A generated row is attended in chunks of positions that lie where the row's own length says and are joined in
// ascending order, so its bits depend on nothing else: neither on the other rows nor on whether its chunks are dealt to
// several blocks of threads. A prompt row is attended in one pass over tiles of positions.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "motley/backend.h"

namespace motley::cuda {

constexpr int32_t kChunkUnit = 256;        // positions; a chunk is a multiple of it
constexpr int32_t kChunksMax = 32;         // of a row
constexpr int32_t kTileHeads = 8;          // (row, head) pairs of a tile of the tensor cores
constexpr int32_t kPassRows = 128;         // of a block of threads, where attention is one pass
constexpr int32_t kPartialsMax = 1 << 15;  // (row, head, chunk) results that wait to be joined

#ifdef __CUDACC__
#define MOTLEY_CUDA_BOTH __host__ __device__
#else
#define MOTLEY_CUDA_BOTH
#endif
// Positions of a chunk of a row at `position`.
MOTLEY_CUDA_BOTH inline int32_t chunk_positions(int32_t position) {
  constexpr int32_t kWhole = kChunkUnit * kChunksMax;
  return kChunkUnit * (position / kWhole + 1);
}
MOTLEY_CUDA_BOTH inline int32_t chunk_count(int32_t position) { return position / chunk_positions(position) + 1; }

// Attention ops of the same shape share a plan.
struct AttentionShape {
  int32_t heads = 0, kv_heads = 0, head_dim = 0;
  bool operator==(const AttentionShape&) const = default;
  int32_t group() const { return heads / kv_heads; }
  int32_t heads_of_tile() const { return group() < kTileHeads ? group() : kTileHeads; }
  int32_t head_tiles() const { return (group() + kTileHeads - 1) / kTileHeads; }  // of a KV head
  int32_t rows_of_tile() const { return kTileHeads / heads_of_tile(); }
  // Blocks of threads with generated rows' kernel that a multiprocessor has at a time.
  constexpr int32_t blocks_at_once() const { return head_dim <= 64 ? 4 : head_dim <= 128 ? 3 : 2; }
  // Items that so many multiprocessors attend at a time: each item is taken by a block for each KV head's tile.
  int32_t items_at_once(int32_t processors) const {
    const int32_t blocks = processors * blocks_at_once(), across = kv_heads * head_tiles();
    return blocks < across ? 1 : blocks / across;
  }
};

// Chunks [chunk_begin, chunk_end) of neighbouring rows of a sequence that lie alike.
struct ChunkItem {
  int32_t row, rows, chunk_begin, chunk_end;
  int32_t partial;      // where the tile's results lie, counted in rows; -1: the item is the whole tile and needs none
  int32_t tile;         // of those with partial results
  int32_t front, last;  // positions of the first and the last row
  uint32_t blocks;      // where the sequence's blocks begin
};
// Neighbouring prompt rows of a sequence.
struct PassItem {
  int32_t row, rows;
  int32_t front, last;  // positions of the first and the last row
  uint32_t blocks;      // where the sequence's blocks begin
};

struct AttentionPlan {
  std::vector<ChunkItem> chunks;
  std::vector<PassItem> passes;
  bool one_row_each = false;  // of a sequence, and none is a prompt's
};

// `one_class`: prompt rows are attended as generated ones are. Chunk items that are dealt in turns to `at_once` takers
// keep them all busy: long ones come first, and tiles are split where there are too few of them for a last turn. Of
// passes long ones come first, too.
AttentionPlan plan_attention(const AttentionShape& shape, const motley_batch& batch, bool one_class, int32_t at_once);

}  // namespace motley::cuda
