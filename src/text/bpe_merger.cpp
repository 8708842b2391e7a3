#include "text/bpe_merger.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <queue>

namespace motley {
namespace {

constexpr uint32_t kNoMerge = ~uint32_t{0};

uint32_t rank_of(const MergeTable& merges, TokenId left, TokenId right) {
  const Merge* merge = merges.find(static_cast<uint32_t>(left), static_cast<uint32_t>(right));
  return merge == nullptr ? kNoMerge : merge->rank;
}

TokenId result_of(const MergeTable& merges, TokenId left, TokenId right) {
  return static_cast<TokenId>(merges.find(static_cast<uint32_t>(left), static_cast<uint32_t>(right))->result);
}

void merge_short(const MergeTable& merges, std::vector<TokenId>& symbols) {
  std::array<uint32_t, kShortWord> ranks;  // of (i, i + 1)
  size_t count = symbols.size();
  for (size_t i = 0; i + 1 < count; ++i) ranks[i] = rank_of(merges, symbols[i], symbols[i + 1]);
  while (count > 1) {
    const size_t best = static_cast<size_t>(std::min_element(ranks.data(), ranks.data() + count - 1) - ranks.data());
    if (ranks[best] == kNoMerge) break;
    symbols[best] = result_of(merges, symbols[best], symbols[best + 1]);
    std::copy(&symbols[best] + 2, symbols.data() + count, &symbols[best] + 1);
    if (best + 2 < count) std::copy(&ranks[best] + 2, ranks.data() + count - 1, &ranks[best] + 1);
    --count;
    if (best > 0) ranks[best - 1] = rank_of(merges, symbols[best - 1], symbols[best]);
    if (best + 1 < count) ranks[best] = rank_of(merges, symbols[best], symbols[best + 1]);
  }
  symbols.resize(count);
}

// A doubly linked list in a vector beside a heap of (rank, place). A heap entry holds if the rank still stands there.
void merge_long(const MergeTable& merges, std::vector<TokenId>& symbols) {
  struct Symbol {
    uint32_t previous, next, rank;  // rank: of the pair (this, next); kNoMerge also for a symbol merged away
  };
  const auto count = static_cast<uint32_t>(symbols.size());
  std::vector<Symbol> list(count);
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> heap;
  const auto price = [&](uint32_t at) {
    const uint32_t next = list[at].next;
    list[at].rank = next < count ? rank_of(merges, symbols[at], symbols[next]) : kNoMerge;
    if (list[at].rank != kNoMerge) heap.push(static_cast<uint64_t>(list[at].rank) << 32 | at);
  };
  for (uint32_t i = 0; i < count; ++i) {
    list[i] = {i - 1, i + 1, kNoMerge};
    price(i);
  }
  while (!heap.empty()) {
    const uint64_t top = heap.top();
    heap.pop();
    const auto at = static_cast<uint32_t>(top);
    if (list[at].rank != static_cast<uint32_t>(top >> 32)) continue;
    const uint32_t gone = list[at].next;
    symbols[at] = result_of(merges, symbols[at], symbols[gone]);
    list[at].next = list[gone].next;
    list[gone].rank = kNoMerge;
    if (list[at].next < count) list[list[at].next].previous = at;
    price(at);
    if (list[at].previous < count) price(list[at].previous);
  }
  size_t out = 0;
  for (uint32_t i = 0; i < count; i = list[i].next) symbols[out++] = symbols[i];
  symbols.resize(out);
}

}  // namespace

void merge_word(const MergeTable& merges, std::vector<TokenId>& symbols) {
  if (symbols.size() <= kShortWord) {
    merge_short(merges, symbols);
  } else {
    merge_long(merges, symbols);
  }
}

}  // namespace motley
