#include "runtime/kv_mover.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <new>
#include <set>
#include <tuple>

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

KvSlice slice_of(const KvMover::Owner& owner, uint64_t block_bytes, size_t place_begin, size_t place_end) {
  KvSlice slice;
  slice.pool = owner.pool;
  slice.place_begin = place_begin, slice.place_end = place_end;
  slice.layer_begin = static_cast<uint32_t>(owner.part->shard().layer_begin);
  slice.head_dims = head_dims_of(*owner.part);
  slice.heads = heads_of(*owner.part);
  slice.run_blocks = blocks_in_run(block_bytes);
  slice.size = block_bytes * (place_end - place_begin);
  slice.bytes = std::make_unique_for_overwrite<std::byte[]>(slice.size);  // pages are touched where they are written
  return slice;
}

// Of one owner, run by run.
Status save_slice(DeviceTurn& turn, const KvMover::Owner& owner, const std::vector<BlockId>& saved,
                  const KvSlice& slice) {
  const DevicePart& part = *owner.part;
  std::vector<BlockId> blocks;  // as the owner counts them
  for (size_t place = slice.place_begin; place < slice.place_end; ++place)
    blocks.push_back(saved[place] - owner.block_begin());
  const uint64_t block_bytes = slice.size / blocks.size();
  for (size_t begin = 0; begin < blocks.size(); begin += slice.run_blocks) {
    const size_t count = std::min<size_t>(slice.run_blocks, blocks.size() - begin);
    const std::span<std::byte> to(slice.bytes.get() + begin * block_bytes, count * block_bytes);
    RETURN_IF_ERROR(turn.add(part.device().export_kv(turn.queue(), part.kv_handle(),
                                                     std::span(blocks).subspan(begin, count), layers_of(part), to)));
  }
  return ok_status();
}

// Moves from one section to one owner's, as whose blocks they are counted.
struct OwnersMoves {
  KvMover::Owner owner;
  uint32_t pool_from = 0;
  size_t place_begin = 0;      // of the section's slices
  std::vector<size_t> places;  // from there
  std::vector<BlockId> blocks;
};

// Where the slices begin that have the pool's block at the place.
Result<size_t> slices_begin(const KvContents& contents, uint32_t pool, size_t place) {
  for (const KvSlice& slice : contents.slices)
    if (slice.pool == pool && slice.place_begin <= place && place < slice.place_end) return slice.place_begin;
  return error(MOTLEY_FAILED_PRECONDITION, "nobody's part of a KV block of pool {} was saved", pool);
}

// While the device reads one run, the next is put together.
Status load_blocks(DeviceTurn& turn, const KvContents& contents, const OwnersMoves& moves) {
  const DevicePart& part = *moves.owner.part;
  const std::vector<uint32_t> dims = head_dims_of(part), heads = heads_of(part);
  const KvOwned owned{static_cast<uint32_t>(part.shard().layer_begin), dims, heads};
  ASSIGN_OR_RETURN(const KvRecut recut, KvRecut::create(contents, moves.pool_from, moves.place_begin, owned));
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

std::vector<KvMover::Owner> KvMover::savers(uint32_t pool, BlockId block_begin) const {
  std::vector<Owner> chosen;
  std::set<std::pair<uint32_t, uint32_t>> covered;  // layer, head
  for (const Owner& owner : owners_) {
    if (owner.pool != pool || owner.block_begin() != block_begin) continue;
    const auto begin = static_cast<uint32_t>(owner.part->shard().layer_begin);
    bool adds = false;
    for (const uint32_t head : heads_of(*owner.part))
      for (uint32_t layer = 0; layer < layers_of(*owner.part); ++layer)
        adds |= covered.emplace(begin + layer, head).second;
    if (adds) chosen.push_back(owner);
  }
  return chosen;
}

// In the order of pools, and of blocks.
Result<std::vector<KvMover::Section>> KvMover::sections() const {
  std::map<std::pair<uint32_t, BlockId>, Section> found;
  for (const Owner& owner : owners_) {
    Section& section = found[{owner.pool, owner.block_begin()}];
    if (!section.savers.empty()) continue;
    section = {owner.pool, owner.block_begin(), owner.block_end(), savers(owner.pool, owner.block_begin())};
    for (const Owner& saver : section.savers) {
      ASSIGN_OR_RETURN(const uint64_t bytes, block_bytes_of(*saver.part));
      section.block_bytes += bytes;
    }
  }
  std::vector<Section> sections;
  for (auto& [at, section] : found) sections.push_back(std::move(section));
  return sections;
}

namespace {

// Null where no section has the block.
const KvMover::Section* section_of(const std::vector<KvMover::Section>& sections, const KvBlock& block) {
  const auto found = std::find_if(sections.begin(), sections.end(), [&](const KvMover::Section& each) {
    return each.pool == block.pool && each.block_begin <= block.block && block.block < each.block_end;
  });
  return found == sections.end() ? nullptr : &*found;
}

}  // namespace

// The first of them for which there is memory.
Status KvMover::choose_blocks(const std::vector<Section>& sections, const std::vector<KvBlock>& blocks,
                              KvContents* contents) const {
  const KvShape& shape = owners_.front().part->options().kv;
  contents->block_size = shape.block_size, contents->dtype = shape.dtype;
  const uint64_t budget = host_memory_() / kMemoryParts;
  contents->blocks.resize(pools_);
  for (const KvBlock& block : blocks) {
    const Section* section = section_of(sections, block);
    if (section == nullptr) return invalid_argument("there is no KV block {} of pool {}", block.block, block.pool);
    if (contents->bytes + section->block_bytes > budget) break;
    contents->bytes += section->block_bytes;
    contents->blocks[block.pool].push_back(block.block);
  }
  for (std::vector<BlockId>& of_pool : contents->blocks) std::sort(of_pool.begin(), of_pool.end());
  return ok_status();
}

Result<KvContents> KvMover::save(const std::vector<KvBlock>& blocks) const {
  if (!moves_kv()) return error(MOTLEY_UNIMPLEMENTED, "a device does not give its KV away");
  const auto contents = std::make_shared<KvContents>();  // shared with the turns, of which one may be left behind
  ASSIGN_OR_RETURN(const std::vector<Section> all, sections());
  RETURN_IF_ERROR(choose_blocks(all, blocks, contents.get()));
  std::map<std::string, std::vector<std::pair<Owner, size_t>>> parts;  // by device: an owner and its slice
  try {
    for (const Section& section : all) {
      const std::vector<BlockId>& saved = contents->blocks[section.pool];
      const auto place = [&](BlockId block) {
        return static_cast<size_t>(std::lower_bound(saved.begin(), saved.end(), block) - saved.begin());
      };
      const size_t begin = place(section.block_begin), end = place(section.block_end);
      if (begin == end) continue;
      for (const Owner& owner : section.savers) {
        ASSIGN_OR_RETURN(const uint64_t bytes, block_bytes_of(*owner.part));
        parts[owner.device].emplace_back(owner, contents->slices.size());
        contents->slices.push_back(slice_of(owner, bytes, begin, end));
      }
    }
  } catch (const std::bad_alloc&) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "no memory for {} bytes of KV", contents->bytes);
  }
  std::vector<DeviceTask> tasks;
  for (auto& [device, of_device] : parts) {
    const auto work = [contents, mine = of_device](DeviceTurn& turn) -> Status {
      for (const auto& [owner, slice] : mine)
        RETURN_IF_ERROR(save_slice(turn, owner, contents->blocks[owner.pool], contents->slices[slice]));
      return ok_status();
    };
    tasks.push_back({device, &of_device.front().first.part->device(), work});
  }
  ASSIGN_OR_RETURN(contents->busy_ns, run_on_devices(std::move(tasks), options_, clock_));
  return std::move(*contents);
}

Status KvMover::check(const std::vector<Section>& all, const KvContents& contents,
                      const std::vector<KvMove>& moves) const {
  if (!moves_kv()) return error(MOTLEY_UNIMPLEMENTED, "a device takes no KV");
  const KvShape& shape = owners_.front().part->options().kv;
  if (shape.block_size != contents.block_size || shape.dtype != contents.dtype)
    return error(MOTLEY_FAILED_PRECONDITION, "KV blocks of {} positions and format {} for pools of {} and {}",
                 contents.block_size, contents.dtype, shape.block_size, shape.dtype);
  for (const KvMove& move : moves) {
    if (!was_saved(contents.blocks, move.from))
      return invalid_argument("KV block {} of pool {} was not saved", move.from.block, move.from.pool);
    if (section_of(all, move.to) == nullptr)
      return invalid_argument("there is no KV block {} of pool {}", move.to.block, move.to.pool);
  }
  return ok_status();
}

Result<KvLoaded> KvMover::load(const std::shared_ptr<const KvContents>& contents, std::vector<KvMove> moves) const {
  ASSIGN_OR_RETURN(const std::vector<Section> all, sections());
  RETURN_IF_ERROR(check(all, *contents, moves));
  std::map<std::tuple<const Section*, uint32_t, size_t>, OwnersMoves> by_sections;  // to, from: as of any owner
  for (const KvMove& move : moves) {
    const std::vector<BlockId>& saved = contents->blocks[move.from.pool];
    const auto place =
        static_cast<size_t>(std::lower_bound(saved.begin(), saved.end(), move.from.block) - saved.begin());
    ASSIGN_OR_RETURN(const size_t begin, slices_begin(*contents, move.from.pool, place));
    const Section* const to = section_of(all, move.to);
    OwnersMoves& of_sections = by_sections[{to, move.from.pool, begin}];
    of_sections.pool_from = move.from.pool, of_sections.place_begin = begin;
    of_sections.places.push_back(place - begin);
    of_sections.blocks.push_back(move.to.block - to->block_begin);
  }
  KvLoaded loaded;
  std::vector<DeviceTask> tasks;
  for (const auto& [device, owners] : by_device(owners_)) {
    std::vector<OwnersMoves> mine;
    for (const Owner& owner : owners) {
      ASSIGN_OR_RETURN(const uint64_t bytes, block_bytes_of(*owner.part));
      for (const auto& [sections, of_sections] : by_sections) {
        const Section& to = *std::get<0>(sections);
        if (to.pool != owner.pool || to.block_begin != owner.block_begin()) continue;
        mine.push_back(of_sections);
        mine.back().owner = owner;
        loaded.bytes += bytes * of_sections.blocks.size();
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
