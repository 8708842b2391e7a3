#include "runtime/kv_recut.hpp"

#include <algorithm>
#include <cstring>

namespace motley {

Result<KvForm> KvForm::of(uint32_t block_size, int32_t dtype) {
  switch (dtype) {
    case MOTLEY_F32: return KvForm{block_size, 4, 0};
    case MOTLEY_F16:
    case MOTLEY_BF16: return KvForm{block_size, 2, 0};
    case MOTLEY_F8_E4M3: return KvForm{block_size, 1, 0};
    case MOTLEY_I8: return KvForm{block_size, 1, sizeof(float)};
    default: return error(MOTLEY_UNIMPLEMENTED, "KV of format {} does not move", dtype);
  }
}

uint64_t KvForm::block_bytes(uint64_t heads, std::span<const uint32_t> head_dims) const {
  uint64_t bytes = 0;
  for (const uint32_t head_dim : head_dims) bytes += 2 * plane_bytes(heads, head_dim);
  return bytes;
}

KvRecut::KvRecut(const KvContents& from, uint32_t pool, size_t place_begin, const KvOwned& to, KvForm form)
    : from_(from),
      pool_(pool),
      place_begin_(place_begin),
      form_(form),
      layer_begin_(to.layer_begin),
      head_dims_(to.head_dims.begin(), to.head_dims.end()),
      heads_(to.heads.begin(), to.heads.end()),
      block_bytes_(form.block_bytes(heads_.size(), head_dims_)) {}

Result<KvRecut> KvRecut::create(const KvContents& from, uint32_t pool, size_t place_begin, const KvOwned& to) {
  ASSIGN_OR_RETURN(const KvForm form, KvForm::of(from.block_size, from.dtype));
  KvRecut recut(from, pool, place_begin, to, form);
  for (uint32_t i = 0; i < recut.head_dims_.size(); ++i) RETURN_IF_ERROR(recut.add_layer(i));
  return recut;
}

// Where each head of the layer comes from; neighbours that stay neighbours are one run.
Status KvRecut::add_layer(uint32_t index) {
  const uint32_t layer = layer_begin_ + index;
  std::vector<Run>& runs = runs_.emplace_back();
  for (uint32_t to = 0; to < heads_.size(); ++to) {
    Run found;
    for (const KvSlice& slice : from_.slices) {
      if (slice.pool != pool_ || slice.place_begin != place_begin_ || layer < slice.layer_begin ||
          layer - slice.layer_begin >= slice.head_dims.size())
        continue;
      if (slice.head_dims[layer - slice.layer_begin] != head_dims_[index]) continue;
      const auto at = std::find(slice.heads.begin(), slice.heads.end(), heads_[to]);
      if (at == slice.heads.end()) continue;
      found = {&slice, layer - slice.layer_begin, static_cast<uint32_t>(at - slice.heads.begin()), to, 1};
      break;
    }
    if (found.slice == nullptr)
      return error(MOTLEY_FAILED_PRECONDITION, "KV head {} of layer {} is not among what was saved of pool {}",
                   heads_[to], layer, pool_);
    if (!runs.empty() && runs.back().slice == found.slice && runs.back().from + runs.back().count == found.from) {
      ++runs.back().count;
    } else {
      runs.push_back(found);
    }
  }
  return ok_status();
}

void KvRecut::write(std::span<const size_t> places, std::span<std::byte> to) const {
  std::byte* at = to.data();
  for (size_t layer = 0; layer < head_dims_.size(); ++layer) {
    for (int plane = 0; plane < 2; ++plane) {
      write_plane(layer, plane, places, at);
      at += places.size() * form_.plane_bytes(heads_.size(), head_dims_[layer]);
    }
  }
}

namespace {

// Of `positions` of a head each, [position][head] of `cell` bytes: `count` heads at each position.
void copy_heads(const std::byte* from, uint64_t from_heads, std::byte* to, uint64_t to_heads, uint64_t count,
                uint64_t positions, uint64_t cell) {
  if (from_heads == count && to_heads == count) {
    std::memcpy(to, from, positions * count * cell);
    return;
  }
  for (uint64_t p = 0; p < positions; ++p)
    std::memcpy(to + p * to_heads * cell, from + p * from_heads * cell, count * cell);
}

}  // namespace

void KvRecut::write_plane(size_t layer, int plane, std::span<const size_t> places, std::byte* to) const {
  const uint64_t positions = form_.block_size, to_heads = heads_.size();
  const uint64_t data_cell = head_dims_[layer] * form_.element_bytes, scale_cell = form_.scale_bytes;
  std::byte* const scales = to + places.size() * positions * to_heads * data_cell;
  for (const Run& run : runs_[layer]) {
    const KvSlice& slice = *run.slice;
    const uint64_t heads = slice.heads.size();
    const uint64_t block_bytes = form_.block_bytes(heads, slice.head_dims);
    const uint64_t before = form_.block_bytes(heads, std::span(slice.head_dims).first(run.layer));
    const uint64_t plane_bytes = form_.plane_bytes(heads, head_dims_[layer]);
    for (size_t i = 0; i < places.size(); ++i) {
      const size_t begin = places[i] / slice.run_blocks * slice.run_blocks, within = places[i] - begin;
      const uint64_t blocks = std::min<size_t>(slice.run_blocks, slice.place_end - slice.place_begin - begin);
      const std::byte* from =
          slice.bytes.get() + begin * block_bytes + blocks * (before + static_cast<uint64_t>(plane) * plane_bytes);
      copy_heads(from + (within * positions * heads + run.from) * data_cell, heads,
                 to + (i * positions * to_heads + run.to) * data_cell, to_heads, run.count, positions, data_cell);
      if (scale_cell == 0) continue;
      from += blocks * positions * heads * data_cell;
      copy_heads(from + (within * positions * heads + run.from) * scale_cell, heads,
                 scales + (i * positions * to_heads + run.to) * scale_cell, to_heads, run.count, positions, scale_cell);
    }
  }
}

}  // namespace motley
