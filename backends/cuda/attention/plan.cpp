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

// Positions of an item's chunks, about.
int32_t length_of(const ChunkItem& item) {
  return std::min((item.chunk_end - item.chunk_begin) * chunk_positions(item.last),
                  item.last + 1 - item.chunk_begin * chunk_positions(item.last));
}

// Whether tile `i` of the sorted ones is split: the last turn's, and those that are longer than all that a taker gets.
struct Split {
  int64_t whole, most;
  Split(const std::vector<ChunkItem>& tiles, int32_t at_once) {
    int64_t all = 0;
    for (const ChunkItem& tile : tiles) all += length_of(tile);
    whole = static_cast<int64_t>(tiles.size()) / at_once * at_once;
    most = (all + at_once - 1) / at_once;
  }
  bool operator()(const ChunkItem& tile, size_t i) const {
    return tile.chunk_end > 1 && (static_cast<int64_t>(i) >= whole || length_of(tile) > most);
  }
};

void split_tiles(const AttentionShape& shape, int32_t at_once, std::vector<ChunkItem>* tiles) {
  const auto longer = [](const ChunkItem& a, const ChunkItem& b) { return length_of(a) > length_of(b); };
  std::stable_sort(tiles->begin(), tiles->end(), longer);
  const Split is_split(*tiles, at_once);
  std::vector<ChunkItem> items;
  int64_t at = 0;
  int32_t count = 0;
  for (size_t i = 0; i < tiles->size(); ++i) {
    const ChunkItem& tile = (*tiles)[i];
    if (!is_split(tile, i)) {
      items.push_back(tile);
      continue;
    }
    for (int32_t c = 0; c < tile.chunk_end; ++c) {
      ChunkItem& part = items.emplace_back(tile);
      part.chunk_begin = c, part.chunk_end = c + 1, part.partial = static_cast<int32_t>(at), part.tile = count;
    }
    at += int64_t{tile.rows} * tile.chunk_end;
    ++count;
    if (at * shape.heads > kPartialsMax) return;  // so many rows keep the GPU busy without
  }
  std::stable_sort(items.begin(), items.end(), longer);
  *tiles = std::move(items);
}

}  // namespace

AttentionPlan plan_attention(const AttentionShape& shape, const motley_batch& b, bool one_class, int32_t at_once) {
  AttentionPlan plan;
  const auto in_pass = static_cast<uint32_t>(kPassRows);
  const auto in_tile = static_cast<uint32_t>(shape.rows_of_tile());
  const auto prompt = [&](uint32_t r) { return !one_class && b.generated[r] == 0; };
  plan.one_row_each = true;
  for (uint32_t s = 0; s < b.seqs; ++s) {
    const uint32_t last = b.seq_row_begin[s + 1];
    if (last - b.seq_row_begin[s] > 1) plan.one_row_each = false;
    for (uint32_t r = b.seq_row_begin[s]; r < last;) {
      uint32_t end = r + 1;
      while (end < last && prompt(end) == prompt(r)) ++end;
      if (prompt(r)) {
        for (uint32_t to; r < end; r = to) {
          to = r + std::min(in_pass, end - r);
          plan.passes.push_back({static_cast<int32_t>(r), static_cast<int32_t>(to - r), b.positions[r],
                                 b.positions[to - 1], b.seq_block_begin[s]});
        }
        continue;
      }
      while (r < end) {
        const uint32_t to = tile_end(b, r, end, in_tile);
        plan.chunks.push_back({static_cast<int32_t>(r), static_cast<int32_t>(to - r), 0,
                               chunk_count(b.positions[to - 1]), -1, -1, b.positions[r], b.positions[to - 1],
                               b.seq_block_begin[s]});
        r = to;
      }
    }
  }
  split_tiles(shape, at_once, &plan.chunks);
  if (!plan.passes.empty()) plan.one_row_each = false;
  std::stable_sort(plan.passes.begin(), plan.passes.end(),
                   [](const PassItem& x, const PassItem& y) { return x.last > y.last; });
  return plan;
}

}  // namespace motley::cuda
