// One core, measured through the cpu plugin: matmuls of 1 and of 32 rows in each class of formats, and a read of
// memory.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "kit/event.hpp"
#include "kit/kit.hpp"
#include "sim/inner.hpp"

namespace motley::sim {
namespace {

constexpr int64_t kSide = 1024;  // of the weight: in the core's cache in every format
constexpr uint32_t kRows = 32;
constexpr int kRepeats = 5;                   // the least of them counts: others run on this machine too
constexpr uint64_t kReadBytes = 64ull << 20;  // beyond any cache of one core
constexpr uint64_t kPatience_ns = 60'000'000'000;

template <class T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

class Bench {
 public:
  Bench() {
    motley_open_options options{};
    options.struct_size = sizeof options, options.threads = 1;
    motley_device* device = nullptr;
    call([&](motley_error* error) { return api_.open(0, &options, &device, error); });
    device_ = {device, api_.close};
    motley_queue* queue = nullptr;
    call([&](motley_error* error) { return api_.queue_create(device, &queue, error); });
    queue_ = {queue, api_.queue_destroy};
    in_ = buffer(), out_ = buffer();
  }

  // Seconds of y[rows, side] = x w^T for rows = 1 and kRows.
  std::pair<double, double> matmul(int32_t dtype) {
    const auto weight = zero_weight(dtype);
    const auto programs = compile(weight.get());
    return {fastest(programs.get(), 1), fastest(programs.get(), kRows)};
  }

 private:
  Owned<motley_buffer> buffer() {
    motley_buffer* out = nullptr;
    call([&](motley_error* error) {
      return api_.alloc(device_.get(), kRows * kSide * 4, MOTLEY_USE_ACTIVATION, nullptr, &out, error);
    });
    return {out, api_.free};
  }

  Owned<motley_weight> zero_weight(int32_t dtype) {
    const std::vector<std::byte> data(static_cast<size_t>(kSide * kit::find_format(dtype)->row_bytes(kSide)));
    motley_weight_desc desc{};
    desc.struct_size = sizeof desc, desc.name = "a core's measure", desc.dtype = desc.format = dtype;
    desc.uses = MOTLEY_WEIGHT_MATMUL, desc.experts = 1, desc.rows = desc.cols = kSide;
    desc.data = data.data(), desc.bytes = data.size();
    motley_weight* out = nullptr;
    call([&](motley_error* error) { return api_.pack(device_.get(), &desc, &out, nullptr, error); });
    return {out, api_.weight_free};
  }

  Owned<motley_programs> compile(motley_weight* weight) {
    motley_value values[2]{};
    for (motley_value& v : values) v.dtype = MOTLEY_F32, v.rank = 2, v.dims[0] = MOTLEY_DIM_ROWS, v.dims[1] = kSide;
    motley_op op{};
    std::fill(std::begin(op.in), std::end(op.in), MOTLEY_NONE);
    std::fill(std::begin(op.out), std::end(op.out), MOTLEY_NONE);
    std::fill(std::begin(op.weight), std::end(op.weight), MOTLEY_NONE);
    op.kind = MOTLEY_OP_MATMUL, op.in[0] = 0, op.out[0] = 1, op.weight[0] = 0;
    const int32_t input = 0, output = 1;
    motley_segment segment{};
    segment.struct_size = sizeof segment, segment.cut = MOTLEY_CUT_STAGE, segment.layer_end = 1;
    segment.values = values, segment.value_count = 2, segment.ops = &op, segment.op_count = 1;
    segment.inputs = &input, segment.input_count = 1, segment.outputs = &output, segment.output_count = 1;
    segment.weight_count = 1;
    motley_compile_options options{};
    options.struct_size = sizeof options, options.buckets = &kRows, options.bucket_count = 1;
    motley_programs* out = nullptr;
    call([&](motley_error* error) { return api_.compile(device_.get(), &segment, &weight, &options, &out, error); });
    return {out, api_.programs_free};
  }

  double fastest(motley_programs* programs, uint32_t rows) {
    const std::vector<uint8_t> generated(rows, 1);
    motley_batch batch{};
    batch.struct_size = sizeof batch, batch.rows = rows, batch.generated = generated.data();
    const motley_binding bindings[] = {{0, in_.get(), 0}, {1, out_.get(), 0}};
    motley_enqueue_args args{};
    args.struct_size = sizeof args, args.bindings = bindings, args.binding_count = 2, args.batch = &batch;
    int64_t least = std::numeric_limits<int64_t>::max();
    for (int i = 0; i < kRepeats; ++i) {
      motley_event* raw = nullptr;
      call([&](motley_error* error) { return api_.enqueue(queue_.get(), programs, &args, &raw, error); });
      const Owned<motley_event> event{raw, api_.event_release};
      call([&](motley_error* error) { return api_.event_wait(raw, kPatience_ns, error); });
      motley_event_times times{};
      times.struct_size = sizeof times;
      call([&](motley_error* error) { return api_.event_times(raw, &times, error); });
      least = std::min(least, times.end_ns - times.start_ns);
    }
    return static_cast<double>(std::max<int64_t>(least, 1)) * 1e-9;
  }

  const motley_backend& api_ = inner();
  Owned<motley_device> device_{nullptr, nullptr};
  Owned<motley_queue> queue_{nullptr, nullptr};
  Owned<motley_buffer> in_{nullptr, nullptr}, out_{nullptr, nullptr};
};

double read_gb_s() {
  const std::vector<uint64_t> memory(kReadBytes / 8, 1);
  int64_t least = std::numeric_limits<int64_t>::max();
  volatile uint64_t sink = 0;
  for (int i = 0; i < kRepeats; ++i) {
    const int64_t start = kit::monotonic_ns();
    uint64_t sums[8] = {};
    for (size_t at = 0; at < memory.size(); at += 8)
      for (size_t lane = 0; lane < 8; ++lane) sums[lane] += memory[at + lane];
    for (const uint64_t s : sums) sink = sink + s;
    least = std::min(least, kit::monotonic_ns() - start);
  }
  return static_cast<double>(kReadBytes) / static_cast<double>(std::max<int64_t>(least, 1));
}

Rates measure() {
  Rates rates;
  Bench bench;
  constexpr std::pair<WorkClass, int32_t> kFormats[] = {
      {kWorkF32, MOTLEY_F32}, {kWorkF16, MOTLEY_F16}, {kWorkQ8, MOTLEY_Q8_0}, {kWorkQ4, MOTLEY_Q4_K}};
  constexpr double kFlopsPerRow = 2.0 * kSide * kSide;
  for (const auto& [work, dtype] : kFormats) {
    // time(rows) = flops per row * (rows + half) / peak
    const auto [one, many] = bench.matmul(dtype);
    const double slope = std::max((many - one) / (kRows - 1), 1e-9);
    rates.gflops[work] = kFlopsPerRow / slope * 1e-9;
    rates.half_rows[work] = std::clamp(one / slope - 1, 0.0, 64.0);
  }
  rates.gflops[kWorkAttention] = rates.gflops[kWorkF32] / 2;  // dot products of single rows with long lists
  rates.bandwidth_gb_s = read_gb_s();
  return rates;
}

}  // namespace

const Rates& measured_core() {
  static const Rates rates = measure();
  return rates;
}

}  // namespace motley::sim
