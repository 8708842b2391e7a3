// The host's memory: zeroed, page-aligned, lazily touched mappings. Its streams do everything at once.
// SPDX-License-Identifier: Apache-2.0
#include "kit/memory.hpp"

#include <sys/mman.h>

#include <cstring>

namespace motley::kit {

namespace {

class HostStream : public Stream {
 public:
  void copy(std::byte* to, const std::byte* from, uint64_t bytes) override { std::memmove(to, from, bytes); }
  void to_host(void* to, const std::byte* from, uint64_t bytes) override { std::memcpy(to, from, bytes); }
  void from_host(std::byte* to, const void* from, uint64_t bytes) override { std::memcpy(to, from, bytes); }
  bool begin(const motley_batch&, std::span<const int32_t>, const Plan&, std::span<const uint64_t>) override {
    return true;
  }
  void finish() override {}
};

class HostMemory : public Memory {
 public:
  bool in_host() const override { return true; }
  std::byte* allocate(uint64_t bytes) override {
    if (bytes > kMappingMax)
      fail(MOTLEY_RESOURCE_EXHAUSTED, "%llu bytes are too many", static_cast<unsigned long long>(bytes));
    void* at =
        mmap(nullptr, page_up(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
      fail(MOTLEY_RESOURCE_EXHAUSTED, "cannot map %llu bytes of memory", static_cast<unsigned long long>(bytes));
    return static_cast<std::byte*>(at);
  }
  void release(std::byte* at, uint64_t bytes) noexcept override { munmap(at, page_up(bytes)); }
  // Fewer pages, where the system has large ones.
  void busy(std::byte* at, uint64_t bytes) noexcept override { madvise(at, page_up(bytes), MADV_HUGEPAGE); }
  std::unique_ptr<Stream> stream() override { return std::make_unique<HostStream>(); }
};

}  // namespace

Memory& main_memory() {
  static HostMemory memory;
  return memory;
}

}  // namespace motley::kit
