#include "runtime/device_figures.hpp"

#include <algorithm>
#include <array>
#include <thread>

#include "base/clock.hpp"
#include "comm/communicator.hpp"
#include "model/dtype.hpp"
#include "runtime/host_buffer.hpp"
#include "runtime/measure.hpp"

namespace motley {
namespace {

constexpr uint64_t kWaitNs = 60ull * 1'000'000'000;
constexpr int64_t kWideRows = 6144, kWideCols = 4096;  // beyond any cache
constexpr int64_t kSide = 1024;
constexpr uint32_t kManyRows = 256;
constexpr int kRuns = 5;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// y = x W^T of one weight, compiled alone.
class Product {
 public:
  static Result<std::unique_ptr<Product>> create(const Device& device, const DtypeInfo& dtype, int64_t rows,
                                                 int64_t cols, uint32_t batch_rows) {
    std::unique_ptr<Product> made(new Product(device, batch_rows));
    const auto block = static_cast<int64_t>(dtype.block_elements);
    std::vector<std::byte> bytes(static_cast<size_t>(rows * (cols / block) * dtype.block_bytes), std::byte{1});
    motley_weight_desc desc{};
    desc.struct_size = sizeof desc;
    desc.name = "figures";
    desc.dtype = desc.format = dtype.id;
    desc.uses = MOTLEY_WEIGHT_MATMUL;
    desc.experts = 1, desc.rows = rows, desc.cols = cols;
    desc.data = bytes.data(), desc.bytes = bytes.size();
    ASSIGN_OR_RETURN(made->weight_, device.pack(desc));
    if (made->weight_.info.aliases_source != 0) made->weight_.source = std::move(bytes);
    ASSIGN_OR_RETURN(made->x_,
                     device.allocate(sizeof(float) * batch_rows * static_cast<uint64_t>(cols), MOTLEY_USE_ACTIVATION));
    ASSIGN_OR_RETURN(made->y_,
                     device.allocate(sizeof(float) * batch_rows * static_cast<uint64_t>(rows), MOTLEY_USE_ACTIVATION));
    ASSIGN_OR_RETURN(made->queue_, device.create_queue());
    RETURN_IF_ERROR(made->compile(rows, cols));
    return made;
  }

  // Nanoseconds from the enqueue to the host's knowing, the median of some runs.
  Result<double> time_ns() {
    std::vector<double> times;
    for (int run = 0; run <= kRuns; ++run) {
      const int64_t began_ns = system_clock().now_ns();
      ASSIGN_OR_RETURN(const EventHandle done, device_.enqueue(queue_, programs_, args_));
      RETURN_IF_ERROR(device_.wait(done, kWaitNs));
      if (run > 0) times.push_back(static_cast<double>(system_clock().now_ns() - began_ns));
    }
    return median(std::move(times));
  }

 private:
  Product(const Device& device, uint32_t rows) : device_(device), positions_(rows), slots_(rows, MOTLEY_NONE) {
    row_begin_ = {0, rows};
    generated_.assign(rows, 0);
    for (uint32_t r = 0; r < rows; ++r) positions_[r] = static_cast<int32_t>(r);
    context_ = static_cast<int32_t>(rows);
    batch_.struct_size = sizeof batch_;
    batch_.rows = rows;
    batch_.token_ids = positions_.data();
    batch_.token_slots = batch_.kv_slots = slots_.data();
    batch_.positions = positions_.data();
    batch_.generated = generated_.data();
    batch_.seqs = 1;
    batch_.seq_row_begin = row_begin_.data();
    batch_.seq_context = &context_;
    batch_.seq_block_begin = block_begin_.data();
    batch_.blocks = &context_;
  }

  Status compile(int64_t rows, int64_t cols) {
    std::array<motley_value, 2> values{};
    for (motley_value& value : values) value.dtype = MOTLEY_F32, value.rank = 2, value.dims[0] = MOTLEY_DIM_ROWS;
    values[0].dims[1] = cols, values[1].dims[1] = rows;
    motley_op op{};
    op.kind = MOTLEY_OP_MATMUL;
    for (int i = 0; i < MOTLEY_OP_INPUTS_MAX; ++i) op.in[i] = op.out[i] = op.weight[i] = MOTLEY_NONE;
    op.in[0] = 0, op.out[0] = 1, op.weight[0] = 0;
    const int32_t in = 0, out = 1;
    motley_segment segment{};
    segment.struct_size = sizeof segment;
    segment.cut = MOTLEY_CUT_STAGE, segment.layer_end = 1;
    segment.values = values.data(), segment.value_count = 2;
    segment.ops = &op, segment.op_count = 1;
    segment.inputs = &in, segment.input_count = 1;
    segment.outputs = &out, segment.output_count = 1;
    segment.weight_count = 1;
    const std::array<motley_weight*, 1> weights = {weight_.weight.get()};
    ASSIGN_OR_RETURN(programs_, device_.compile(segment, weights, std::array{batch_.rows}));
    bindings_ = {{{0, x_.get(), 0}, {1, y_.get(), 0}}};
    args_.struct_size = sizeof args_;
    args_.bindings = bindings_.data(), args_.binding_count = 2;
    args_.batch = &batch_;
    return ok_status();
  }

  const Device& device_;
  PackedWeight weight_;
  BufferHandle x_, y_;
  std::vector<int32_t> positions_, slots_;
  std::vector<uint8_t> generated_;
  std::vector<uint32_t> row_begin_;
  std::array<uint32_t, 2> block_begin_ = {0, 0};
  int32_t context_ = 0;
  motley_batch batch_{};
  ProgramsHandle programs_;
  std::array<motley_binding, 2> bindings_{};
  motley_enqueue_args args_{};
  QueueHandle queue_;  // last: waits for what is enqueued
};

// The first type that the device packs of those that are not quantised.
Result<const DtypeInfo*> plain_dtype(uint64_t weight_dtypes) {
  for (const int32_t id : {MOTLEY_F32, MOTLEY_F16, MOTLEY_BF16}) {
    if ((weight_dtypes >> id & 1) != 0) return find_dtype(id);
  }
  return error(MOTLEY_UNIMPLEMENTED, "it packs neither F32 nor F16 nor BF16");
}

}  // namespace

Result<DeviceFigures> measure_figures(const Device& device, uint64_t weight_dtypes) {
  DeviceFigures figures;
  ASSIGN_OR_RETURN(const DtypeInfo* plain, plain_dtype(weight_dtypes));
  ASSIGN_OR_RETURN(const auto wide, Product::create(device, *plain, kWideRows, kWideCols, 1));
  ASSIGN_OR_RETURN(const double wide_ns, wide->time_ns());
  figures.gb_per_s = static_cast<double>(kWideRows * kWideCols) * static_cast<double>(plain->block_bytes) / wide_ns;
  ASSIGN_OR_RETURN(const auto small, Product::create(device, *plain, 16, 64, 1));
  ASSIGN_OR_RETURN(const double small_ns, small->time_ns());
  figures.dispatch_us = small_ns / 1e3;
  for (const int32_t id : {MOTLEY_F32, MOTLEY_F16, MOTLEY_BF16, MOTLEY_Q8_0, MOTLEY_Q4_0, MOTLEY_Q4_K}) {
    const DtypeInfo* dtype = find_dtype(id);
    if (dtype == nullptr || (weight_dtypes >> id & 1) == 0) continue;
    ASSIGN_OR_RETURN(const auto product, Product::create(device, *dtype, kSide, kSide, kManyRows));
    ASSIGN_OR_RETURN(const double ns, product->time_ns());
    figures.gflops.emplace_back(std::string(dtype->name), 2.0 * kSide * kSide * kManyRows / ns);
  }
  return figures;
}

namespace {

// One of the two sides of a link: sums with the other from and to its device's memory.
Status meet(const Device& device, Communicator& communicator, size_t floats, int rounds, double* ns) {
  ASSIGN_OR_RETURN(HostBuffer buffer, HostBuffer::create(device, floats * sizeof(float)));
  ASSIGN_OR_RETURN(const QueueHandle queue, device.create_queue());  // goes first
  std::vector<double> times;
  for (int i = 0; i < rounds; ++i) {
    int64_t ended_ns = 0;
    const int64_t began_ns = system_clock().now_ns();
    RETURN_IF_ERROR(buffer.pull(queue, buffer.bytes(), kWaitNs, &ended_ns));
    RETURN_IF_ERROR(communicator.all_reduce(buffer.view<float>(floats), true, {}));
    RETURN_IF_ERROR(buffer.push(queue, buffer.bytes()));
    RETURN_IF_ERROR(buffer.acquire(kWaitNs));
    times.push_back(static_cast<double>(system_clock().now_ns() - began_ns));
  }
  *ns = median(std::move(times));
  return ok_status();
}

Result<double> meeting_ns(const Device& a, const Device& b, Route route, size_t floats, int rounds) {
  ASSIGN_OR_RETURN(CommGroup group, make_group(route, {.size = 2, .message_bytes_max = 1u << 20}));
  double first_ns = 0, second_ns = 0;
  Status first, second;
  const auto run = [&](const Device& device, size_t rank, double* ns, Status* status) {
    *status = meet(device, *group[rank], floats, rounds, ns);
    if (!status->ok()) group[rank]->abort(*status);
  };
  std::thread other([&] { run(b, 1, &second_ns, &second); });
  run(a, 0, &first_ns, &first);
  other.join();
  RETURN_IF_ERROR(first);
  RETURN_IF_ERROR(second);
  return std::max(first_ns, second_ns);
}

}  // namespace

Result<LinkFigures> measure_link_figures(const Device& a, const Device& b, std::span<const Route> routes) {
  constexpr size_t kFew = 16, kMany = 1u << 20;
  std::vector<RouteTimes> times;
  for (const Route route : routes) {
    ASSIGN_OR_RETURN(const double few_ns, meeting_ns(a, b, route, kFew, 50));
    ASSIGN_OR_RETURN(const double many_ns, meeting_ns(a, b, route, kMany, 5));
    times.push_back({route, few_ns, many_ns});
  }
  const RouteTimes best = cheapest(times);
  LinkFigures figures;
  figures.route = best.route;
  figures.latency_us = best.row_ns / 1e3;
  figures.gb_per_s = static_cast<double>((kMany - kFew) * sizeof(float)) / std::max(1.0, best.chunk_ns - best.row_ns);
  return figures;
}

}  // namespace motley
