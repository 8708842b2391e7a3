#include "base/memory_patience.hpp"

#include <thread>

namespace motley {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kRetryPeriod{1};
constexpr std::chrono::milliseconds kSameLack{100};  // failures no further apart are of one lack of memory

thread_local int patient = 0;  // lives of this thread's MemoryPatience
thread_local Clock::time_point lack_begun, last_failure;

// Called by operator new, which tries again once this returns.
void on_no_memory() {
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
  static const std::new_handler before = std::set_new_handler(on_no_memory);  // once
  (void)before;
  ++patient;
}

MemoryPatience::~MemoryPatience() { --patient; }

}  // namespace motley
