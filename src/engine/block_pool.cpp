#include "engine/block_pool.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>

#include "base/check.hpp"

namespace motley {

uint64_t BlockPool::default_hash(ChainId parent, std::span<const TokenId> tokens) {
  return XXH3_64bits_withSeed(tokens.data(), tokens.size_bytes(), parent);
}

BlockPool::BlockPool(uint32_t blocks, uint32_t block_size, bool caching, Hash hash)
    : block_size_(block_size), caching_(caching), hash_(hash), blocks_(blocks) {
  CHECK(blocks > 0 && block_size > 0, "{} blocks of {}", blocks, block_size);
  if (caching) {
    tokens_.resize(static_cast<size_t>(blocks) * block_size);
    buckets_.assign(std::bit_ceil(static_cast<size_t>(blocks) * 2), kEnd);
  }
  for (uint32_t i = 0; i < blocks; ++i) {
    blocks_[i].previous = static_cast<BlockId>(i) - 1;
    blocks_[i].next = i + 1 < blocks ? static_cast<BlockId>(i + 1) : kEnd;
  }
  first_free_ = 0;
  last_free_ = static_cast<BlockId>(blocks - 1);
  free_ = blocks;
}

BlockPool::Block& BlockPool::at(BlockId id) {
  CHECK(id >= 0 && static_cast<size_t>(id) < blocks_.size(), "block {} of {}", id, blocks_.size());
  return blocks_[static_cast<size_t>(id)];
}

const BlockPool::Block& BlockPool::at(BlockId id) const { return const_cast<BlockPool*>(this)->at(id); }

std::span<TokenId> BlockPool::tokens_of(BlockId id) {
  return std::span(tokens_).subspan(static_cast<size_t>(id) * block_size_, block_size_);
}

uint32_t BlockPool::bucket_of(ChainId parent, std::span<const TokenId> tokens) const {
  return static_cast<uint32_t>(hash_(parent, tokens) & (buckets_.size() - 1));
}

std::optional<BlockPool::Hit> BlockPool::find(ChainId parent, std::span<const TokenId> tokens) const {
  if (!caching_ || tokens.size() != block_size_) return std::nullopt;
  for (BlockId id = buckets_[bucket_of(parent, tokens)]; id != kEnd;
       id = blocks_[static_cast<size_t>(id)].bucket_next) {
    const Block& block = at(id);
    if (block.parent != parent) continue;
    const TokenId* held = tokens_.data() + static_cast<size_t>(id) * block_size_;
    if (std::equal(tokens.begin(), tokens.end(), held)) return Hit{id, block.chain};
  }
  return std::nullopt;
}

BlockId BlockPool::allocate() {
  CHECK(free_ > 0);
  const BlockId id = first_free_;
  unlink(id);
  forget(id);
  at(id).references = 1;
  return id;
}

void BlockPool::retain(BlockId id) {
  Block& block = at(id);
  if (block.references == 0) unlink(id);
  ++block.references;
}

void BlockPool::release(BlockId id) {
  Block& block = at(id);
  CHECK(block.references > 0, "block {} released more often than held", id);
  if (--block.references > 0) return;
  ++free_;
  const bool to_end = block.chain != kChainRoot;
  block.previous = to_end ? last_free_ : kEnd;
  block.next = to_end ? kEnd : first_free_;
  (block.previous == kEnd ? first_free_ : at(block.previous).next) = id;
  (block.next == kEnd ? last_free_ : at(block.next).previous) = id;
}

void BlockPool::unlink(BlockId id) {
  Block& block = at(id);
  (block.previous == kEnd ? first_free_ : at(block.previous).next) = block.next;
  (block.next == kEnd ? last_free_ : at(block.next).previous) = block.previous;
  block.previous = block.next = kEnd;
  --free_;
}

ChainId BlockPool::publish(BlockId id, ChainId parent, std::span<const TokenId> tokens) {
  if (!caching_) return kChainRoot;
  Block& block = at(id);
  CHECK(block.references > 0 && block.chain == kChainRoot && tokens.size() == block_size_,
        "block {}: held {}, chain {}", id, block.references, block.chain);
  if (const auto other = find(parent, tokens)) return other->chain;
  std::copy(tokens.begin(), tokens.end(), tokens_of(id).begin());
  block.parent = parent;
  block.chain = ++last_chain_;
  block.bucket = bucket_of(parent, tokens);
  block.bucket_next = buckets_[block.bucket];
  buckets_[block.bucket] = id;
  return block.chain;
}

void BlockPool::forget(BlockId id) {
  Block& block = at(id);
  if (block.chain == kChainRoot) return;
  BlockId* link = &buckets_[block.bucket];
  while (*link != id) link = &at(*link).bucket_next;
  *link = block.bucket_next;
  block.bucket_next = kEnd;
  block.parent = block.chain = kChainRoot;
}

BlockPool::Text BlockPool::text_of(BlockId id) const {
  const Block& block = at(id);
  CHECK(block.chain != kChainRoot, "block {} holds no published text", id);
  return {block.parent, block.chain, std::span(tokens_).subspan(static_cast<size_t>(id) * block_size_, block_size_)};
}

std::vector<BlockId> BlockPool::free_order() const {
  std::vector<BlockId> order;
  for (BlockId id = first_free_; id != kEnd; id = at(id).next) order.push_back(id);
  return order;
}

}  // namespace motley
