// What bounds the CPU backend's products on AMX: the tile instructions alone, on data in the first-level cache.
//   ninja -C build cpu_tiles_benchmark && build/bin/cpu_tiles_benchmark [THREADS]
// prints billions of operations (multiply, add) a second of all threads for steps of two tiles of 16 activation rows
// and two of 16 weight rows: four loads and four products, on sums that stay, or that each step begins at zero and
// stores (as blocks with a scale need it). SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "cpu/variants.hpp"

namespace motley::cpu {
namespace {

#include "cpu/tiles_amx.inc"

// The sums go to one place, in no page at the offset of what is loaded (in the case of a block of 32 columns).
struct alignas(4096) Data {
  int32_t sums[256];
  int8_t tiles[4][1024];
};

template <bool kBf16>
void products() {
  if constexpr (kBf16) {
    tile_dot_bf16<0, 4, 6>(), tile_dot_bf16<1, 4, 7>(), tile_dot_bf16<2, 5, 6>(), tile_dot_bf16<3, 5, 7>();
  } else {
    tile_dot_i8<0, 4, 6>(), tile_dot_i8<1, 4, 7>(), tile_dot_i8<2, 5, 6>(), tile_dot_i8<3, 5, 7>();
  }
}

template <bool kBf16, bool kStore>
void steps(Data& d, int count, int bytes) {
  for (int i = 0; i < count; ++i) {
    const int8_t* at = d.tiles[0];
    tile_load<4>(at, bytes), tile_load<5>(at + 16 * bytes, bytes);
    tile_load<6>(at + 32 * bytes, 64), tile_load<7>(at + 48 * bytes, 64);
    if constexpr (kStore) tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    products<kBf16>();
    if constexpr (kStore) {
      tile_store<0>(d.sums, 64), tile_store<1>(d.sums, 64), tile_store<2>(d.sums, 64), tile_store<3>(d.sums, 64);
    }
  }
}

// The best of several runs.
template <bool kBf16, bool kStore>
void measure(const char* name, int threads, int bytes) {
  using Clock = std::chrono::steady_clock;
  constexpr int kSteps = 100000, kRuns = 5;
  std::barrier meet(threads);
  double best = 0;
  const auto work = [&](bool first) {
    const auto data = std::make_unique<Data>();
    *data = {};
    tiles_begin(16, bytes);
    for (int run = 0; run < kRuns; ++run) {
      meet.arrive_and_wait();
      const auto start = Clock::now();
      steps<kBf16, kStore>(*data, kSteps, bytes);
      meet.arrive_and_wait();
      const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
      const double products = 4.0 * 256 * (kBf16 ? bytes / 2 : bytes) * kSteps * threads;
      if (first) best = std::max(best, 2e-9 * products / seconds);
    }
    tiles_end();
  };
  std::vector<std::jthread> helpers;
  for (int i = 1; i < threads; ++i) helpers.emplace_back(work, false);
  work(true);
  helpers.clear();
  std::printf("| %s, %d columns | %s | %.0f |\n", name, kBf16 ? bytes / 2 : bytes, kStore ? "stored" : "stay", best);
}

}  // namespace
}  // namespace motley::cpu

int main(int count, char** arguments) {
  using namespace motley::cpu;
  const int threads = count > 1 ? std::max(1, std::atoi(arguments[1])) : 1;
  if (std::strcmp(variants().front()->name, "amx") != 0) {
    std::fprintf(stderr, "this machine has no AMX\n");
    return 1;
  }
  std::printf("| %d threads | sums | GOP/s |\n|---|---|---|\n", threads);
  for (const int bytes : {16, 32, 64}) {
    measure<false, false>("int8", threads, bytes);
    measure<false, true>("int8", threads, bytes);
  }
  measure<true, false>("bf16", threads, 64);
  measure<true, true>("bf16", threads, 64);
  return 0;
}
