// SPDX-License-Identifier: Apache-2.0
#include "cpu/weight.hpp"

#include <sys/mman.h>

#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

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
    {MOTLEY_F32, PanelKind::kF32},   {MOTLEY_F16, PanelKind::kF16},   {MOTLEY_BF16, PanelKind::kBf16},
    {MOTLEY_Q8_0, PanelKind::kQ8_0}, {MOTLEY_Q4_0, PanelKind::kQ4_0}, {MOTLEY_Q4_1, PanelKind::kQ4_1},
    {MOTLEY_Q4_K, PanelKind::kQ4_K}, {MOTLEY_Q6_K, PanelKind::kQ6_K},
};

// The source column of every kept block of 32 columns.
std::vector<int64_t> block_columns(const kit::WeightSource& source) {
  std::vector<int64_t> columns;
  for (const motley_range& r : source.col_ranges()) {
    for (int64_t c = r.begin; c < r.end; c += kBlockColumns) columns.push_back(c);
  }
  return columns;
}

// A cut of a Q6_K row at an odd sixteenth splits blocks of 32; such a shard is kept in f32, which holds it exactly.
bool splits_blocks(const kit::WeightSource& source) {
  for (const motley_range& r : source.col_ranges()) {
    if (r.begin % kBlockColumns != 0 || r.end % kBlockColumns != 0) return true;
  }
  return false;
}

PanelKind kind_of(const kit::WeightSource& source) {
  if (source.wanted_format() != source.format().dtype) {
    kit::fail(MOTLEY_UNIMPLEMENTED, "weight %s: the cpu backend packs a format only as itself", source.name());
  }
  for (const KindOf& k : kKinds) {
    if (k.dtype != source.format().dtype) continue;
    return !is_float(k.kind) && splits_blocks(source) ? PanelKind::kF32 : k.kind;
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

// ---- one row of one block, from the file's layout into lane r ----

void copy_lanes(const uint8_t* from, int pieces, int r, uint8_t* block) {
  for (int j = 0; j < pieces; ++j) std::memcpy(block + 64 * j + 4 * r, from + 4 * j, 4);
}

void put_q4_0(const uint8_t* row, int64_t column, int r, uint8_t* block, uint8_t*) {
  const uint8_t* p = row + column / 32 * 18;
  copy_lanes(p + 2, 4, r, block);
  std::memcpy(block + 256 + 2 * r, p, 2);
}
void put_q4_1(const uint8_t* row, int64_t column, int r, uint8_t* block, uint8_t*) {
  const uint8_t* p = row + column / 32 * 20;
  copy_lanes(p + 4, 4, r, block);
  std::memcpy(block + 256 + 2 * r, p, 2);
  std::memcpy(block + 288 + 2 * r, p + 2, 2);
}
void put_q8_0(const uint8_t* row, int64_t column, int r, uint8_t* block, uint8_t*) {
  const uint8_t* p = row + column / 32 * 34;
  copy_lanes(p + 2, 8, r, block);
  std::memcpy(block + 512 + 2 * r, p, 2);
}
void put_q4_k(const uint8_t* row, int64_t column, int r, uint8_t* block, uint8_t* header) {
  const uint8_t* p = row + column / kSuperBlock * 144;
  const int j = static_cast<int>(column % kSuperBlock / 32);
  const uint8_t *s = p + 4, *q = p + 16 + 32 * (j / 2);
  for (int i = 0; i < 16; ++i) {
    const int low = j % 2 ? q[i] >> 4 : q[i] & 15, high = j % 2 ? q[16 + i] >> 4 : q[16 + i] & 15;
    block[64 * (i / 4) + 4 * r + i % 4] = static_cast<uint8_t>(low | high << 4);
  }
  const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
  const int minimum = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
  block[256 + r] = static_cast<uint8_t>(scale);
  block[272 + r] = static_cast<uint8_t>(minimum);
  std::memcpy(header + 2 * r, p, 2);
  std::memcpy(header + 32 + 2 * r, p + 2, 2);
}
void put_q6_k(const uint8_t* row, int64_t column, int r, uint8_t* block, uint8_t* header) {
  const uint8_t* p = row + column / kSuperBlock * 210;
  const int e = static_cast<int>(column % kSuperBlock), n = e / 128, g = e % 128 / 32;
  const auto value = [&](int l) {
    const uint8_t byte = p[64 * n + 32 * (g % 2) + l];
    return (g < 2 ? byte & 15 : byte >> 4) | ((p[128 + 32 * n + l] >> (2 * g)) & 3) << 4;
  };
  for (int i = 0; i < 16; ++i) {
    const int low = value(i), high = value(16 + i), j = i / 4, at = 4 * r + i % 4;
    block[64 * j + at] = static_cast<uint8_t>((low & 15) | (high & 15) << 4);
    block[256 + 64 * (j / 2) + at] |= static_cast<uint8_t>(((low >> 4) | (high >> 4) << 2) << (4 * (j % 2)));
  }
  block[384 + r] = p[192 + e / 16];
  block[400 + r] = p[192 + e / 16 + 1];
  std::memcpy(header + 2 * r, p + 208, 2);
}

using PutBlock = void (*)(const uint8_t* row, int64_t column, int r, uint8_t* block, uint8_t* header);
constexpr PutBlock kPutBlock[] = {nullptr, nullptr, nullptr, put_q8_0, put_q4_0, put_q4_1, put_q4_k, put_q6_k};

// Where block b of a panel lies, and its header.
struct BlockPlace {
  int64_t block, header;
};
BlockPlace place(const PanelMatrix& m, int64_t b) {
  const PanelFormat& f = kPanelFormats[static_cast<int>(m.kind)];
  const int64_t group = b / m.group, header = group * (f.header_bytes + m.group * f.block_bytes);
  return {f.header_bytes ? header + f.header_bytes + b % m.group * f.block_bytes : b * f.block_bytes, header};
}

void pack_blocks(const kit::WeightSource& source, const PanelMatrix& m, const std::vector<int64_t>& columns,
                 int64_t expert, int64_t panel, uint8_t* to) {
  const PutBlock put = kPutBlock[static_cast<int>(m.kind)];
  for (int r = 0; r < kPanelRows && panel * kPanelRows + r < m.rows; ++r) {
    const auto* row = reinterpret_cast<const uint8_t*>(source.row_data(expert, panel * kPanelRows + r));
    for (int64_t b = 0; b < m.blocks; ++b) {
      const BlockPlace at = place(m, b);
      put(row, columns[static_cast<size_t>(b)], r, to + at.block, to + at.header);
    }
  }
}

template <class T>
void pack_elements(const kit::WeightSource& source, const PanelMatrix& m, int64_t expert, int64_t panel, uint8_t* to) {
  for (int r = 0; r < kPanelRows && panel * kPanelRows + r < m.rows; ++r) {
    const auto* row = source.row_data(expert, panel * kPanelRows + r);
    int64_t c = 0;
    for (const motley_range& range : source.col_ranges()) {
      for (int64_t s = range.begin; s < range.end; ++s, ++c) {
        std::memcpy(to + (c * kPanelRows + r) * static_cast<int64_t>(sizeof(T)),
                    row + s * static_cast<int64_t>(sizeof(T)), sizeof(T));
      }
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

// ---- one row of one block back to floats ----

void read_nibbles(const uint8_t* block, int r, int32_t (&q)[kBlockColumns]) {
  for (int i = 0; i < 16; ++i) {
    const uint8_t byte = block[64 * (i / 4) + 4 * r + i % 4];
    q[i] = byte & 15;
    q[16 + i] = byte >> 4;
  }
}
float half_at(const uint8_t* p, int r) { return kit::f16_to_f32(load<uint16_t>(p + 2 * r)); }

void read_block(PanelKind kind, const uint8_t* block, const uint8_t* header, int r, float* out) {
  int32_t q[kBlockColumns];
  float scale[2], minimum = 0;
  if (kind == PanelKind::kQ8_0) {
    for (int i = 0; i < kBlockColumns; ++i) q[i] = static_cast<int8_t>(block[64 * (i / 4) + 4 * r + i % 4]);
  } else {
    read_nibbles(block, r, q);
  }
  switch (kind) {
    case PanelKind::kQ8_0: scale[0] = half_at(block + 512, r); break;
    case PanelKind::kQ4_0:
      for (int32_t& x : q) x -= 8;
      scale[0] = half_at(block + 256, r);
      break;
    case PanelKind::kQ4_1:
      scale[0] = half_at(block + 256, r);
      minimum = half_at(block + 288, r);
      break;
    case PanelKind::kQ4_K:
      scale[0] = half_at(header, r) * static_cast<float>(block[256 + r]);
      minimum = -(half_at(header + 32, r) * static_cast<float>(block[272 + r]));
      break;
    default:  // Q6_K
      for (int i = 0; i < 16; ++i) {
        const int high = block[256 + 64 * (i / 8) + 4 * r + i % 4] >> (4 * (i / 4 % 2));
        q[i] += ((high & 3) << 4) - 32;
        q[16 + i] += ((high & 12) << 2) - 32;
      }
      scale[0] = half_at(header, r) * static_cast<float>(static_cast<int8_t>(block[384 + r]));
  }
  scale[1] = kind == PanelKind::kQ6_K ? half_at(header, r) * static_cast<float>(static_cast<int8_t>(block[400 + r]))
                                      : scale[0];
  for (int i = 0; i < kBlockColumns; ++i) out[i] = scale[i / 16] * static_cast<float>(q[i]) + minimum;
}

float read_element(PanelKind kind, const uint8_t* p) {
  switch (kind) {
    case PanelKind::kF16: return kit::f16_to_f32(load<uint16_t>(p));
    case PanelKind::kBf16: return kit::bf16_to_f32(load<uint16_t>(p));
    default: return load<float>(p);
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

PackedWeight::PackedWeight(const kit::WeightSource& source, SlabAllocator& allocator, uint32_t threads) {
  experts = source.experts();
  rows = source.rows();
  cols = source.cols();
  uses = source.uses();
  format = source.format().dtype;
  shape_.kind = kind_of(source);
  shape_.rows = rows;
  shape_.cols = cols;
  shape_.group = header_group(source);
  const std::vector<int64_t> columns = is_float(shape_.kind) ? std::vector<int64_t>() : block_columns(source);
  shape_.blocks = is_float(shape_.kind) ? cols : static_cast<int64_t>(columns.size());
  shape_.panel_bytes = panel_bytes_of(shape_.kind, shape_.blocks, shape_.group);
  const int64_t panels = shape_.panels() * experts;
  bytes = static_cast<uint64_t>(panels * shape_.panel_bytes);
  piece_ = allocator.allocate(bytes);
  const auto pack_part = [&](uint32_t thread, uint32_t of) {
    const kit::Range part = kit::part_of(panels, thread, of);
    for (int64_t p = part.begin; p < part.end; ++p) {
      const int64_t expert = p / shape_.panels(), panel = p % shape_.panels();
      uint8_t* to = piece_.data + p * shape_.panel_bytes;
      if (!is_float(shape_.kind)) {
        pack_blocks(source, shape_, columns, expert, panel, to);
      } else if (source.format().block > 1) {
        pack_expanded(source, shape_, expert, panel, to);
      } else if (shape_.kind == PanelKind::kF32) {
        pack_elements<float>(source, shape_, expert, panel, to);
      } else {
        pack_elements<uint16_t>(source, shape_, expert, panel, to);
      }
    }
  };
  const int64_t useful = static_cast<int64_t>(bytes) / kBytesPerPackThread;
  const uint32_t helpers = useful < 1 ? 1 : useful < threads ? static_cast<uint32_t>(useful) : threads;
  std::mutex mutex;  // guards failure
  std::exception_ptr failure;
  const auto guarded = [&](uint32_t thread) {
    try {
      pack_part(thread, helpers);
    } catch (...) {
      std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
  };
  std::vector<std::jthread> pool;
  pool.reserve(helpers);
  uint32_t started = 1;
  try {
    for (; started < helpers; ++started) pool.emplace_back(guarded, started);
  } catch (const std::system_error&) {  // no more threads to be had: the rest is packed on this one
  }
  guarded(0);
  for (uint32_t thread = started; thread < helpers; ++thread) guarded(thread);
  pool.clear();  // joins
  if (failure) std::rethrow_exception(failure);
}

PanelMatrix PackedWeight::matrix(int64_t expert) const {
  PanelMatrix m = shape_;
  m.data = piece_.data + expert * shape_.panels() * shape_.panel_bytes;
  return m;
}

void PackedWeight::read_row(int64_t expert, int64_t row, float* out) const {
  const uint8_t* panel = piece_.data + (expert * shape_.panels() + row / kPanelRows) * shape_.panel_bytes;
  const int r = static_cast<int>(row % kPanelRows);
  if (is_float(shape_.kind)) {
    const int64_t size = kPanelFormats[static_cast<int>(shape_.kind)].block_bytes / kPanelRows;
    for (int64_t c = 0; c < cols; ++c) out[c] = read_element(shape_.kind, panel + (c * kPanelRows + r) * size);
    return;
  }
  for (int64_t b = 0; b < shape_.blocks; ++b) {
    const BlockPlace at = place(shape_, b);
    read_block(shape_.kind, panel + at.block, panel + at.header, r, out + b * kBlockColumns);
  }
}

}  // namespace motley::cpu
