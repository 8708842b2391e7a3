// How fast the products of a transformer's step are, beside the GPU's own copy bandwidth and, in bf16, cuBLASLt.
//   cuda_products_benchmark [quick | TYPE]     TYPE: up to 64 rows of one, as BF16
// The weights are those of a Llama of 8 billion parameters (4096, 14336, 32 layers, 32 / 8 heads, vocabulary 128256)
// with random contents, eight layers of them in turn, so that no cache holds them. A time is the median of replays of a
// graph. SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>

#include "cuda/launch.cuh"
#include "cuda/products/library.hpp"
#include "cuda/products/pack.hpp"
#include "cuda/products/stream.hpp"

namespace motley::cuda {
namespace {

constexpr int kLayers = 8, kAllLayers = 32, kReplays = 9;
constexpr int64_t kHidden = 4096, kFfn = 14336, kKv = 1024, kVocab = 128256, kRowsMax = 4096;
constexpr int64_t kWorkspaceAt = int64_t{128} << 20, kWeightsAt = int64_t{136} << 20;  // in the library's scratch

__global__ void fill(uint32_t* to, int64_t words, uint32_t mask, uint32_t bits) {
  for (int64_t i = first_item(); i < words; i += item_step()) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u ^ 0x9e3779b9u;
    x ^= x >> 15, x *= 2246822519u, x ^= x >> 13;
    to[i] = (x & mask) | bits;
  }
}

// 64 bytes a thread.
__global__ void copy(const uint4* from, uint4* to) {
  const int64_t first = int64_t{blockIdx.x} * blockDim.x * 4 + threadIdx.x;
  uint4 v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = __ldcs(from + first + i * blockDim.x);
#pragma unroll
  for (int i = 0; i < 4; ++i) __stcs(to + first + i * blockDim.x, v[i]);
}

// Widths of the products of one input.
struct Shape {
  const char* name;
  std::vector<int64_t> widths;
  int64_t cols;
};
const std::vector<Shape> kShapes = {{"qkv", {kHidden, kKv, kKv}, kHidden},
                                    {"o", {kHidden}, kHidden},
                                    {"gate up", {kFfn, kFfn}, kHidden},
                                    {"down", {kHidden}, kFfn}};
const Shape kHead = {"head", {kVocab}, kHidden};

class Bench {
 public:
  explicit Bench(int32_t dtype) : dtype_(dtype), memory_(0) {
    for (int l = 0; l < kLayers; ++l)
      for (const Shape& shape : kShapes) add(shape);
    add(kHead);
    x_ = allocate(kRowsMax * kFfn * 4, 0xffffffffu, 0);
    // Two numbers of bf16, or one of f32.
    fill<<<1024, 256>>>(reinterpret_cast<uint32_t*>(x_.data()), kRowsMax * kFfn, 0x807f807fu, 0x3f003f00u);
    out_ = allocate(kRowsMax * kProductsMax * kFfn * 4, 0, 0);
    for (Job& job : jobs_) {
      job.x = {x_.data(), tile_bytes(dtype) > 0 ? Stored::kTileOrder : Stored::kBf16};
      for (int p = 0; p < job.count; ++p)
        job.products[p].out = out_.data() + p * kRowsMax * kFfn * 4, job.products[p].bf16 = job.count == 2;
    }
    check(cudaStreamCreate(&stream_), "making a stream");
    for (const Job& job : jobs_) {
      scratch_bytes_ = std::max(scratch_bytes_, stream_scratch(job, kRowsMax));
      counters_ = std::max(counters_, stream_counters(job, kRowsMax));
    }
    scratch_bytes_ = std::max(scratch_bytes_, kWeightsAt + kVocab * kHidden * 2);
    scratch_ = allocate(scratch_bytes_, 0, 0);
    counts_ = allocate(counters_ * 4, 0, 0);
    check(cudaDeviceSynchronize(), "preparing");
  }
  ~Bench() { cudaStreamDestroy(stream_); }

  // Milliseconds of the products of all layers and, if asked for, the head.
  double step(int64_t rows, bool head, const std::function<void(size_t, int64_t)>& run) {
    return time([&] {
             for (size_t i = 0; i + 1 < jobs_.size(); ++i) run(i, rows);
           }) * kAllLayers /
               kLayers +
           (head ? time([&] { run(jobs_.size() - 1, rows); }) : 0);
  }
  // Of one shape.
  double shape(size_t which, int64_t rows, const std::function<void(size_t, int64_t)>& run) {
    if (which == kShapes.size()) return time([&] { run(jobs_.size() - 1, rows); });
    return time([&] {
             for (size_t i = which; i + 1 < jobs_.size(); i += kShapes.size()) run(i, rows);
           }) /
           kLayers;
  }
  void own(size_t i, int64_t rows, int64_t few_rows_max) {
    Job job = jobs_[i];
    job.rows = rows;
    if (rows <= kPlainRows) job.x.stored = Stored::kBf16;  // as in a step
    multiply_rows(job, scratch_.data(), reinterpret_cast<uint32_t*>(counts_.data()), stream_, few_rows_max);
  }
  void serially(size_t i, int64_t rows) {
    Job job = jobs_[i];
    job.rows = rows;
    multiply_serially(job, job.cols, stream_);
  }
  // With SILU_MUL, where there are two of one width.
  void gated(size_t i, int64_t rows) {
    Job job = jobs_[i];
    job.rows = rows;
    if (job.count == 2) job.gated = job.products[0].out, job.gated_as = Stored::kBf16;
    multiply_serially(job, job.cols, stream_);
  }
  void by_library(const Library& library, size_t i, int64_t rows) {
    const Job& job = jobs_[i];
    std::byte *const workspace = scratch_.data() + kWorkspaceAt, *const weights = scratch_.data() + kWeightsAt;
    for (int p = 0; p < job.count; ++p) {
      const Product& product = job.products[p];
      const void* w = product.data;
      LibraryCall call{nullptr,       job.x.data, nullptr, nullptr,  product.out,
                       product.width, job.cols,   rows,    job.cols, product.width};
      call.out_bf16 = product.bf16;
      const bool direct = dtype_ == MOTLEY_BF16 || dtype_ == MOTLEY_F16;
      call.f16 = dtype_ == MOTLEY_F16;
      if (call.f16) call.out_bf16 = false;
      if (direct && p + 1 < job.count && job.products[p + 1].width == product.width) {  // as in a step
        call.batch = 2, call.w_step = (job.products[p + 1].data - product.data) / 2;
        call.out_step = (job.products[p + 1].at(0) - product.at(0)) / call.out_element();
      }
      if (!direct) {
        WeightView view;
        view.data = product.data, view.row_bytes = job.row_bytes, view.rows = product.width, view.cols = job.cols;
        view.tiled = true;
        to_bf16(dtype_, view, 0, product.width, true, weights, stream_);
        w = weights;
      }
      call.w = w;
      library.multiply(call, workspace, stream_);
      p += static_cast<int>(call.batch) - 1;
    }
  }
  double weight_bytes(bool head) const {
    double bytes = 0;
    for (size_t i = 0; i + 1 < jobs_.size(); ++i) bytes += bytes_[i];
    return bytes * kAllLayers / kLayers + (head ? bytes_.back() : 0);
  }
  double bytes_of(size_t which) const { return which == kShapes.size() ? bytes_.back() : bytes_[which]; }

  double time(const std::function<void()>& work) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    work();
    check(cudaStreamSynchronize(stream_), "a first run");
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capturing");
    work();
    check(cudaStreamEndCapture(stream_, &graph), "capturing");
    check(cudaGraphInstantiate(&ready, graph, 0), "making a graph");
    cudaEvent_t from, to;
    cudaEventCreate(&from), cudaEventCreate(&to);
    std::vector<float> times;
    for (int i = 0; i < kReplays + 2; ++i) {
      cudaEventRecord(from, stream_);
      cudaGraphLaunch(ready, stream_);
      cudaEventRecord(to, stream_);
      check(cudaEventSynchronize(to), "a replay");
      float ms = 0;
      cudaEventElapsedTime(&ms, from, to);
      if (i >= 2) times.push_back(ms);
    }
    cudaGraphExecDestroy(ready), cudaGraphDestroy(graph), cudaEventDestroy(from), cudaEventDestroy(to);
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
  double copy_bandwidth() {  // bytes read and written, a second
    constexpr int64_t kBytes = int64_t{4} << 30;
    const kit::Allocation a = allocate(kBytes, 0xffffffffu, 0), b = allocate(kBytes, 0, 0);
    const double ms = time([&] {
      copy<<<kBytes / 16 / 4 / 512, 512, 0, stream_>>>(reinterpret_cast<const uint4*>(a.data()),
                                                       reinterpret_cast<uint4*>(b.data()));
    });
    return 2.0 * kBytes / ms / 1e-3;
  }

 private:
  kit::Allocation allocate(int64_t bytes, uint32_t mask, uint32_t bits) {
    kit::Allocation made(memory_, static_cast<uint64_t>(bytes));
    if (mask) fill<<<1024, 256>>>(reinterpret_cast<uint32_t*>(made.data()), bytes / 4, mask, bits);
    return made;
  }
  void add(const Shape& shape) {
    Job job{};
    job.dtype = dtype_, job.cols = static_cast<int32_t>(shape.cols);
    job.row_bytes = tile_bytes(dtype_) ? tiles_across(shape.cols) * tile_bytes(dtype_) : shape.cols * 2;
    double all = 0;
    for (const int64_t width : shape.widths) {
      const int64_t bytes = (tile_bytes(dtype_) ? tiles_down(width) : width) * job.row_bytes;
      // Small numbers in bf16; of tiles any bits but the exponents of infinities.
      held_.push_back(allocate(bytes, 0xbbffbbffu, 0));
      job.products[job.count++] = {reinterpret_cast<const uint8_t*>(held_.back().data()), nullptr, nullptr,
                                   static_cast<int32_t>(width), job.tiles};
      job.tiles += tiles_of(width);
      all += static_cast<double>(bytes);
    }
    std::sort(job.products, job.products + job.count, [](const Product& a, const Product& b) {
      return std::pair(-a.width, a.data) < std::pair(-b.width, b.data);
    });
    int32_t tiles = 0;
    for (int p = 0; p < job.count; ++p)
      job.products[p].first = std::exchange(tiles, tiles + tiles_of(job.products[p].width));
    bytes_.push_back(all);
    jobs_.push_back(job);
  }

  int32_t dtype_;
  CudaMemory memory_;
  cudaStream_t stream_ = nullptr;
  std::vector<Job> jobs_;
  std::vector<double> bytes_;
  std::vector<kit::Allocation> held_;
  kit::Allocation x_, out_, scratch_, counts_;
  int64_t scratch_bytes_ = 0, counters_ = 0;
};

void measure(int32_t dtype, const Library* library, const std::vector<int64_t>& counts) {
  Bench bench(dtype);
  const double copy = bench.copy_bandwidth();
  std::printf("\n%s, %.2f GB of weights; copies move %.2f TB/s, so a step's bound is %.2f ms\n",
              kit::find_format(dtype)->name, bench.weight_bytes(true) / 1e9, copy / 1e12,
              bench.weight_bytes(true) / copy * 1e3);
  std::printf("  rows | own ms  TB/s  share of copy | library ms  share");
  for (const Shape& s : kShapes) std::printf(" | %s us", s.name);
  std::printf(" | head us (own)\n");
  const auto own = [&](size_t i, int64_t rows) { bench.own(i, rows, kFewRowsBest); };
  const auto few = [&](size_t i, int64_t rows) { bench.own(i, rows, kFewRows); };
  const auto many = [&](size_t i, int64_t rows) { bench.own(i, rows, 0); };
  const auto other = [&](size_t i, int64_t rows) { bench.by_library(*library, i, rows); };
  for (int i = 0; i < 20; ++i) bench.step(1, false, own);  // until the clocks are up
  for (const int64_t rows : counts) {
    const bool head = rows <= 256;
    const double bytes = bench.weight_bytes(head);
    const double flop = 2.0 * static_cast<double>(rows) * 6979321856.0 / 1e9;  // without the head; GFLOP / ms = TFLOP/s
    std::printf("  %4lld |", static_cast<long long>(rows));
    const double ms = rows <= 512 ? bench.step(rows, head, own) : 0;
    if (ms > 0)
      std::printf(" %7.2f %5.2f %5.0f %% |", ms, bytes / ms / 1e9, 100 * bytes / ms * 1e3 / copy);
    else
      std::printf("       -     -       - |");
    if (dtype == MOTLEY_BF16 && rows <= kSerialRows) {
      const auto serially = [&](size_t i, int64_t n) { bench.serially(i, n); };
      std::printf(" serial %.2f:", bench.step(rows, head, [&](size_t i, int64_t n) { bench.gated(i, n); }));
      for (size_t s = 0; s <= kShapes.size(); ++s) std::printf(" %.1f", 1e3 * bench.shape(s, rows, serially));
      std::printf(" gated %.1f |", 1e3 * bench.shape(2, rows, [&](size_t i, int64_t n) { bench.gated(i, n); }));
    }
    if (library && dtype == MOTLEY_BF16 && head) {
      std::printf(" library:");
      for (size_t s = 0; s <= kShapes.size(); ++s) std::printf(" %.1f", 1e3 * bench.shape(s, rows, other));
      std::printf(" |");
    }
    if (rows <= kFewRows)
      std::printf(" few %.2f many %.2f |", bench.step(rows, head, few), bench.step(rows, head, many));
    if (library) {
      const double theirs = bench.step(rows, head, other);
      if (head)
        std::printf(" %7.2f %5.0f %%", theirs, 100 * bytes / theirs * 1e3 / copy);
      else
        std::printf(" %7.2f %5.0f TFLOP/s", theirs, flop / theirs);
    }
    for (size_t s = 0; s <= kShapes.size() && ms > 0 && head; ++s)
      std::printf(" | %.1f (%.2f)", 1e3 * bench.shape(s, rows, own),
                  bench.bytes_of(s) / bench.shape(s, rows, own) / 1e9);
    std::printf("\n");
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace motley::cuda

int main(int argc, char** argv) {
  using namespace motley;
  const auto asked = [&](const char* what) { return argc > 1 && std::strcmp(argv[1], what) == 0; };
  const std::vector<int64_t> some = {1, 64, 2048, 4096}, all = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 4096};
  try {
    cudaDeviceProp properties{};
    cuda::check(cudaGetDeviceProperties(&properties, 0), "looking at the GPU");
    if (!cuda::prepare_stream()) kit::fail(MOTLEY_UNIMPLEMENTED, "this GPU has too little shared memory");
    std::string why;
    const auto library = cuda::Library::open(&why);
    std::printf("%s; cuBLASLt: %s\n", properties.name,
                library ? std::to_string(library->version()).c_str() : why.c_str());
    if (argc > 1 && !asked("quick")) {
      int32_t type = 0;
      while (type < MOTLEY_DTYPE_COUNT && !(kit::find_format(type) && asked(kit::find_format(type)->name))) ++type;
      if (type != MOTLEY_BF16 && type != MOTLEY_F16 && (type == MOTLEY_DTYPE_COUNT || cuda::tile_bytes(type) == 0))
        kit::fail(MOTLEY_INVALID_ARGUMENT, "%s: no type with kernels of its own", argv[1]);
      cuda::measure(type, library.get(), {1, 4, 8, 16, 32, 64});
      return 0;
    }
    for (const int32_t dtype : {MOTLEY_BF16, MOTLEY_Q4_K, MOTLEY_Q6_K, MOTLEY_Q8_0, MOTLEY_F8_E4M3_S64})
      cuda::measure(dtype, library.get(), asked("quick") ? some : all);
    for (const int32_t dtype : {MOTLEY_F16, MOTLEY_Q4_0, MOTLEY_Q4_1, MOTLEY_Q5_0, MOTLEY_Q5_1, MOTLEY_Q2_K,
                                MOTLEY_Q3_K, MOTLEY_Q5_K, MOTLEY_IQ4_NL, MOTLEY_IQ4_XS, MOTLEY_MXFP4})
      cuda::measure(dtype, library.get(), some);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
