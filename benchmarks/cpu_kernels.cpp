// How fast the CPU backend packs each weight format and multiplies by it:
//   ninja -C build cpu_kernels_benchmark
//   build/bin/cpu_kernels_benchmark [--rows 1,8,64] [--shape 1024x4096] [--threads 1] [--copies 1] [--prompt 1]
//                             [VARIANT [FORMAT]]
// prints a Markdown table for each instruction set of this machine: packing on one thread in GB of the file's bytes a
// second; products of matrices of that shape (outputs x inputs) with so many rows of activations, in billions of
// operations (multiply, add) a second and in parentheses GB of packed weights read a second. The panels are shared by
// the threads as in a step. copies: as many equal matrices in turn, so that none stays in a cache. prompt: the rows are
// of a prompt, which some sets multiply in another form. The best of several passes.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/ops.hpp"
#include "cpu/variants.hpp"
#include "cpu/weight.hpp"
#include "kit/kit.hpp"

namespace motley::cpu {
namespace {

constexpr double kSecondsPerFigure = 0.3;
constexpr int kPassesMin = 3;

struct Options {
  std::vector<int64_t> rows = {1, 8, 64};
  int64_t outputs = 1024, inputs = 4096;
  int threads = 1, copies = 1;
  bool prompt = false;
  const char *variant = nullptr, *format = nullptr;
};

// The shortest of the passes that fit into the time.
template <class F>
double shortest(F&& pass) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9, total = 0;
  for (int i = 0; i < kPassesMin || total < kSecondsPerFigure; ++i) {
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

// Threads that run a job together, the caller among them.
class Team {
 public:
  explicit Team(int size) : size_(size), meet_(size) {
    for (int i = 1; i < size; ++i) {
      helpers_.emplace_back([this, i] {
        while (meet_.arrive_and_wait(), job_) (*job_)(i), meet_.arrive_and_wait();
      });
    }
  }
  ~Team() {
    job_ = nullptr;
    meet_.arrive_and_wait();
  }
  template <class F>
  void run(F&& f) {
    const std::function<void(int)> job = f;
    job_ = &job;
    meet_.arrive_and_wait();
    f(0);
    meet_.arrive_and_wait();
  }
  int size() const { return size_; }

 private:
  const int size_;
  std::barrier<> meet_;
  const std::function<void(int)>* job_ = nullptr;
  std::vector<std::jthread> helpers_;
};

void measure(const KernelSet& set, int32_t dtype, const Options& options, Team& team) {
  const kit::Format& format = *kit::find_format(dtype);
  const int64_t outputs = options.outputs, inputs = options.inputs;
  const std::vector<uint8_t> data = random_bytes(static_cast<size_t>(outputs * format.row_bytes(inputs)));
  motley_weight_desc desc{};
  desc.struct_size = sizeof desc;
  desc.name = format.name;
  desc.dtype = desc.format = dtype;
  desc.uses = MOTLEY_WEIGHT_MATMUL;
  desc.experts = 1;
  desc.rows = outputs;
  desc.cols = inputs;
  desc.data = data.data();
  desc.bytes = data.size();
  const kit::WeightSource source(desc);
  SlabAllocator allocator;  // small pieces share a slab: most passes touch its memory for the first time
  const bool pairs = set.narrow != nullptr;
  const double pack = shortest([&] { const PackedWeight packed(source, allocator, 1, pairs); });
  std::vector<std::unique_ptr<PackedWeight>> copies;
  for (int i = 0; i < options.copies; ++i) {
    copies.push_back(std::make_unique<PackedWeight>(source, allocator, static_cast<uint32_t>(team.size()), pairs));
  }
  std::printf("| %s | %.2f |", format.name, static_cast<double>(data.size()) / pack * 1e-9);

  const int64_t most = *std::max_element(options.rows.begin(), options.rows.end());
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(most * inputs)), y(static_cast<size_t>(most * outputs));
  for (float& v : x) v = normal(random);
  RowForms forms;
  const PanelKind kind = copies[0]->matrix().kind;
  options.prompt&& set.takes_tiled && !is_float(kind) ? void(forms.tiled = true) : forms.add(kind);
  const SlabAllocator::Piece prepared = allocator.allocate(static_cast<uint64_t>(most * forms.row_bytes(inputs)));
  auto* const at = reinterpret_cast<std::byte*>(prepared.data);  // on large pages, as in a step
  for (const int64_t rows : options.rows) {
    MatmulArgs g;
    for (int64_t r = 0; r < rows; ++r) forms.prepare(set, x.data() + r * inputs, inputs, at, rows, r);
    forms.point(at, inputs, rows, 0, &g);
    g.x = x.data();
    g.x_stride = inputs;
    g.rows = rows;
    g.y = y.data();
    g.y_stride = outputs;
    const int64_t panels = copies[0]->matrix().panels();
    const double seconds = shortest([&] {
      std::vector<std::atomic<int64_t>> taken(copies.size());
      team.run([&](int thread) {
        MatmulArgs mine = g;
        for (size_t i = 0; i < copies.size(); ++i) {
          mine.w = copies[i]->matrix();
          kit::OpCall call;
          call.taken = &taken[i];
          call.thread = static_cast<uint32_t>(thread), call.threads = static_cast<uint32_t>(team.size());
          for (kit::Range part = call.take(panels, 2); part.begin < part.end; part = call.take(panels, 2)) {
            mine.panel_begin = part.begin;
            mine.panel_end = part.end;
            set.matmul(mine);
          }
        }
      });
    });
    std::printf(" %.0f (%.1f) |", 2e-9 * static_cast<double>(outputs * inputs * rows * options.copies) / seconds,
                1e-9 * static_cast<double>(copies[0]->bytes) * options.copies / seconds);
  }
  std::printf("\n");
  std::fflush(stdout);
}

// Returns false at what it does not understand.
bool parse(int count, char** arguments, Options* options) {
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name.rfind("--", 0) != 0) {
      if (options->format != nullptr) return false;
      (options->variant != nullptr ? options->format : options->variant) = arguments[i];
      continue;
    }
    if (++i == count) return false;
    const char* text = arguments[i];
    char* end = nullptr;
    if (name == "--rows") {
      options->rows.clear();
      do options->rows.push_back(std::strtoll(text, &end, 10));
      while (options->rows.back() > 0 && *end == ',' && *(text = end + 1) != '\0');
    } else if (name == "--shape") {
      options->outputs = std::strtoll(text, &end, 10);
      options->inputs = *end == 'x' ? std::strtoll(end + 1, &end, 10) : 0;
    } else if (name == "--prompt") {
      options->prompt = std::strtol(text, &end, 10) != 0;
    } else if (name == "--threads" || name == "--copies") {
      (name == "--threads" ? options->threads : options->copies) = static_cast<int>(std::strtol(text, &end, 10));
    } else {
      return false;
    }
    if (*end != '\0') return false;
  }
  return *std::min_element(options->rows.begin(), options->rows.end()) > 0 && options->outputs > 0 &&
         options->inputs > 0 && options->inputs % 256 == 0 && options->threads > 0 && options->copies > 0;
}

void measure_all(const Options& options) {
  Team team(options.threads);
  for (const KernelSet* set : variants()) {
    if (options.variant != nullptr && std::strcmp(options.variant, set->name) != 0) continue;
    std::printf("\n%lld x %lld, %d threads, %d copies\n\n| %s | pack GB/s |", static_cast<long long>(options.outputs),
                static_cast<long long>(options.inputs), options.threads, options.copies, set->name);
    for (const int64_t rows : options.rows) std::printf(" %lld rows |", static_cast<long long>(rows));
    std::printf("\n|---|---|");
    for (size_t i = 0; i < options.rows.size(); ++i) std::printf("---|");
    std::printf("\n");
    for (int32_t dtype = 0; dtype < MOTLEY_DTYPE_COUNT; ++dtype) {
      const kit::Format* format = kit::find_format(dtype);
      if (format == nullptr || (options.format != nullptr && std::strcmp(options.format, format->name) != 0)) continue;
      measure(*set, dtype, options, team);
    }
  }
}

}  // namespace
}  // namespace motley::cpu

int main(int count, char** arguments) {
  motley::cpu::Options options;
  if (!motley::cpu::parse(count, arguments, &options)) {
    std::fprintf(stderr,
                 "usage: %s [--rows N,...] [--shape OUTPUTSxINPUTS, inputs a multiple of 256] [--threads N] "
                 "[--copies N] [--prompt 0|1] [VARIANT [FORMAT]]\n",
                 arguments[0]);
    return 2;
  }
  motley::cpu::measure_all(options);
  return 0;
}
