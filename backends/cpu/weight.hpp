// A matrix weight in panels (layout.hpp). Packing changes the order of the numbers, never a value.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

#include "cpu/block.hpp"
#include "cpu/layout.hpp"
#include "kit/kit.hpp"

namespace motley::cpu {

// Zeroed anonymous memory on huge pages where the system grants them.
class Slab {
 public:
  explicit Slab(uint64_t bytes);  // throws kit::Error RESOURCE_EXHAUSTED
  ~Slab();
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;
  uint8_t* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  uint64_t bytes_ = 0;
};

// Hands out 64-byte aligned pieces of slabs, so that small matrices share huge pages. Thread-safe. A slab lives as long
// as one of its pieces.
class SlabAllocator {
 public:
  struct Piece {
    std::shared_ptr<Slab> slab;
    uint8_t* data = nullptr;
  };
  Piece allocate(uint64_t bytes);

 private:
  std::mutex mutex_;
  std::shared_ptr<Slab> current_;
  uint64_t used_ = 0;
};

// f(part of [0, count) in whole grains) on so many threads, for as long as it takes; throws what one of them has
// thrown.
void share_out(int64_t count, int64_t grain, uint32_t threads, const std::function<void(kit::Range)>& f);

class PackedWeight final : public kit::Weight {
 public:
  // pairs: BF16 is packed by pairs of columns, as KernelSet::narrow wants it.
  PackedWeight(const kit::WeightSource& source, SlabAllocator& allocator, uint32_t threads, bool pairs = false);
  void read_row(int64_t expert, int64_t row, float* out) const override;
  PanelMatrix matrix(int64_t expert = 0) const;
  // Of the rows of a panel of a quantised matrix (of expert 0), over all columns.
  LaneSquares squares(int64_t panel) const;

 private:
  PanelMatrix shape_;
  SlabAllocator::Piece piece_;
};

// The formats that are packed: bit t is motley_dtype t.
uint64_t packed_formats();

}  // namespace motley::cpu
