// How fast the CPU backend packs each weight format and multiplies by it, on one thread:
//   ninja -C build cpu_kernels_benchmark && build/bin/cpu_kernels_benchmark [VARIANT [FORMAT]]
// prints a Markdown table for each instruction set of this machine: packing in GB of the file's bytes a second;
// products with 1, 8 and 64 rows of activations in billions of operations (multiply, add) a second. The best of several
// passes over a matrix of 1024 x 4096. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/variants.hpp"
#include "cpu/weight.hpp"
#include "kit/kit.hpp"

namespace motley::cpu {
namespace {

constexpr int64_t kRows = 1024, kCols = 4096, kActRowsMax = 64;
constexpr double kSecondsPerFigure = 0.08;

// The shortest of the passes that fit into the time.
template <class F>
double shortest(F&& pass) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9, total = 0;
  while (total < kSecondsPerFigure) {
    const auto start = Clock::now();
    pass();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

// Random bytes, of which none makes an infinite or subnormal scale: the exponent of every 16-bit number is that of
// 0.25.
std::vector<uint8_t> random_bytes(size_t count) {
  std::mt19937 random(1);
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>((random() & 0x83) | 0x34);
  return bytes;
}

void measure(const KernelSet& set, int32_t dtype) {
  const kit::Format& format = *kit::find_format(dtype);
  const std::vector<uint8_t> data = random_bytes(static_cast<size_t>(kRows * format.row_bytes(kCols)));
  motley_weight_desc desc{};
  desc.struct_size = sizeof desc;
  desc.name = format.name;
  desc.dtype = desc.format = dtype;
  desc.uses = MOTLEY_WEIGHT_MATMUL;
  desc.experts = 1;
  desc.rows = kRows;
  desc.cols = kCols;
  desc.data = data.data();
  desc.bytes = data.size();
  const kit::WeightSource source(desc);
  SlabAllocator allocator;  // small pieces share a slab: most passes touch its memory for the first time
  const double pack = shortest([&] { const PackedWeight packed(source, allocator, 1); });
  const PackedWeight w(source, allocator, 1);
  std::printf("| %s | %.2f |", format.name, static_cast<double>(data.size()) / pack * 1e-9);

  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> x(kActRowsMax * kCols), y(kActRowsMax * kRows);
  for (float& v : x) v = normal(random);
  const int64_t blocks = act_blocks(kCols);
  std::vector<ActBlock> act(static_cast<size_t>(kActRowsMax * blocks));
  for (int64_t r = 0; r < kActRowsMax; ++r) set.quantise(x.data() + r * kCols, kCols, act.data() + r * blocks, nullptr);
  MatmulArgs g;
  g.w = w.matrix();
  g.act = act.data();
  g.act_stride = blocks;
  g.x = x.data();
  g.x_stride = kCols;
  g.y = y.data();
  g.y_stride = kRows;
  g.panel_end = g.w.panels();
  for (const int64_t rows : {1, 8, 64}) {
    g.rows = rows;
    const double seconds = shortest([&] { set.matmul(g); });
    std::printf(" %.0f |", 2.0 * static_cast<double>(kRows * kCols * rows) / seconds * 1e-9);
  }
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace
}  // namespace motley::cpu

int main(int count, char** arguments) {
  using namespace motley;
  for (const cpu::KernelSet* set : cpu::variants()) {
    if (count > 1 && std::strcmp(arguments[1], set->name) != 0) continue;
    std::printf("\n| %s | pack GB/s | 1 row | 8 rows | 64 rows |\n|---|---|---|---|---|\n", set->name);
    for (int32_t dtype = 0; dtype < MOTLEY_DTYPE_COUNT; ++dtype) {
      const kit::Format* format = kit::find_format(dtype);
      if (format == nullptr || (count > 2 && std::strcmp(arguments[2], format->name) != 0)) continue;
      cpu::measure(*set, dtype);
    }
  }
  return 0;
}
