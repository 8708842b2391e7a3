#include "sim/work.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "kit/program.hpp"

namespace motley::sim {
namespace {

using kit::fail;

constexpr uint64_t kForever_ns = std::numeric_limits<uint64_t>::max();
constexpr int kPoison = 0xff;         // bytes: NaN in every float format, -1 as an id
constexpr size_t kAccessesMax = 256;  // of a piece of work; beyond, its accesses are not watched

void inside(const Queue& queue, const Buffer& buffer, uint64_t offset, uint64_t bytes, const char* what) {
  if (buffer.device != queue.device()) fail(MOTLEY_INVALID_ARGUMENT, "%s: a buffer of another device", what);
  if (offset > buffer.bytes || bytes > buffer.bytes - offset)
    fail(MOTLEY_OUT_OF_RANGE, "%s: [%llu, +%llu) of a buffer of %llu bytes", what,
         static_cast<unsigned long long>(offset), static_cast<unsigned long long>(bytes),
         static_cast<unsigned long long>(buffer.bytes));
}

Queue::Work link_work(Queue& queue, uint64_t bytes) {
  Device* device = queue.device();
  Queue::Work work;
  work.engine = &device->link;
  work.seconds = [device, bytes](double) { return copy_seconds(device->rates, bytes); };
  return work;
}

// Runs an entry of the cpu plugin that makes an event, and waits for that.
void finish(const std::function<motley_code(motley_event**, motley_error*)>& entry) {
  motley_event* raw = nullptr;
  call([&](motley_error* error) { return entry(&raw, error); });
  const Owned<motley_event> event{raw, inner().event_release};
  call([&](motley_error* error) { return inner().event_wait(raw, kForever_ns, error); });
}

}  // namespace

Queue::Work copy_work(Queue& queue, Buffer& dst, const Buffer& src, std::vector<motley_region> regions) {
  Device* device = queue.device();
  uint64_t bytes = 0;
  std::vector<Access> accesses;
  for (const motley_region& r : regions) {
    inside(queue, dst, r.dst_offset, r.bytes, "copy to");
    inside(queue, src, r.src_offset, r.bytes, "copy from");
    bytes += r.bytes;
    if (accesses.size() >= kAccessesMax) continue;
    accesses.push_back({src.id, r.src_offset, r.src_offset + r.bytes, false});
    accesses.push_back({dst.id, r.dst_offset, r.dst_offset + r.bytes, true});
  }
  Queue::Work work = link_work(queue, bytes);
  if (!dst.of_host() && !src.of_host()) {  // inside the device's memory: read and written
    work.engine = &device->compute;
    work.seconds = [device, bytes](double share) {
      return device->rates.dispatch_us * 1e-6 +
             2 * static_cast<double>(bytes) / (device->rates.bandwidth_gb_s * 1e9 * share);
    };
  }
  work.accesses = std::move(accesses);
  work.run = [device, to = dst.data, from = src.data, list = std::move(regions)] {
    for (const motley_region& r : list) {
      std::memmove(to + r.dst_offset, from + r.src_offset, r.bytes);
      device->bytes_copied += r.bytes;
    }
  };
  return work;
}

Queue::Work to_host_work(Queue& queue, void* dst, const Buffer& src, uint64_t offset, uint64_t bytes) {
  inside(queue, src, offset, bytes, "copy_to_host");
  Queue::Work work = link_work(queue, bytes);
  work.poison = dst, work.poison_bytes = bytes;
  work.accesses = {{src.id, offset, offset + bytes, false}};
  work.run = [device = queue.device(), dst, from = src.data + offset, bytes] {
    std::memcpy(dst, from, bytes);
    device->bytes_copied += bytes;
  };
  return work;
}

Queue::Work from_host_work(Queue& queue, Buffer& dst, uint64_t offset, const void* src, uint64_t bytes) {
  inside(queue, dst, offset, bytes, "copy_from_host");
  Queue::Work work = link_work(queue, bytes);
  work.accesses = {{dst.id, offset, offset + bytes, true}};
  work.run = [device = queue.device(), to = dst.data + offset, src, bytes] {
    std::memcpy(to, src, bytes);
    device->bytes_copied += bytes;
  };
  return work;
}

Queue::Work kv_export_work(Queue& queue, Kv& kv, const KvBlocks& which, void* dst, uint64_t bytes) {
  if (kv.device != queue.device()) fail(MOTLEY_INVALID_ARGUMENT, "kv_export: a pool of another device");
  auto list = kit::check_kv_move(kv.shape, which.blocks, which.count, which.layer_begin, which.layer_end, bytes);
  Queue::Work work = link_work(queue, bytes);
  work.poison = dst, work.poison_bytes = bytes;
  work.run = [&queue, &kv, which, list = std::move(list), dst, bytes] {
    finish([&](motley_event** event, motley_error* error) {
      return inner().kv_export(queue.inner(), kv.inner.get(), list.data(), which.count, which.layer_begin,
                               which.layer_end, dst, bytes, event, error);
    });
    queue.device()->bytes_copied += bytes;
  };
  return work;
}

Queue::Work kv_import_work(Queue& queue, Kv& kv, const KvBlocks& which, const void* src, uint64_t bytes) {
  if (kv.device != queue.device()) fail(MOTLEY_INVALID_ARGUMENT, "kv_import: a pool of another device");
  auto list = kit::check_kv_move(kv.shape, which.blocks, which.count, which.layer_begin, which.layer_end, bytes);
  Queue::Work work = link_work(queue, bytes);
  work.run = [&queue, &kv, which, list = std::move(list), src, bytes] {
    finish([&](motley_event** event, motley_error* error) {
      return inner().kv_import(queue.inner(), kv.inner.get(), list.data(), which.count, which.layer_begin,
                               which.layer_end, src, bytes, event, error);
    });
    queue.device()->bytes_copied += bytes;
  };
  return work;
}

namespace {

// What one enqueue needs until its turn.
struct Run {
  motley_enqueue_args args;
  std::vector<motley_binding> bindings;                   // of the cpu plugin's buffers
  std::vector<std::pair<std::byte*, uint64_t>> poisoned;  // outputs that are no inputs
  std::optional<PaddedBatch> padded;                      // of a device of fixed rows: its batch fills the bucket
  uint64_t link_bytes = 0;                                // that it reads and writes of the host's memory
};

// Places every input and output; the buffers must hold the rows of this batch and be the device's own memory.
void check_bindings(const Queue& queue, const Programs& programs, Run* run, std::vector<Access>* accesses) {
  const motley_enqueue_args& args = run->args;
  if (args.binding_count && !args.bindings) fail(MOTLEY_INVALID_ARGUMENT, "the bindings are null");
  std::vector<bool> bound(programs.segment.plan.values.size());
  for (uint32_t i = 0; i < args.binding_count; ++i) {
    const motley_binding& b = args.bindings[i];
    const auto id = static_cast<size_t>(b.value);
    if (b.value < 0 || id >= bound.size() || !programs.segment.plan.values[id].bound || bound[id] || !b.buffer)
      fail(MOTLEY_INVALID_ARGUMENT, "binding %u: value %d is no input or output, bound twice, or without a buffer", i,
           b.value);
    bound[id] = true;
    const Buffer& buffer = *reinterpret_cast<const Buffer*>(b.buffer);
    const kit::PlanValue& value = programs.segment.plan.values[id];
    const auto bytes = static_cast<uint64_t>(kit::Program::rows_of(value, *args.batch) * value.row_bytes);
    inside(queue, buffer, b.offset, bytes, run->padded ? "binding (of the bucket's rows)" : "binding");
    if (buffer.staging)
      fail(MOTLEY_INVALID_ARGUMENT,
           "binding %u: value %d lies in staging memory, which this device's programs do not reach; copy it", i,
           b.value);
    if (b.offset % static_cast<uint64_t>(kit::element_bytes(value.dtype)))
      fail(MOTLEY_INVALID_ARGUMENT, "binding %u: offset %llu is not a multiple of the element", i,
           static_cast<unsigned long long>(b.offset));
    if (buffer.imported) run->link_bytes += bytes;
    run->bindings.push_back({b.value, buffer.inner.get(), b.offset});
    accesses->push_back({buffer.id, b.offset, b.offset + bytes, programs.writes(b.value)});
    if (programs.overwrites(b.value)) run->poisoned.emplace_back(buffer.data + b.offset, bytes);
  }
  for (const auto* ids : {&programs.segment.inputs, &programs.segment.outputs})
    for (const int32_t id : *ids)
      if (!bound[static_cast<size_t>(id)]) fail(MOTLEY_INVALID_ARGUMENT, "value %d is not bound", id);
}

}  // namespace

Queue::Work program_work(Queue& queue, Programs& programs, const motley_enqueue_args& args) {
  Device* device = queue.device();
  if (device != programs.device) fail(MOTLEY_INVALID_ARGUMENT, "the program is of another device");
  if (args.bucket >= programs.buckets.size())
    fail(MOTLEY_OUT_OF_RANGE, "bucket %u of %zu", args.bucket, programs.buckets.size());
  const Kv* kv = reinterpret_cast<const Kv*>(args.kv);
  if (!programs.segment.kv_uses.empty() && (!kv || kv->device != device))
    fail(MOTLEY_INVALID_ARGUMENT, "the program needs a KV pool of its device");
  kit::KvPool pool;
  if (kv) pool.dtype = kv->shape.dtype, pool.block_size = kv->shape.block_size, pool.blocks = kv->shape.blocks;
  const bool dynamic = device->spec.rules.dynamic_rows;
  const uint32_t rows_max = dynamic ? programs.buckets.back() : programs.buckets[args.bucket];
  constexpr bool kHoles = true;  // as the cpu plugin
  kit::check_batch(programs.segment, *args.batch, {rows_max, std::numeric_limits<int64_t>::max(), kHoles},
                   kv ? &pool : nullptr);
  auto run = std::make_shared<Run>();  // std::function wants copies
  run->args = args;
  if (!dynamic) run->args.batch = &run->padded.emplace(*args.batch, rows_max, programs.has_head_rows()).view();
  Queue::Work work;
  check_bindings(queue, programs, run.get(), &work.accesses);
  run->args.kv = kv ? kv->inner.get() : nullptr;
  work.program = true, work.rows = args.batch->rows, work.padded_rows = run->args.batch->rows;
  work.flops = programs.arithmetic.of(*args.batch, pool.block_size);
  work.padded_flops = dynamic ? work.flops : programs.arithmetic.of(*run->args.batch, pool.block_size);
  work.name = programs.name(dynamic ? 0 : args.bucket), work.ready_ns = programs.ready_ns;
  work.engine = &device->compute;
  const KvSize size{static_cast<int32_t>(kit::element_bytes(pool.dtype)), pool.block_size};
  work.seconds = [device, cost = &programs.cost, run, size](double share) {
    const double link = run->link_bytes == 0 ? 0 : copy_seconds(device->rates, run->link_bytes);
    return cost->seconds(device->rates, *run->args.batch, size, share) + link;
  };
  work.run = [&queue, &programs, run] {
    for (const auto& [at, bytes] : run->poisoned) std::memset(at, kPoison, bytes);
    run->args.bindings = run->bindings.data();
    finish([&](motley_event** event, motley_error* error) {
      return inner().enqueue(queue.inner(), programs.inner.get(), &run->args, event, error);
    });
  };
  return work;
}

void submit(Queue& queue, Queue::Work work, motley_event** event) {
  std::unique_ptr<motley_event> handle;
  if (event) handle = std::make_unique<motley_event>();
  std::shared_ptr<Event> state = queue.push(std::move(work));
  if (!event) return;
  handle->state = std::move(state);
  *event = handle.release();
}

}  // namespace motley::sim
