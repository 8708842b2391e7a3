#include "cuda/attention/plan.hpp"

#include <algorithm>

namespace motley::cuda {

namespace {

// Ends of the rows that can be in one tile with `begin`: the same sequence and purpose, chunks of one length.
uint32_t tile_end(const motley_batch& b, uint32_t begin, uint32_t end, uint32_t rows_max) {
  uint32_t r = begin + 1;
  while (r < end && r - begin < rows_max && chunk_positions(b.positions[r]) == chunk_positions(b.positions[begin])) ++r;
  return r;
}

}  // namespace

AttentionPlan plan_attention(const AttentionShape& shape, const motley_batch& b, bool one_class) {
  AttentionPlan plan;
  const auto in_pass = static_cast<uint32_t>(kPassRows);
  const auto in_tile = static_cast<uint32_t>(shape.rows_of_tile());
  int64_t partials = 0;
  const auto prompt = [&](uint32_t r) { return !one_class && b.generated[r] == 0; };
  for (uint32_t s = 0; s < b.seqs; ++s) {
    const uint32_t last = b.seq_row_begin[s + 1];
    for (uint32_t r = b.seq_row_begin[s]; r < last;) {
      uint32_t end = r + 1;
      while (end < last && prompt(end) == prompt(r)) ++end;
      if (prompt(r)) {
        for (; r < end; r += std::min(in_pass, end - r))
          plan.passes.push_back({static_cast<int32_t>(r), static_cast<int32_t>(std::min(in_pass, end - r))});
        continue;
      }
      while (r < end) {
        const uint32_t to = tile_end(b, r, end, in_tile);
        const int32_t chunks = chunk_count(b.positions[to - 1]), rows = static_cast<int32_t>(to - r);
        plan.chunks.push_back({static_cast<int32_t>(r), rows, 0, chunks, -1, -1, b.positions[r], b.positions[to - 1],
                               b.seq_block_begin[s]});
        partials += int64_t{chunks > 1 ? chunks : 0} * rows * shape.heads;
        r = to;
      }
    }
  }
  if (partials > kPartialsMax || partials == 0) return plan;  // many rows keep the GPU busy without
  std::vector<ChunkItem> split;
  int32_t at = 0, tiles = 0;
  for (const ChunkItem& tile : plan.chunks) {
    if (tile.chunk_end == 1) {
      split.push_back(tile);
      continue;
    }
    for (int32_t c = 0; c < tile.chunk_end; ++c) {
      split.push_back(tile);
      ChunkItem& part = split.back();
      part.chunk_begin = c, part.chunk_end = c + 1, part.partial = at, part.tile = tiles;
    }
    at += tile.rows * tile.chunk_end;
    ++tiles;
  }
  plan.chunks = std::move(split);
  return plan;
}

}  // namespace motley::cuda
