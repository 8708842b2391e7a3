// Arena: who has which bytes of a fixed piece of memory. First fit; not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

namespace motley::worker {

class Arena {
 public:
  explicit Arena(uint64_t bytes) { free_[0] = bytes; }

  // The offset of `bytes` (more than none), on a border of 64; none when no gap is wide enough.
  std::optional<uint64_t> take(uint64_t bytes) {
    const uint64_t whole = rounded(bytes);
    for (auto gap = free_.begin(); gap != free_.end(); ++gap) {
      const auto [offset, width] = *gap;
      if (width < whole) continue;
      free_.erase(gap);
      if (width > whole) free_[offset + whole] = width - whole;
      return offset;
    }
    return std::nullopt;
  }
  // Gives back what take(bytes) answered.
  void give(uint64_t offset, uint64_t bytes) {
    auto gap = free_.emplace(offset, rounded(bytes)).first;
    if (const auto next = std::next(gap); next != free_.end() && gap->first + gap->second == next->first) {
      gap->second += next->second;
      free_.erase(next);
    }
    if (gap == free_.begin()) return;
    const auto before = std::prev(gap);
    if (before->first + before->second != gap->first) return;
    before->second += gap->second;
    free_.erase(gap);
  }

 private:
  static uint64_t rounded(uint64_t bytes) { return (bytes + 63) / 64 * 64; }
  std::map<uint64_t, uint64_t> free_;  // offset -> width; no two gaps touch
};

}  // namespace motley::worker
