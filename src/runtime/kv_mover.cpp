#include "runtime/kv_mover.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <new>
#include <set>

#include "base/host_memory.hpp"
#include "runtime/kv_recut.hpp"

namespace motley {
namespace {

constexpr uint64_t kRunBytes = 8u << 20;  // of blocks that are moved by one call, about
constexpr uint64_t kMemoryParts = 2;      // one of so many of what the host's memory can give is taken

std::vector<uint32_t> head_dims_of(const DevicePart& part) {
  std::vector<uint32_t> dims;
  for (const KvLayer& layer : part.shard().kv_layers) dims.push_back(layer.head_dim);
  return dims;
}

std::vector<uint32_t> heads_of(const DevicePart& part) {
  std::vector<uint32_t> heads;
  for (const UnitRange& range : part.shard().kv_heads)
    for (int64_t head = range.begin; head < range.end; ++head) heads.push_back(static_cast<uint32_t>(head));
  return heads;
}

uint32_t layers_of(const DevicePart& part) { return static_cast<uint32_t>(part.shard().kv_layers.size()); }

Result<uint64_t> block_bytes_of(const DevicePart& part) {
  ASSIGN_OR_RETURN(const KvForm form, KvForm::of(part.options().kv.block_size, part.options().kv.dtype));
  return form.block_bytes(heads_of(part).size(), head_dims_of(part));
}

uint32_t blocks_in_run(uint64_t block_bytes) {
  return static_cast<uint32_t>(std::max<uint64_t>(1, kRunBytes / std::max<uint64_t>(block_bytes, 1)));
}

// A part of each device, by its name.
using ByDevice = std::map<std::string, std::vector<KvMover::Owner>>;
ByDevice by_device(const std::vector<KvMover::Owner>& owners) {
  ByDevice grouped;
  for (const KvMover::Owner& owner : owners) grouped[owner.device].push_back(owner);
  return grouped;
}

KvSlice slice_of(const KvMover::Owner& owner, uint64_t block_bytes, size_t blocks) {
  KvSlice slice;
  slice.pool = owner.pool;
  slice.layer_begin = static_cast<uint32_t>(owner.part->shard().layer_begin);
  slice.head_dims = head_dims_of(*owner.part);
  slice.heads = heads_of(*owner.part);
  slice.run_blocks = blocks_in_run(block_bytes);
  slice.size = block_bytes * blocks;
  slice.bytes = std::make_unique_for_overwrite<std::byte[]>(slice.size);  // pages are touched where they are written
  return slice;
}

// Of one owner, run by run.
Status save_slice(DeviceTurn& turn, const DevicePart& part, const std::vector<BlockId>& blocks, const KvSlice& slice) {
  const uint64_t block_bytes = slice.size / blocks.size();
  for (size_t begin = 0; begin < blocks.size(); begin += slice.run_blocks) {
    const size_t count = std::min<size_t>(slice.run_blocks, blocks.size() - begin);
    const std::span<std::byte> to(slice.bytes.get() + begin * block_bytes, count * block_bytes);
    RETURN_IF_ERROR(turn.add(part.device().export_kv(turn.queue(), part.kv_handle(),
                                                     std::span(blocks).subspan(begin, count), layers_of(part), to)));
  }
  return ok_status();
}

// Moves from one pool to one owner's, whose blocks they are by now.
struct OwnersMoves {
  KvMover::Owner owner;
  uint32_t pool_from = 0;
  std::vector<size_t> places;  // in KvContents::blocks
  std::vector<BlockId> blocks;
};

// While the device reads one run, the next is put together.
Status load_blocks(DeviceTurn& turn, const KvContents& contents, const OwnersMoves& moves) {
  const DevicePart& part = *moves.owner.part;
  const std::vector<uint32_t> dims = head_dims_of(part), heads = heads_of(part);
  const KvOwned owned{static_cast<uint32_t>(part.shard().layer_begin), dims, heads};
  ASSIGN_OR_RETURN(const KvRecut recut, KvRecut::create(contents, moves.pool_from, owned));
  const size_t run = std::min<size_t>(blocks_in_run(recut.block_bytes()), moves.blocks.size());
  const auto buffers = std::make_shared<std::array<std::unique_ptr<std::byte[]>, 2>>();
  turn.keep(buffers);
  size_t next = 0;
  for (size_t begin = 0; begin < moves.blocks.size(); begin += run) {
    const size_t count = std::min(run, moves.blocks.size() - begin);
    std::unique_ptr<std::byte[]>& buffer = (*buffers)[std::exchange(next, 1 - next)];
    if (buffer == nullptr) buffer = std::make_unique_for_overwrite<std::byte[]>(run * recut.block_bytes());
    const std::span<std::byte> bytes(buffer.get(), count * recut.block_bytes());
    recut.write(std::span(moves.places).subspan(begin, count), bytes);
    RETURN_IF_ERROR(turn.add(part.device().import_kv(
        turn.queue(), part.kv_handle(), std::span(moves.blocks).subspan(begin, count), layers_of(part), bytes)));
  }
  return turn.finish();
}

}  // namespace

bool KvMover::moves_kv() const {
  return !owners_.empty() &&
         std::all_of(owners_.begin(), owners_.end(), [](const Owner& each) { return each.part->device().moves_kv(); });
}

// Of a pool's owners as many as hold each head of each layer: of copies, one.
std::vector<KvMover::Owner> KvMover::savers(uint32_t pool) const {
  std::vector<Owner> chosen;
  std::set<std::pair<uint32_t, uint32_t>> covered;  // layer, head
  for (const Owner& owner : owners_) {
    if (owner.pool != pool) continue;
    const auto begin = static_cast<uint32_t>(owner.part->shard().layer_begin);
    bool adds = false;
    for (const uint32_t head : heads_of(*owner.part))
      for (uint32_t layer = 0; layer < layers_of(*owner.part); ++layer)
        adds |= covered.emplace(begin + layer, head).second;
    if (adds) chosen.push_back(owner);
  }
  return chosen;
}

// The first of them for which there is memory.
Status KvMover::choose_blocks(const std::vector<KvBlock>& blocks, KvContents* contents) const {
  std::vector<uint64_t> bytes(pools_);  // of a block
  for (uint32_t pool = 0; pool < pools_; ++pool) {
    for (const Owner& owner : savers(pool)) {
      const KvShape& shape = owner.part->options().kv;
      contents->block_size = shape.block_size, contents->dtype = shape.dtype;
      ASSIGN_OR_RETURN(const uint64_t part, block_bytes_of(*owner.part));
      bytes[pool] += part;
    }
  }
  const uint64_t budget = std::min(bytes_max_, host_memory_available() / kMemoryParts);
  contents->blocks.resize(pools_);
  for (const KvBlock& block : blocks) {
    if (block.pool >= pools_) return invalid_argument("KV pool {} of {} is to be saved", block.pool, pools_);
    if (contents->bytes + bytes[block.pool] > budget) break;
    contents->bytes += bytes[block.pool];
    contents->blocks[block.pool].push_back(block.block);
  }
  for (std::vector<BlockId>& of_pool : contents->blocks) std::sort(of_pool.begin(), of_pool.end());
  return ok_status();
}

Result<KvContents> KvMover::save(const std::vector<KvBlock>& blocks) const {
  if (!moves_kv()) return error(MOTLEY_UNIMPLEMENTED, "a device does not give its KV away");
  const auto contents = std::make_shared<KvContents>();  // shared with the turns, of which one may be left behind
  RETURN_IF_ERROR(choose_blocks(blocks, contents.get()));
  std::map<std::string, std::vector<std::pair<Owner, size_t>>> parts;  // by device: an owner and its slice
  try {
    for (uint32_t pool = 0; pool < pools_; ++pool) {
      if (contents->blocks[pool].empty()) continue;
      for (const Owner& owner : savers(pool)) {
        ASSIGN_OR_RETURN(const uint64_t bytes, block_bytes_of(*owner.part));
        parts[owner.device].emplace_back(owner, contents->slices.size());
        contents->slices.push_back(slice_of(owner, bytes, contents->blocks[pool].size()));
      }
    }
  } catch (const std::bad_alloc&) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "no memory for {} bytes of KV", contents->bytes);
  }
  std::vector<DeviceTask> tasks;
  for (auto& [device, of_device] : parts) {
    const auto work = [contents, mine = of_device](DeviceTurn& turn) -> Status {
      for (const auto& [owner, slice] : mine)
        RETURN_IF_ERROR(save_slice(turn, *owner.part, contents->blocks[owner.pool], contents->slices[slice]));
      return ok_status();
    };
    tasks.push_back({device, &of_device.front().first.part->device(), work});
  }
  ASSIGN_OR_RETURN(contents->busy_ns, run_on_devices(std::move(tasks), options_, clock_));
  return std::move(*contents);
}

Status KvMover::check(const KvContents& contents, const std::vector<KvMove>& moves) const {
  if (!moves_kv()) return error(MOTLEY_UNIMPLEMENTED, "a device takes no KV");
  const KvShape& shape = owners_.front().part->options().kv;
  if (shape.block_size != contents.block_size || shape.dtype != contents.dtype)
    return error(MOTLEY_FAILED_PRECONDITION, "KV blocks of {} positions and format {} for pools of {} and {}",
                 contents.block_size, contents.dtype, shape.block_size, shape.dtype);
  for (const KvMove& move : moves) {
    const bool there = move.from.pool < contents.blocks.size() &&
                       std::binary_search(contents.blocks[move.from.pool].begin(),
                                          contents.blocks[move.from.pool].end(), move.from.block);
    if (!there) return invalid_argument("KV block {} of pool {} was not saved", move.from.block, move.from.pool);
    const auto owner =
        std::find_if(owners_.begin(), owners_.end(), [&](const Owner& each) { return each.pool == move.to.pool; });
    if (owner == owners_.end() || move.to.block < 0 ||
        static_cast<uint32_t>(move.to.block) >= owner->part->options().kv.blocks)
      return invalid_argument("there is no KV block {} of pool {}", move.to.block, move.to.pool);
  }
  return ok_status();
}

Result<KvLoaded> KvMover::load(const std::shared_ptr<const KvContents>& contents, std::vector<KvMove> moves) const {
  RETURN_IF_ERROR(check(*contents, moves));
  std::map<std::pair<uint32_t, uint32_t>, OwnersMoves> by_pools;  // to, from: as of any owner
  for (const KvMove& move : moves) {
    OwnersMoves& of_pools = by_pools[{move.to.pool, move.from.pool}];
    const std::vector<BlockId>& saved = contents->blocks[move.from.pool];
    of_pools.pool_from = move.from.pool;
    of_pools.places.push_back(
        static_cast<size_t>(std::lower_bound(saved.begin(), saved.end(), move.from.block) - saved.begin()));
    of_pools.blocks.push_back(move.to.block);
  }
  KvLoaded loaded;
  std::vector<DeviceTask> tasks;
  for (const auto& [device, owners] : by_device(owners_)) {
    std::vector<OwnersMoves> mine;
    for (const Owner& owner : owners) {
      ASSIGN_OR_RETURN(const uint64_t bytes, block_bytes_of(*owner.part));
      for (const auto& [pools, of_pools] : by_pools) {
        if (pools.first != owner.pool) continue;
        mine.push_back(of_pools);
        mine.back().owner = owner;
        loaded.bytes += bytes * of_pools.blocks.size();
      }
    }
    if (mine.empty()) continue;
    const Device* const on = &mine.front().owner.part->device();
    const auto work = [contents, mine = std::move(mine)](DeviceTurn& turn) -> Status {
      for (const OwnersMoves& each : mine) RETURN_IF_ERROR(load_blocks(turn, *contents, each));
      return ok_status();
    };
    tasks.push_back({device, on, work});
  }
  ASSIGN_OR_RETURN(loaded.busy_ns, run_on_devices(std::move(tasks), options_, clock_));
  return loaded;
}

}  // namespace motley
