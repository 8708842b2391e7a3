// What this machine can do at most, for the bounds of cpu_vs_peers:
//   read_bandwidth BYTES THREADS
// prints one JSON object: bytes/s read from a buffer of BYTES by THREADS pinned threads (one sequential stream of the
// widest loads each), and int8 and f32 multiply-add operations/s of loops that never leave the registers. Best of five.
// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

namespace {

constexpr int kPasses = 5;
constexpr uint64_t kBytesMax = uint64_t{1} << 40;
constexpr long kThreadsMax = 4096;
constexpr int kRounds = 1 << 20;  // of the integer loop: some 10 ms

#if defined(__AVX512F__)
constexpr size_t kLoadBytes = 64;
#elif defined(__AVX__)
constexpr size_t kLoadBytes = 32;
#else
constexpr size_t kLoadBytes = 16;
#endif
typedef uint64_t Load __attribute__((vector_size(kLoadBytes)));

constexpr size_t kUnroll = 8;
constexpr size_t kStride = kUnroll * kLoadBytes;

// Keeps a register's value alive, unknown to the compiler and in its place of the code (else it spills), at no cost.
template <typename Vector>
void hide(Vector& value) {
  asm volatile("" : "+x"(value));
}

void read_all(const std::byte* data, size_t bytes) {
  Load sums[kUnroll] = {};
  for (size_t at = 0; at + kStride <= bytes; at += kStride) {
    const Load* from = reinterpret_cast<const Load*>(data + at);
#pragma GCC unroll 8
    for (size_t i = 0; i < kUnroll; ++i) sums[i] |= from[i];
  }
#pragma GCC unroll 8
  for (Load& sum : sums) hide(sum);
}

// One round of independent multiply-adds; returns nothing but time. kRoundOps counts a multiply and an add as two.
#if defined(__AVX512VNNI__)
constexpr const char* kIsa = "AVX-512 VNNI";
constexpr int kSums = 12;
constexpr double kRoundOps = kSums * 64 * 2.0;
using Vector = __m512i;
void round_of(Vector* sums, Vector& left, const Vector& right) {
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) {
    sums[i] = _mm512_dpbusd_epi32(sums[i], left, right);
    hide(sums[i]);
  }
}
#elif defined(__AVXVNNI__)
constexpr const char* kIsa = "AVX-VNNI";
constexpr int kSums = 12;
constexpr double kRoundOps = kSums * 32 * 2.0;
using Vector = __m256i;
void round_of(Vector* sums, Vector& left, const Vector& right) {
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) {
    sums[i] = _mm256_dpbusd_avx_epi32(sums[i], left, right);
    hide(sums[i]);
  }
}
#elif defined(__AVX2__)
// Sums stay in 16 bits as long as 4-bit weights allow (eight products of 15 × 127 × 2), then widen: the cheapest mix
// of instructions a 4-bit kernel could reach. Four sums of eight products, all factors apart.
constexpr const char* kIsa = "AVX2 (vpmaddubsw, vpmaddwd per 8)";
constexpr int kSums = 4;
constexpr int kDepth = 8;
constexpr double kRoundOps = kSums * kDepth * 32 * 2.0;
using Vector = __m256i;
void round_of(Vector* sums, Vector& left, const Vector& right) {
  Vector narrow[kSums];
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) narrow[i] = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int depth = 0; depth < kDepth; ++depth) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) {
      hide(left);
      narrow[i] = _mm256_add_epi16(narrow[i], _mm256_maddubs_epi16(left, right));
      hide(narrow[i]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) {
    sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(narrow[i], _mm256_set1_epi16(1)));
  }
}
#else
constexpr const char* kIsa = "SSE2 (pmaddwd)";
constexpr int kSums = 8;
constexpr double kRoundOps = kSums * 8 * 2.0;
using Vector = __m128i;
void round_of(Vector* sums, Vector& left, const Vector& right) {
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) {
    hide(left);
    sums[i] = _mm_add_epi32(sums[i], _mm_madd_epi16(left, right));
    hide(sums[i]);
  }
}
#endif

// The same of f32, with fused multiply-adds where there are any.
#if defined(__AVX512F__)
using Floats = __m512;
Floats multiply_add(Floats a, Floats b, Floats sum) { return _mm512_fmadd_ps(a, b, sum); }
#elif defined(__FMA__)
using Floats = __m256;
Floats multiply_add(Floats a, Floats b, Floats sum) { return _mm256_fmadd_ps(a, b, sum); }
#else
using Floats = __m128;
Floats multiply_add(Floats a, Floats b, Floats sum) { return _mm_add_ps(_mm_mul_ps(a, b), sum); }
#endif
constexpr int kFloatSums = 12;
constexpr double kFloatRoundOps = kFloatSums * sizeof(Floats) / sizeof(float) * 2.0;

void multiply_floats() {
  Floats sums[kFloatSums] = {};
  Floats left = {}, right = {};
  hide(right);
  for (int round = 0; round < kRounds; ++round) {
    hide(left);
#pragma GCC unroll 16
    for (Floats& sum : sums) {
      sum = multiply_add(left, right, sum);
      hide(sum);
    }
  }
}

void multiply_all() {
  Vector sums[kSums] = {};
  Vector left = {}, right = {};
  hide(right);
#pragma GCC unroll 16
  for (Vector& sum : sums) hide(sum);  // apart from now on, equal as they are
  for (int round = 0; round < kRounds; ++round) {
    hide(left);
    round_of(sums, left, right);
  }
#pragma GCC unroll 16
  for (Vector& sum : sums) hide(sum);
}

std::vector<int> allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    }
  }
  return cpus;
}

void pin(const std::vector<int>& cpus, size_t thread) {
  if (cpus.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpus[thread % cpus.size()], &set);
  sched_setaffinity(0, sizeof(set), &set);  // where it is refused, the figure is only less steady
}

struct Best {
  double read_s = 1e30, multiply_s = 1e30, float_s = 1e30;
};

// Every thread works on its own share; a pass lasts until the last has done.
Best measure(const std::byte* data, size_t share, size_t count) {
  using Clock = std::chrono::steady_clock;
  const std::vector<int> cpus = allowed_cpus();
  std::barrier gate(static_cast<std::ptrdiff_t>(count));
  Best best;
  const auto timed = [&](size_t thread, double& least_s, const auto& work) {
    for (int pass = 0; pass < kPasses; ++pass) {
      gate.arrive_and_wait();
      const auto begin = Clock::now();
      work();
      gate.arrive_and_wait();
      if (thread == 0) least_s = std::min(least_s, std::chrono::duration<double>(Clock::now() - begin).count());
    }
  };
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < count; ++thread) {
    threads.emplace_back([&, thread] {
      pin(cpus, thread);
      timed(thread, best.read_s, [&] { read_all(data + thread * share, share); });
      timed(thread, best.multiply_s, multiply_all);
      timed(thread, best.float_s, multiply_floats);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t bytes = argc == 3 ? std::strtoull(argv[1], nullptr, 10) : 0;
  const long count = argc == 3 ? std::strtol(argv[2], nullptr, 10) : 0;
  if (count < 1 || count > kThreadsMax || bytes > kBytesMax || bytes / static_cast<uint64_t>(count) < kStride) {
    std::fprintf(stderr, "usage: read_bandwidth BYTES THREADS (at least %zu bytes a thread)\n", kStride);
    return 1;
  }
  const size_t share = bytes / static_cast<uint64_t>(count) / kStride * kStride;
  const size_t total = share * static_cast<size_t>(count);
  const std::unique_ptr<std::byte, decltype(&std::free)> data(
      static_cast<std::byte*>(std::aligned_alloc(kStride, total)), &std::free);
  if (!data) {
    std::fprintf(stderr, "read_bandwidth: no memory for %zu bytes\n", total);
    return 1;
  }
  std::fill_n(data.get(), total, std::byte{1});  // pages of their own, not the one page of zeros
  const Best best = measure(data.get(), share, static_cast<size_t>(count));
  const auto rate = [count](double round_ops, double seconds) {
    return round_ops * kRounds * static_cast<double>(count) / seconds;
  };
  std::printf(
      "{\"read_bytes_per_s\": %.0f, \"int8_ops_per_s\": %.0f, \"f32_ops_per_s\": %.0f, \"isa\": \"%s\", "
      "\"load_bytes\": %zu}\n",
      static_cast<double>(total) / best.read_s, rate(kRoundOps, best.multiply_s), rate(kFloatRoundOps, best.float_s),
      kIsa, kLoadBytes);
}
