// MemoryPatience: while one lives, its thread waits where operator new finds no memory, instead of throwing at once.
//
// For threads and moments that serve everybody and so cannot give a single request up: what they need is small, and
// those that asked for too much give theirs back. After kMemoryPatience without success bad_alloc is thrown after all.
// Not for code whose thread, waiting, would keep the memory that it waits for.
#pragma once

#include <chrono>
#include <new>

namespace motley {

inline constexpr std::chrono::seconds kMemoryPatience{10};

class MemoryPatience {
 public:
  MemoryPatience() noexcept;
  ~MemoryPatience();
  MemoryPatience(const MemoryPatience&) = delete;
  MemoryPatience& operator=(const MemoryPatience&) = delete;
};

// Waits a moment; throws bad_alloc once this thread has called it without much of a pause for kMemoryPatience.
void wait_for_memory();

// The same patience with `work` that allocates by other means than operator new (asio). `work` is repeated: what it
// does before it throws bad_alloc must not count.
template <typename Work>
void retry_for_memory(const Work& work) {
  while (true) {
    try {
      return work();
    } catch (const std::bad_alloc&) {
      wait_for_memory();
    }
  }
}

}  // namespace motley
