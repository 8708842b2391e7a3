// Open-addressing tables, filled once and then only read (safe from any thread once filled).
//
// Both bound the length of a probe, so that a vocabulary made to collide is refused instead of taking quadratic time.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

namespace motley {

inline constexpr uint32_t kProbesMax = 512;

inline uint64_t mix_bits(uint64_t x) {  // the finaliser of SplitMix64
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline uint64_t hash_bytes(std::string_view bytes) {
  uint64_t hash = bytes.size() * 0x9E3779B97F4A7C15u;
  for (; bytes.size() >= 8; bytes.remove_prefix(8)) {
    uint64_t word;
    std::memcpy(&word, bytes.data(), 8);
    hash = mix_bits(hash ^ word);
  }
  uint64_t tail = 0;
  if (!bytes.empty()) std::memcpy(&tail, bytes.data(), bytes.size());
  return mix_bits(hash ^ tail);
}

// Strings to ids. The strings themselves lie with the caller and outlive the table.
class StringTable {
 public:
  enum class Insert : uint8_t { kDone, kDuplicate, kCollisions };
  explicit StringTable(size_t count_max = 0) : slots_(std::bit_ceil(count_max * 2 + 2)) {}

  Insert insert(std::string_view key, uint32_t id) {
    const uint64_t hash = hash_bytes(key);
    for (uint32_t probe = 0; probe < kProbesMax; ++probe) {
      Slot& slot = slots_[(hash + probe) & (slots_.size() - 1)];
      if (slot.data == nullptr) {
        slot = {static_cast<uint32_t>(hash >> 32), id, key.data(), key.size()};
        return Insert::kDone;
      }
      if (slot.matches(key, hash)) return Insert::kDuplicate;
    }
    return Insert::kCollisions;
  }
  std::optional<uint32_t> find(std::string_view key) const {
    const uint64_t hash = hash_bytes(key);
    for (uint32_t probe = 0; probe < kProbesMax; ++probe) {
      const Slot& slot = slots_[(hash + probe) & (slots_.size() - 1)];
      if (slot.data == nullptr) return std::nullopt;
      if (slot.matches(key, hash)) return slot.id;
    }
    return std::nullopt;
  }

 private:
  struct Slot {
    uint32_t tag = 0, id = 0;
    const char* data = nullptr;
    size_t size = 0;
    bool matches(std::string_view key, uint64_t hash) const {
      return tag == static_cast<uint32_t>(hash >> 32) && size == key.size() && std::memcmp(data, key.data(), size) == 0;
    }
  };
  std::vector<Slot> slots_;
};

// What merging two neighbouring symbols gives.
struct Merge {
  uint32_t rank;    // the lowest goes first
  uint32_t result;  // symbol id
};

// Pairs of numbers below 2^32 - 1 to values.
template <typename Value>
class PairTable {
 public:
  enum class Insert : uint8_t { kDone, kDuplicate, kCollisions };
  explicit PairTable(size_t count_max = 0) : slots_(std::bit_ceil(count_max * 2 + 2)) {}

  Insert insert(uint32_t left, uint32_t right, Value value) {
    const uint64_t key = key_of(left, right);
    for (uint32_t probe = 0; probe < kProbesMax; ++probe) {
      Slot& slot = slots_[(mix_bits(key) + probe) & (slots_.size() - 1)];
      if (slot.key == kEmpty) {
        slot = {key, value};
        return Insert::kDone;
      }
      if (slot.key == key) return Insert::kDuplicate;
    }
    return Insert::kCollisions;
  }
  // nullptr if the pair is not there.
  const Value* find(uint32_t left, uint32_t right) const {
    const uint64_t key = key_of(left, right);
    for (uint32_t probe = 0; probe < kProbesMax; ++probe) {
      const Slot& slot = slots_[(mix_bits(key) + probe) & (slots_.size() - 1)];
      if (slot.key == key) return &slot.value;
      if (slot.key == kEmpty) return nullptr;
    }
    return nullptr;
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};  // ids are far below 2^32 - 1
  struct Slot {
    uint64_t key = kEmpty;
    Value value{};
  };
  static uint64_t key_of(uint32_t left, uint32_t right) { return static_cast<uint64_t>(left) << 32 | right; }
  std::vector<Slot> slots_;
};

// Pairs of symbol ids to merges.
using MergeTable = PairTable<Merge>;

}  // namespace motley
