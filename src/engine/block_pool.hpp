// BlockPool: who holds which KV block of a pool, and which blocks hold text that a later sequence can share.
//
// Free blocks of a section stand in one intrusive list whose order is the order of reuse: blocks without shared content
// first (the latest freed first, it is warm), then cached blocks, least recently used first. A cached block keeps its
// content until it is reused (lazy eviction). A section is used where those before it have no free block: whoever has
// none there does not meet its owner. One owner; not thread-safe; no allocation after construction.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.hpp"

namespace motley {

// Names the text of a chain of full blocks from the start of a sequence: equal ids mean equal text. Never reused.
using ChainId = uint64_t;
inline constexpr ChainId kChainRoot = 0;

inline uint32_t blocks_for(uint32_t positions, uint32_t block_size) {
  return (positions + block_size - 1) / block_size;
}

class BlockPool {
 public:
  using Hash = uint64_t (*)(ChainId parent, std::span<const TokenId> tokens);
  // A hash only finds candidates; what is shared is decided by comparing (parent, tokens).
  static uint64_t default_hash(ChainId parent, std::span<const TokenId> tokens);

  // caching = false: nothing is ever published, and no memory is spent on it.
  // `section_begins`: as of KvPoolDescription.
  BlockPool(uint32_t blocks, uint32_t block_size, bool caching, Hash hash = default_hash,
            const std::vector<uint32_t>& section_begins = {});

  struct Hit {
    BlockId block = 0;
    ChainId chain = kChainRoot;
  };

  uint32_t size() const { return static_cast<uint32_t>(blocks_.size()); }
  uint32_t block_size() const { return block_size_; }
  // Blocks that nobody holds; cached ones are among them.
  uint32_t free_count() const { return free_; }
  // By section: the most blocks that were held at once.
  std::vector<uint32_t> most_held() const;
  uint32_t references(BlockId id) const { return at(id).references; }
  bool cached(BlockId id) const { return at(id).chain != kChainRoot; }

  // The block that continues `parent` with exactly these block_size() tokens.
  std::optional<Hit> find(ChainId parent, std::span<const TokenId> tokens) const;
  // The next block in order of reuse, held once; its old content is forgotten. Needs free_count() > 0.
  BlockId allocate();
  void retain(BlockId id);
  // The last release makes the block free. Release a sequence's blocks last one first, so that the ends of chains are
  // reused before their beginnings.
  void release(BlockId id);
  // Declares that a held block contains block_size() tokens that continue `parent`, completely written. If another
  // block already holds that text, that one stays the shared one. Gives the id of the text.
  ChainId publish(BlockId id, ChainId parent, std::span<const TokenId> tokens);

  // Of a published block.
  struct Text {
    ChainId parent = kChainRoot, chain = kChainRoot;
    std::span<const TokenId> tokens;
  };
  Text text_of(BlockId id) const;

  // Free blocks in order of reuse.
  std::vector<BlockId> free_order() const;
  // Of them, those that are cached, the latest used first.
  std::vector<BlockId> free_cached() const;

 private:
  struct Block {
    BlockId previous = kEnd, next = kEnd;  // in the free list
    BlockId bucket_next = kEnd;            // in its bucket of the table of published blocks
    uint32_t references = 0;
    uint32_t bucket = 0;
    uint64_t freed = 0;                               // by which release, counted
    ChainId parent = kChainRoot, chain = kChainRoot;  // chain != root: published
  };
  static constexpr BlockId kEnd = -1;
  struct Section {
    BlockId end = 0;
    BlockId first_free = kEnd, last_free = kEnd;
    uint32_t held = 0, most_held = 0;
  };

  Block& at(BlockId id);
  const Block& at(BlockId id) const;
  Section& section_of(BlockId id);
  std::span<TokenId> tokens_of(BlockId id);
  uint32_t bucket_of(ChainId parent, std::span<const TokenId> tokens) const;
  void unlink(BlockId id);
  void forget(BlockId id);

  uint32_t block_size_;
  bool caching_;
  Hash hash_;
  std::vector<Block> blocks_;
  std::vector<TokenId> tokens_;   // of published blocks: [blocks, block_size]
  std::vector<BlockId> buckets_;  // a power of two of them
  std::vector<Section> sections_;
  uint32_t free_ = 0;
  uint64_t releases_ = 0;
  ChainId last_chain_ = kChainRoot;
};

}  // namespace motley
