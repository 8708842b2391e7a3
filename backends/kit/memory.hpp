// Zeroed, page-aligned, lazily touched memory.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/mman.h>

#include <utility>

#include "kit/internal.hpp"

namespace motley::kit {

// Owns one private mapping; empty if made of 0 bytes.
class Mapping {
 public:
  Mapping() = default;
  explicit Mapping(uint64_t bytes) : bytes_(page_up(bytes)) {
    if (bytes > kMappingMax)
      fail(MOTLEY_RESOURCE_EXHAUSTED, "%llu bytes are too many", static_cast<unsigned long long>(bytes));
    if (bytes_ == 0) return;
    void* at = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
      fail(MOTLEY_RESOURCE_EXHAUSTED, "cannot map %llu bytes of memory", static_cast<unsigned long long>(bytes));
    data_ = static_cast<std::byte*>(at);
  }
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Mapping() {
    if (data_) munmap(data_, bytes_);
  }
  // For what is read and written all over, again and again: fewer pages, where the system has large ones.
  void prefer_large_pages() {
    if (data_) madvise(data_, bytes_, MADV_HUGEPAGE);
  }
  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace motley::kit
