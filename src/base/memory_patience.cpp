#include "base/memory_patience.hpp"

#include <atomic>
#include <thread>

namespace motley {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kRetryPeriod{1};
constexpr std::chrono::milliseconds kSameLack{100};  // failures no further apart are of one lack of memory

thread_local int patient = 0;  // lives of this thread's MemoryPatience
thread_local Clock::time_point lack_begun, last_failure;

std::atomic<std::new_handler> others = nullptr;  // the handler that was there: a program's that has us as a library

// Called by operator new, which tries again once this returns.
void on_no_memory() {
  if (const std::new_handler handler = others; patient == 0 && handler != nullptr) return handler();
  if (patient == 0) throw std::bad_alloc();
  wait_for_memory();
}

}  // namespace

void wait_for_memory() {
  const Clock::time_point now = Clock::now();
  if (now - last_failure > kSameLack) lack_begun = now;
  last_failure = now;
  if (now - lack_begun > kMemoryPatience) throw std::bad_alloc();
  std::this_thread::sleep_for(kRetryPeriod);
}

MemoryPatience::MemoryPatience() noexcept {
  static const bool installed = [] {
    others = std::get_new_handler();
    std::set_new_handler(on_no_memory);
    return true;
  }();
  (void)installed;
  ++patient;
}

MemoryPatience::~MemoryPatience() { --patient; }

}  // namespace motley
