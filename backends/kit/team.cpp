#include "kit/team.hpp"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>

#include "kit/internal.hpp"

namespace motley::kit {

namespace {

constexpr std::chrono::nanoseconds kSpin = std::chrono::microseconds(40);
constexpr int kPausesPerLook = 32;  // between two looks at the clock

void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void futex(std::atomic<uint32_t>* word, int operation, uint32_t value) {
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation | FUTEX_PRIVATE_FLAG, value, nullptr, nullptr, 0);
}

}  // namespace

void bind_thread(std::span<const int> cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores)
    if (core >= 0 && core < CPU_SETSIZE) CPU_SET(static_cast<size_t>(core), &set);
  if (CPU_COUNT(&set) > 0) pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

void Signal::wait_while(uint32_t old, bool spin) {
  if (spin) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < kPausesPerLook; ++i) {
        if (word_.load(std::memory_order_acquire) != old) return;
        pause_cpu();
      }
    } while (std::chrono::steady_clock::now() < end);
  }
  // advance() changes the word and then looks for sleepers; we announce ourselves and then the kernel compares the
  // word: whichever comes second sees the other.
  sleepers_.fetch_add(1);
  while (word_.load() == old) futex(&word_, FUTEX_WAIT, old);
  sleepers_.fetch_sub(1);
}

void Signal::advance() {
  word_.fetch_add(1);
  if (sleepers_.load() != 0) futex(&word_, FUTEX_WAKE, INT_MAX);
}

Team::Team(uint32_t threads, std::vector<int> cores, bool own)
    : threads_(std::clamp(threads, 1u, kThreadsMax)),
      cores_(std::move(cores)),
      pinned_(cores_.size() == threads_ || (own && cores_.size() > threads_)),
      spin_(cores_.size() >= threads_) {
  others_.reserve(threads_ - 1);
  try {
    for (uint32_t i = 1; i < threads_; ++i) others_.emplace_back([this, i] { loop(i); });
  } catch (const std::exception&) {  // a limit of the system, or no memory for a stack
    const size_t started = others_.size() + 1;
    stop();
    fail(MOTLEY_RESOURCE_EXHAUSTED, "only %zu of %u threads could be started; give fewer with --threads", started,
         threads_);
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  if (others_.empty()) return;
  stop_ = true;
  start_.advance();
  for (std::thread& thread : others_) thread.join();
  others_.clear();
}

std::span<const int> Team::cores_of(uint32_t thread) const {
  return pinned_ ? std::span(cores_).subspan(thread, 1) : std::span(cores_);
}

void Team::loop(uint32_t thread) {
  bind_thread(cores_of(thread));
  for (uint32_t seen = 0;; ++seen) {
    start_.wait_while(seen, spin_);
    if (stop_) return;
    body_(context_, thread);
    barrier();
  }
}

void Team::run(Body body, void* context) {
  std::lock_guard lock(running_);
  if (threads_ == 1) {
    body(context, 0);
    return;
  }
  body_ = body, context_ = context;
  start_.advance();
  body(context, 0);
  barrier();
}

void Team::barrier() {
  if (threads_ == 1) return;
  const uint32_t round = met_.value();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    met_.advance();
  } else {
    met_.wait_while(round, spin_);
  }
}

}  // namespace motley::kit
