// SPDX-License-Identifier: Apache-2.0
#include "cpu/weight.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <span>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/block.hpp"

namespace motley::cpu {
namespace {

constexpr uint64_t kHugePage = 2 << 20;
constexpr uint64_t kSlabBytes = 16 << 20;
constexpr int64_t kBytesPerPackThread = 4 << 20;
constexpr int kSuperBlock = 256;  // columns of a K-quant's block

template <class T>
T load(const void* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

struct KindOf {
  int32_t dtype;
  PanelKind kind;
};
constexpr KindOf kKinds[] = {
    {MOTLEY_F32, PanelKind::kF32},     {MOTLEY_F16, PanelKind::kF16},       {MOTLEY_BF16, PanelKind::kBf16},
    {MOTLEY_Q8_0, PanelKind::kQ8_0},   {MOTLEY_Q4_0, PanelKind::kQ4_0},     {MOTLEY_Q4_1, PanelKind::kQ4_1},
    {MOTLEY_Q5_0, PanelKind::kQ5_0},   {MOTLEY_Q5_1, PanelKind::kQ5_1},     {MOTLEY_Q2_K, PanelKind::kQ2_K},
    {MOTLEY_Q3_K, PanelKind::kQ3_K},   {MOTLEY_Q4_K, PanelKind::kQ4_K},     {MOTLEY_Q5_K, PanelKind::kQ5_K},
    {MOTLEY_Q6_K, PanelKind::kQ6_K},   {MOTLEY_IQ4_NL, PanelKind::kIQ4_NL}, {MOTLEY_IQ4_XS, PanelKind::kIQ4_XS},
    {MOTLEY_MXFP4, PanelKind::kMXFP4},
};

// The source column of every kept block of 32 columns.
std::vector<int64_t> block_columns(const kit::WeightSource& source) {
  std::vector<int64_t> columns;
  for (const motley_range& r : source.col_ranges()) {
    for (int64_t c = r.begin; c < r.end; c += kBlockColumns) columns.push_back(c);
  }
  return columns;
}

// A cut at an odd sixteenth of a row whose scales are of 16 columns splits blocks of 32; such a shard is kept in f32,
// which holds it exactly.
bool splits_blocks(const kit::WeightSource& source) {
  for (const motley_range& r : source.col_ranges()) {
    if (r.begin % kBlockColumns != 0 || r.end % kBlockColumns != 0) return true;
  }
  return false;
}

PanelKind kind_of(const kit::WeightSource& source, bool pairs) {
  if (source.wanted_format() != source.format().dtype) {
    kit::fail(MOTLEY_UNIMPLEMENTED, "weight %s: the cpu backend packs a format only as itself", source.name());
  }
  for (const KindOf& k : kKinds) {
    if (k.dtype != source.format().dtype) continue;
    if (k.kind == PanelKind::kBf16 && pairs) return PanelKind::kBf16Pairs;
    return is_quantised(k.kind) && splits_blocks(source) ? PanelKind::kF32 : k.kind;
  }
  kit::fail(MOTLEY_UNIMPLEMENTED, "weight %s: the cpu backend has no kernel for format %s", source.name(),
            source.format().name);
}

// Blocks that share a header: the largest power of two, at most 8, that divides every border of the kept columns.
int64_t header_group(const kit::WeightSource& source) {
  int64_t group = kSuperBlock / kBlockColumns;
  for (const motley_range& r : source.col_ranges()) {
    while (group > 1 && (r.begin % (group * kBlockColumns) != 0 || r.end % (group * kBlockColumns) != 0)) group /= 2;
  }
  return group;
}

// Where block b of a panel lies, and its header.
struct BlockPlace {
  int64_t block, header;
};
BlockPlace place(const PanelMatrix& m, int64_t b) {
  const int64_t header_bytes = format_of(m.kind).header_bytes, size = block_bytes(m.kind);
  const int64_t header = b / m.group * (header_bytes + m.group * size);
  return {header + header_bytes + b % m.group * size, header};
}

// The panel's rows in the file.
struct PanelRows {
  PanelRows(const kit::WeightSource& source, int64_t expert, int64_t panel) {
    for (; count < kPanelRows && panel * kPanelRows + count < source.rows(); ++count)
      row[count] = reinterpret_cast<const uint8_t*>(source.row_data(expert, panel * kPanelRows + count));
  }
  const uint8_t* row[kPanelRows] = {};
  int count = 0;
};

// Group by group, so that what is written stays in the first-level cache while all rows pass.
void pack_blocks(const kit::WeightSource& source, const PanelMatrix& m, const std::vector<int64_t>& columns,
                 int64_t expert, int64_t panel, uint8_t* to) {
  const PackGroup pack = pack_group(m.kind);
  const PanelRows rows(source, expert, panel);
  for (int64_t b = 0; b < m.blocks; b += m.group) {
    const BlockPlace at = place(m, b);
    const std::span group(columns.data() + b, static_cast<size_t>(std::min(m.group, m.blocks - b)));
    for (int r = 0; r < rows.count; ++r) pack(rows.row[r], group, r, to + at.header, to + at.block);
  }
}

// Copies elements of type T, each of kColumns columns, that lie column by column of elements.
template <class T, int kColumns>
void pack_elements(const kit::WeightSource& source, int64_t expert, int64_t panel, uint8_t* to) {
  constexpr int64_t kAtOnce = 64, kSize = sizeof(T);  // what is written stays in the first-level cache
  const PanelRows rows(source, expert, panel);
  for (const motley_range& range : source.col_ranges()) {
    const int64_t last = range.end / kColumns;
    for (int64_t begin = range.begin / kColumns; begin < last; begin += kAtOnce) {
      const int64_t count = std::min(kAtOnce, last - begin);
      for (int r = 0; r < rows.count; ++r) {
        const uint8_t* from = rows.row[r] + begin * kSize;
        for (int64_t c = 0; c < count; ++c) std::memcpy(to + (c * kPanelRows + r) * kSize, from + c * kSize, sizeof(T));
      }
      to += count * kPanelRows * kSize;
    }
  }
}

// BF16 by pairs. Columns that are kept from an odd one on, or to one, go one by one.
void pack_pairs(const kit::WeightSource& source, int64_t expert, int64_t panel, uint8_t* to) {
  const auto ranges = source.col_ranges();
  if (std::all_of(ranges.begin(), ranges.end(), [](const auto& r) { return r.begin % 2 == 0 && r.end % 2 == 0; })) {
    return pack_elements<uint32_t, 2>(source, expert, panel, to);
  }
  const PanelRows rows(source, expert, panel);
  int64_t kept = 0;
  for (const motley_range& range : ranges) {
    for (int64_t c = range.begin; c < range.end; ++c, ++kept) {
      for (int r = 0; r < rows.count; ++r) std::memcpy(to + 2 * pair_place(kept, r), rows.row[r] + 2 * c, 2);
    }
  }
}

void pack_expanded(const kit::WeightSource& source, const PanelMatrix& m, int64_t expert, int64_t panel, uint8_t* to) {
  std::vector<float> row(static_cast<size_t>(m.cols));
  for (int r = 0; r < kPanelRows && panel * kPanelRows + r < m.rows; ++r) {
    source.read_row(expert, panel * kPanelRows + r, row.data());
    for (int64_t c = 0; c < m.cols; ++c) std::memcpy(to + (c * kPanelRows + r) * 4, &row[static_cast<size_t>(c)], 4);
  }
}

float read_element(PanelKind kind, const uint8_t* panel, int64_t column, int64_t row) {
  const int64_t at = column * kPanelRows + row;
  switch (kind) {
    case PanelKind::kF16: return kit::f16_to_f32(load<uint16_t>(panel + 2 * at));
    case PanelKind::kBf16: return kit::bf16_to_f32(load<uint16_t>(panel + 2 * at));
    case PanelKind::kBf16Pairs: return kit::bf16_to_f32(load<uint16_t>(panel + 2 * pair_place(column, row)));
    default: return load<float>(panel + 4 * at);
  }
}

}  // namespace

Slab::Slab(uint64_t bytes) : bytes_((bytes + kHugePage - 1) / kHugePage * kHugePage) {
  // One huge page more, so that the used part can begin on a huge-page border; the rest is given back.
  const uint64_t mapped = bytes_ + kHugePage;
  void* at = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) {
    kit::fail(MOTLEY_RESOURCE_EXHAUSTED, "no memory for %llu bytes of weights", static_cast<unsigned long long>(bytes));
  }
  auto* base = static_cast<uint8_t*>(at);
  const uint64_t before = (kHugePage - reinterpret_cast<uintptr_t>(base) % kHugePage) % kHugePage;
  if (before > 0) munmap(base, before);
  munmap(base + before + bytes_, kHugePage - before);
  data_ = base + before;
  madvise(data_, bytes_, MADV_HUGEPAGE);
}

Slab::~Slab() { munmap(data_, bytes_); }

SlabAllocator::Piece SlabAllocator::allocate(uint64_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (bytes >= kSlabBytes / 2) {
    auto own = std::make_shared<Slab>(bytes);
    uint8_t* data = own->data();
    return {std::move(own), data};
  }
  const std::lock_guard lock(mutex_);
  if (!current_ || used_ + bytes > current_->bytes()) {
    current_ = std::make_shared<Slab>(kSlabBytes);
    used_ = 0;
  }
  uint8_t* data = current_->data() + used_;
  used_ += bytes;
  return {current_, data};
}

void share_out(int64_t count, int64_t grain, uint32_t threads, const std::function<void(kit::Range)>& f) {
  std::mutex mutex;  // guards failure
  std::exception_ptr failure;
  const auto guarded = [&](uint32_t thread) {
    try {
      f(kit::part_of(count, thread, threads, grain));
    } catch (...) {
      std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
  };
  std::vector<std::jthread> pool;
  pool.reserve(threads);
  uint32_t started = 1;
  try {
    for (; started < threads; ++started) pool.emplace_back(guarded, started);
  } catch (const std::system_error&) {  // no more threads to be had: the rest is done on this one
    for (uint32_t thread = started; thread < threads; ++thread) guarded(thread);
  }
  guarded(0);
  pool.clear();  // joins
  if (failure) std::rethrow_exception(failure);
}

PackedWeight::PackedWeight(const kit::WeightSource& source, SlabAllocator& allocator, uint32_t threads, bool pairs)
    : Weight(source) {
  format = source.format().dtype;
  shape_.kind = kind_of(source, pairs);
  shape_.rows = rows;
  shape_.cols = cols;
  shape_.group = header_group(source);
  const std::vector<int64_t> columns = is_quantised(shape_.kind) ? block_columns(source) : std::vector<int64_t>();
  shape_.blocks = is_float(shape_.kind)       ? cols
                  : is_quantised(shape_.kind) ? static_cast<int64_t>(columns.size())
                                              : act_blocks(cols);
  shape_.panel_bytes = panel_bytes_of(shape_.kind, shape_.blocks, shape_.group);
  const int64_t panels = shape_.panels() * experts;
  bytes = static_cast<uint64_t>(panels * shape_.panel_bytes);
  piece_ = allocator.allocate(bytes);
  const int64_t useful = std::clamp<int64_t>(static_cast<int64_t>(bytes) / kBytesPerPackThread, 1, threads);
  share_out(panels, 1, static_cast<uint32_t>(useful), [&](kit::Range part) {
    for (int64_t p = part.begin; p < part.end; ++p) {
      const int64_t expert = p / shape_.panels(), panel = p % shape_.panels();
      uint8_t* to = piece_.data + p * shape_.panel_bytes;
      if (is_quantised(shape_.kind)) {
        pack_blocks(source, shape_, columns, expert, panel, to);
      } else if (source.format().block > 1) {
        pack_expanded(source, shape_, expert, panel, to);
      } else if (shape_.kind == PanelKind::kF32) {
        pack_elements<float, 1>(source, expert, panel, to);
      } else if (shape_.kind == PanelKind::kBf16Pairs) {
        pack_pairs(source, expert, panel, to);
      } else {
        pack_elements<uint16_t, 1>(source, expert, panel, to);
      }
    }
  });
}

PanelMatrix PackedWeight::matrix(int64_t expert) const {
  PanelMatrix m = shape_;
  m.data = piece_.data + expert * shape_.panels() * shape_.panel_bytes;
  return m;
}

LaneSquares PackedWeight::squares(int64_t panel) const {
  LaneSquares sums;
  const uint8_t* data = piece_.data + panel * shape_.panel_bytes;
  for (int64_t b = 0; b < shape_.blocks; ++b) {
    const BlockPlace at = place(shape_, b);
    add_squares(shape_.kind, data + at.block, data + at.header, &sums);
  }
  return sums;
}

void PackedWeight::read_row(int64_t expert, int64_t row, float* out) const {
  const uint8_t* panel = piece_.data + (expert * shape_.panels() + row / kPanelRows) * shape_.panel_bytes;
  const int r = static_cast<int>(row % kPanelRows);
  if (!is_quantised(shape_.kind)) {
    for (int64_t c = 0; c < cols; ++c) out[c] = read_element(shape_.kind, panel, c, r);
    return;
  }
  for (int64_t b = 0; b < shape_.blocks; ++b) {
    const BlockPlace at = place(shape_, b);
    read_block(shape_.kind, panel + at.block, panel + at.header, r, out + b * kBlockColumns);
  }
}

uint64_t packed_formats() {
  uint64_t mask = 0;
  for (const KindOf& k : kKinds) mask |= uint64_t{1} << k.dtype;
  return mask;
}

}  // namespace motley::cpu
