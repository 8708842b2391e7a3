// A piece of a device's memory.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "kit/internal.hpp"

namespace motley::kit {

// Owns what it has allocated; empty if made of 0 bytes. The memory outlives it.
class Allocation {
 public:
  Allocation() = default;
  Allocation(Memory& memory, uint64_t bytes)
      : memory_(&memory), data_(bytes ? memory.allocate(bytes) : nullptr), bytes_(bytes) {}
  Allocation(Allocation&& other) noexcept
      : memory_(other.memory_), data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Allocation& operator=(Allocation&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Allocation() {
    if (data_) memory_->release(data_, bytes_);
  }
  // It is read and written all over, again and again.
  void busy() {
    if (data_) memory_->busy(data_, bytes_);
  }
  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  Memory* memory_ = nullptr;
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace motley::kit
