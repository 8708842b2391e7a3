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

BlockPool::BlockPool(uint32_t blocks, uint32_t block_size, bool caching, Hash hash,
                     const std::vector<uint32_t>& section_begins)
    : block_size_(block_size), caching_(caching), hash_(hash), blocks_(blocks) {
  CHECK(blocks > 0 && block_size > 0, "{} blocks of {}", blocks, block_size);
  if (caching) {
    tokens_.resize(static_cast<size_t>(blocks) * block_size);
    buckets_.assign(std::bit_ceil(static_cast<size_t>(blocks) * 2), kEnd);
  }
  std::vector<uint32_t> ends = section_begins;
  ends.push_back(blocks);
  for (uint32_t begin = 0; const uint32_t end : ends) {
    CHECK(begin < end && end <= blocks, "a section of blocks {} to {}, of {}", begin, end, blocks);
    for (uint32_t i = begin; i < end; ++i) {
      blocks_[i].previous = i > begin ? static_cast<BlockId>(i - 1) : kEnd;
      blocks_[i].next = i + 1 < end ? static_cast<BlockId>(i + 1) : kEnd;
    }
    sections_.push_back({static_cast<BlockId>(end), static_cast<BlockId>(begin), static_cast<BlockId>(end - 1)});
    begin = end;
  }
  free_ = blocks;
}

BlockPool::Block& BlockPool::at(BlockId id) {
  CHECK(id >= 0 && static_cast<size_t>(id) < blocks_.size(), "block {} of {}", id, blocks_.size());
  return blocks_[static_cast<size_t>(id)];
}

const BlockPool::Block& BlockPool::at(BlockId id) const { return const_cast<BlockPool*>(this)->at(id); }

BlockPool::Section& BlockPool::section_of(BlockId id) {
  return *std::find_if(sections_.begin(), sections_.end(), [&](const Section& each) { return id < each.end; });
}

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
  const BlockId id = std::find_if(sections_.begin(), sections_.end(), [](const Section& each) {
                       return each.first_free != kEnd;
                     })->first_free;
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
  block.freed = ++releases_;
  Section& section = section_of(id);
  --section.held;
  const bool to_end = block.chain != kChainRoot;
  block.previous = to_end ? section.last_free : kEnd;
  block.next = to_end ? kEnd : section.first_free;
  (block.previous == kEnd ? section.first_free : at(block.previous).next) = id;
  (block.next == kEnd ? section.last_free : at(block.next).previous) = id;
}

void BlockPool::unlink(BlockId id) {
  Block& block = at(id);
  Section& section = section_of(id);
  (block.previous == kEnd ? section.first_free : at(block.previous).next) = block.next;
  (block.next == kEnd ? section.last_free : at(block.next).previous) = block.previous;
  block.previous = block.next = kEnd;
  --free_;
  section.most_held = std::max(section.most_held, ++section.held);
}

std::vector<uint32_t> BlockPool::most_held() const {
  std::vector<uint32_t> most;
  for (const Section& section : sections_) most.push_back(section.most_held);
  return most;
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
  for (const Section& section : sections_)
    for (BlockId id = section.first_free; id != kEnd; id = at(id).next) order.push_back(id);
  return order;
}

std::vector<BlockId> BlockPool::free_cached() const {
  std::vector<BlockId> found;
  for (const Section& section : sections_)  // from the end: those come last
    for (BlockId id = section.last_free; id != kEnd && cached(id); id = at(id).previous) found.push_back(id);
  if (sections_.size() > 1) {
    std::sort(found.begin(), found.end(), [&](BlockId a, BlockId b) { return at(a).freed > at(b).freed; });
  }
  return found;
}

}  // namespace motley
