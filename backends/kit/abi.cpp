// The C border: handles, argument checks, and exceptions turned into codes.
// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <cstring>

#include "kit/border.hpp"
#include "kit/device.hpp"
#include "kit/host.hpp"

namespace motley::kit {

namespace {

void inside(const motley_buffer* buffer, uint64_t offset, uint64_t bytes, const char* what) {
  if (offset > buffer->bytes || bytes > buffer->bytes - offset)
    fail(MOTLEY_OUT_OF_RANGE, "%s: [%llu, +%llu) of a buffer of %llu bytes", what,
         static_cast<unsigned long long>(offset), static_cast<unsigned long long>(bytes),
         static_cast<unsigned long long>(buffer->bytes));
}

// guard(), of a device that is not lost; an error that says so loses it.
template <class Body>
motley_code guard_alive(motley_device* device, motley_error* error, Body&& body) noexcept {
  return guard(error, [&] {
    need(device);
    device->check_alive();
    try {
      body();
    } catch (const Error& e) {
      if (e.code() == MOTLEY_UNAVAILABLE) device->lose(e.what());
      throw;
    }
  });
}
motley_device* device_of(const motley_queue* queue) { return queue ? queue->device : nullptr; }

// Of a program.
struct Size {
  uint64_t rows = 0;
  double flops = 0;
};

// Pushes work; on success *event (if wanted) is a new handle.
template <class Work>
void submit(motley_queue* queue, Queue::Kind kind, motley_event** event, Work&& work, const Size& size = {}) {
  std::unique_ptr<motley_event> handle;
  std::shared_ptr<Event> state;
  if (event) {
    state = std::make_shared<Event>();
    handle = std::make_unique<motley_event>(motley_event{state});
  }
  queue->queue->push(
      kind,
      [device = queue->device, stream = queue->stream.get(), work = std::forward<Work>(work)] {
        device->check_alive();
        work(*stream);
        return stream->mark();
      },
      std::move(state),
      [device = queue->device, kind, size](const Outcome& outcome) {
        if (outcome.code == MOTLEY_UNAVAILABLE) device->lose(outcome.text.c_str());
        if (kind == Queue::Kind::kProgram && outcome.code == MOTLEY_OK) device->ran(size.rows, size.flops, outcome);
      });
  if (event) *event = handle.release();
}

// ---- device ----

void close(motley_device* device) { delete device; }

motley_code stats(motley_device* device, motley_device_stats* out, motley_error* error) {
  return guard(error, [&] {
    need(device, out);
    motley_device_stats s{};
    s.programs = device->programs, s.rows = device->rows, s.padded_rows = device->rows;
    s.bytes_copied = device->bytes_copied, s.busy_ns = device->busy_ns, s.bytes_resident = device->budget.used();
    s.flops = s.padded_flops = device->flops;
    s.lost = device->lost;
    put(out, s);
  });
}

motley_code queue_create(motley_device* device, motley_queue** out, motley_error* error) {
  return guard_alive(device, error, [&] {
    need(device, out);
    if (device->queues.fetch_add(1) >= kQueuesMax) {
      device->queues -= 1;
      fail(MOTLEY_RESOURCE_EXHAUSTED, "the device has its %u queues", kQueuesMax);
    }
    try {
      *out = new motley_queue(device);
    } catch (...) {
      device->queues -= 1;
      throw;
    }
  });
}

void queue_destroy(motley_queue* queue) {
  if (!queue) return;
  motley_device* device = queue->device;
  delete queue;
  device->queues -= 1;
}

// ---- memory ----

motley_code alloc(motley_device* device, uint64_t bytes, int32_t use, void* import, motley_buffer** out,
                  motley_error* error) {
  return guard_alive(device, error, [&] {
    need(device, out);
    if (bytes == 0) fail(MOTLEY_INVALID_ARGUMENT, "a buffer of 0 bytes");
    if (use != MOTLEY_USE_ACTIVATION && use != MOTLEY_USE_STAGING) fail(MOTLEY_INVALID_ARGUMENT, "use %d", use);
    if (reinterpret_cast<uintptr_t>(import) % kPageBytes)
      fail(MOTLEY_INVALID_ARGUMENT, "imported memory is not page-aligned");
    auto buffer = std::make_unique<motley_buffer>();
    buffer->device = device;
    buffer->bytes = bytes;
    buffer->data = static_cast<std::byte*>(import);
    if (import && !device->memory.in_host())
      fail(MOTLEY_UNIMPLEMENTED, "this device has memory of its own: it imports none");
    if (!import) {
      if (bytes > kMappingMax)
        fail(MOTLEY_RESOURCE_EXHAUSTED, "a buffer of %llu bytes is too large", static_cast<unsigned long long>(bytes));
      buffer->share = Share(device->budget, page_up(bytes), "a buffer");
      buffer->own = Allocation(device->memory, bytes);
      buffer->data = buffer->own.data();
    }
    *out = buffer.release();
  });
}

void free_buffer(motley_buffer* buffer) { delete buffer; }
void* map(motley_buffer* buffer) { return buffer && buffer->device->memory.in_host() ? buffer->data : nullptr; }

motley_code copy(motley_queue* queue, motley_buffer* dst, motley_buffer* src, const motley_region* regions,
                 uint32_t count, motley_event** event, motley_error* error) {
  return guard_alive(device_of(queue), error, [&] {
    need(queue, dst, src);
    if (count > kRegionsMax || (count && !regions)) fail(MOTLEY_INVALID_ARGUMENT, "copy: %u regions", count);
    std::vector<motley_region> list(regions, regions + count);
    for (const motley_region& r : list) {
      inside(dst, r.dst_offset, r.bytes, "copy to");
      inside(src, r.src_offset, r.bytes, "copy from");
    }
    submit(queue, Queue::Kind::kOther, event,
           [device = queue->device, dst, src, list = std::move(list)](Stream& stream) {
             for (const motley_region& r : list) {
               stream.copy(dst->data + r.dst_offset, src->data + r.src_offset, r.bytes);
               device->bytes_copied += r.bytes;
             }
           });
  });
}

motley_code copy_to_host(motley_queue* queue, void* dst, motley_buffer* src, uint64_t offset, uint64_t bytes,
                         motley_event** event, motley_error* error) {
  return guard_alive(device_of(queue), error, [&] {
    need(queue, dst, src);
    inside(src, offset, bytes, "copy_to_host");
    submit(queue, Queue::Kind::kOther, event, [=, device = queue->device](Stream& stream) {
      stream.to_host(dst, src->data + offset, bytes);
      device->bytes_copied += bytes;
    });
  });
}

motley_code copy_from_host(motley_queue* queue, motley_buffer* dst, uint64_t offset, const void* src, uint64_t bytes,
                           motley_event** event, motley_error* error) {
  return guard_alive(device_of(queue), error, [&] {
    need(queue, dst, src);
    inside(dst, offset, bytes, "copy_from_host");
    submit(queue, Queue::Kind::kOther, event, [=, device = queue->device](Stream& stream) {
      stream.from_host(dst->data + offset, src, bytes);
      device->bytes_copied += bytes;
    });
  });
}

// ---- weights ----

motley_code pack(motley_device* device, const motley_weight_desc* desc, motley_weight** out, motley_weight_info* info,
                 motley_error* error) {
  return guard_alive(device, error, [&] {
    need(device, desc, out);
    sized(*desc, "motley_weight_desc");
    const WeightSource source(*desc);
    auto weight = std::make_unique<motley_weight>();
    weight->device = device;
    const bool of_kit = source.uses() == MOTLEY_WEIGHT_VECTOR && device->memory.in_host();
    weight->weight = of_kit ? pack_reference(source) : device->kernels->pack(source);
    // An aliased source is the host's memory, not the device's.
    weight->share = Share(device->budget, weight->weight->aliases_source ? 0 : weight->weight->bytes, "a weight");
    if (info) {
      motley_weight_info filled{};
      filled.bytes = weight->weight->bytes;
      filled.format = weight->weight->format;
      filled.aliases_source = weight->weight->aliases_source;
      put(info, filled);
    }
    *out = weight.release();
  });
}

void weight_free(motley_weight* weight) { delete weight; }

// ---- KV ----

motley_code kv_create(motley_device* device, const motley_kv_desc* desc, motley_kv** out, motley_error* error) {
  return guard_alive(device, error, [&] {
    need(device, desc, out);
    sized(*desc, "motley_kv_desc");
    *out = new motley_kv(device, check_kv(*desc));
  });
}

void kv_destroy(motley_kv* kv) { delete kv; }

motley_code kv_layout(motley_device* device, const motley_kv_desc* desc, motley_kv_layout* out, motley_error* error) {
  return guard(error, [&] {
    need(device, desc, out);
    sized(*desc, "motley_kv_desc");
    const KvShape shape = check_kv(*desc);
    motley_kv_layout layout{};
    layout.bytes_total = shape.bytes_total;
    layout.bytes_per_block = shape.bytes_per_block;
    layout.canonical_bytes_per_block = shape.canonical_bytes(0, desc->layers);
    put(out, layout);
  });
}

motley_code kv_export(motley_queue* queue, motley_kv* kv, const int32_t* blocks, uint32_t count, uint32_t begin,
                      uint32_t end, void* dst, uint64_t bytes, motley_event** event, motley_error* error) {
  return guard_alive(device_of(queue), error, [&] {
    need(queue, kv, dst);
    submit(queue, Queue::Kind::kOther, event,
           [=, device = queue->device,
            list = check_kv_move(kv->memory.shape(), blocks, count, begin, end, bytes)](Stream& stream) {
             auto* to = static_cast<std::byte*>(dst);
             if (device->memory.in_host())
               kv_to_canonical(kv->memory.pool(), list, begin, end, to);
             else
               each_kv_run(kv->memory.pool(), list, begin, end, [&](const std::byte* run, uint64_t run_bytes) {
                 stream.to_host(to, run, run_bytes);
                 to += run_bytes;
               });
             device->bytes_copied += bytes;
           });
  });
}

motley_code kv_import(motley_queue* queue, motley_kv* kv, const int32_t* blocks, uint32_t count, uint32_t begin,
                      uint32_t end, const void* src, uint64_t bytes, motley_event** event, motley_error* error) {
  return guard_alive(device_of(queue), error, [&] {
    need(queue, kv, src);
    submit(queue, Queue::Kind::kOther, event,
           [=, device = queue->device,
            list = check_kv_move(kv->memory.shape(), blocks, count, begin, end, bytes)](Stream& stream) {
             const auto* from = static_cast<const std::byte*>(src);
             if (device->memory.in_host())
               kv_from_canonical(kv->memory.pool(), list, begin, end, from);
             else
               each_kv_run(kv->memory.pool(), list, begin, end, [&](std::byte* run, uint64_t run_bytes) {
                 stream.from_host(run, from, run_bytes);
                 from += run_bytes;
               });
             device->bytes_copied += bytes;
           });
  });
}

// ---- programs ----

int64_t check_buckets(const uint32_t* buckets, uint32_t count) {
  if (count == 0 || count > kBucketsMax || !buckets) fail(MOTLEY_INVALID_ARGUMENT, "%u buckets", count);
  for (uint32_t i = 0; i < count; ++i)
    if (buckets[i] == 0 || buckets[i] > kRowsMax || (i && buckets[i] <= buckets[i - 1]))
      fail(MOTLEY_INVALID_ARGUMENT, "bucket %u has %u rows: not ascending or not 1 .. %u", i, buckets[i], kRowsMax);
  return buckets[count - 1];
}

// Sets kernels and scratch; refuses what the device cannot do.
void choose_kernels(const motley_device* device, Plan& plan, uint32_t* bad_op) {
  plan.threads = device->team.threads();
  for (size_t i = 0; i < plan.ops.size(); ++i) {
    PlanOp& op = plan.ops[i];
    *bad_op = static_cast<uint32_t>(i);
    const KernelEntry& entry = device->table[static_cast<size_t>(op.kind)];
    if (!entry.run) fail(MOTLEY_UNIMPLEMENTED, "op %zu: this device has no kernel for kind %d", i, op.kind);
    if (const char* reason = device->kernels->refuse(plan, op)) fail(MOTLEY_UNIMPLEMENTED, "op %zu: %s", i, reason);
    op.kernel = entry.run;
    if (entry.scratch_bytes) op.scratch_bytes = entry.scratch_bytes(plan, op);
  }
}

motley_code query(motley_device* device, const motley_segment* segment, const uint32_t* buckets, uint32_t count,
                  motley_query_result* out, motley_error* error) {
  return guard_alive(device, error, [&] {
    need(device, segment, out);
    const int64_t rows = check_buckets(buckets, count);
    motley_query_result result{};
    uint32_t bad_op = 0;
    try {
      CheckedSegment checked = check_segment(*segment, &bad_op);
      choose_kernels(device, checked.plan, &bad_op);
      checked.plan.rows_max = rows;
      result.workspace_bytes = Program(std::move(checked)).workspace_bytes(rows, rows, 1);
      result.support = MOTLEY_SUPPORT_NATIVE;
    } catch (const Error& e) {
      std::snprintf(result.reason, sizeof result.reason, "%s", e.what());
      // A good op without a kernel can be cut away; a malformed segment cannot.
      const bool cut = e.code() == MOTLEY_UNIMPLEMENTED && bad_op > 0 && bad_op < segment->op_count;
      result.support = cut ? MOTLEY_SUPPORT_CUT : MOTLEY_SUPPORT_NO;
      result.cut_before = cut ? bad_op : 0;
    }
    put(out, result);
  });
}

// Of each weight, the part that is here.
std::vector<double> kept_experts(const Plan& plan) {
  std::vector<double> kept;
  for (const Weight* weight : plan.weights)
    kept.push_back(weight == nullptr ? 0
                                     : static_cast<double>(weight->kept_experts.count()) /
                                           static_cast<double>(weight->kept_experts.source_count()));
  return kept;
}

motley_code compile(motley_device* device, const motley_segment* segment, motley_weight* const* weights,
                    const motley_compile_options* options, motley_programs** out, motley_error* error) {
  return guard_alive(device, error, [&] {
    need(device, segment, options, out);
    sized(*options, "motley_compile_options");
    if (options->blob) fail(MOTLEY_FAILED_PRECONDITION, "this device makes no blobs; compile without one");
    const int64_t rows = check_buckets(options->buckets, options->bucket_count);
    uint32_t bad_op = 0;
    CheckedSegment checked = check_segment(*segment, &bad_op);
    if (segment->weight_count && !weights) fail(MOTLEY_INVALID_ARGUMENT, "the weights are null");
    for (uint32_t i = 0; i < segment->weight_count; ++i) {
      if (weights[i] && weights[i]->device != device)
        fail(MOTLEY_INVALID_ARGUMENT, "weight %u is of another device", i);
      checked.plan.weights[i] = weights[i] ? weights[i]->weight.get() : nullptr;
    }
    check_weights(checked.plan);
    checked.plan.rows_max = rows;
    const int64_t vocab = embed_rows(checked.plan);
    choose_kernels(device, checked.plan, &bad_op);
    Arithmetic arithmetic(checked.plan, kept_experts(checked.plan));
    device->kernels->fuse(checked.plan);
    auto programs =
        std::make_unique<motley_programs>(device, std::move(arithmetic), std::move(checked), options->bucket_count);
    programs->vocab = vocab;
    *out = programs.release();
  });
}

void programs_free(motley_programs* programs) { delete programs; }

// Places every input and output; the buffers must hold the rows of this batch.
std::vector<std::byte*> check_bindings(const motley_programs* programs, const motley_enqueue_args& args) {
  const CheckedSegment& segment = programs->program.segment();
  if (args.binding_count && !args.bindings) fail(MOTLEY_INVALID_ARGUMENT, "the bindings are null");
  std::vector<std::byte*> bound(segment.plan.values.size(), nullptr);
  struct Extent {
    const std::byte *begin, *end;
    bool written;
    int32_t value;
  };
  std::vector<Extent> extents;
  for (uint32_t i = 0; i < args.binding_count; ++i) {
    const motley_binding& b = args.bindings[i];
    const auto id = static_cast<size_t>(b.value);
    if (b.value < 0 || id >= bound.size() || !segment.plan.values[id].bound || bound[id] || !b.buffer)
      fail(MOTLEY_INVALID_ARGUMENT, "binding %u: value %d is no input or output, bound twice, or without a buffer", i,
           b.value);
    if (b.buffer->device != programs->device)
      fail(MOTLEY_INVALID_ARGUMENT, "binding %u: a buffer of another device", i);
    const PlanValue& value = segment.plan.values[id];
    const auto bytes = static_cast<uint64_t>(Program::rows_of(value, *args.batch) * value.row_bytes);
    inside(b.buffer, b.offset, bytes, "binding");
    if (b.offset % static_cast<uint64_t>(element_bytes(value.dtype)))
      fail(MOTLEY_INVALID_ARGUMENT, "binding %u: offset %llu is not a multiple of the element", i,
           static_cast<unsigned long long>(b.offset));
    bound[id] = b.buffer->data + b.offset;
    const bool written = std::find(segment.outputs.begin(), segment.outputs.end(), b.value) != segment.outputs.end();
    for (const Extent& e : extents)
      if ((written || e.written) && bound[id] < e.end && e.begin < bound[id] + bytes)
        fail(MOTLEY_INVALID_ARGUMENT, "binding %u: value %d overlaps value %d, and one of them is written", i, b.value,
             e.value);
    extents.push_back({bound[id], bound[id] + bytes, written, b.value});
  }
  for (const auto* ids : {&segment.inputs, &segment.outputs})
    for (const int32_t id : *ids)
      if (!bound[static_cast<size_t>(id)]) fail(MOTLEY_INVALID_ARGUMENT, "value %d is not bound", id);
  return bound;
}

void check_pool(const motley_programs* programs, const motley_kv* kv) {
  const CheckedSegment& segment = programs->program.segment();
  if (segment.kv_uses.empty()) return;
  if (!kv || kv->device != programs->device) fail(MOTLEY_INVALID_ARGUMENT, "the program needs a KV pool of its device");
  const KvPool& pool = kv->memory.pool();
  for (const CheckedSegment::KvUse& use : segment.kv_uses) {
    if (static_cast<size_t>(use.layer) >= pool.layers.size())
      fail(MOTLEY_OUT_OF_RANGE, "the program uses KV layer %d of %zu", use.layer, pool.layers.size());
    const KvLayer& layer = pool.layers[static_cast<size_t>(use.layer)];
    if (layer.kv_heads != use.kv_heads || layer.head_dim != use.head_dim)
      fail(MOTLEY_INVALID_ARGUMENT, "KV layer %d has %d heads of %d; the program wants %d of %d", use.layer,
           layer.kv_heads, layer.head_dim, use.kv_heads, use.head_dim);
    // What lies before a layer's window may be gone.
    if (use.reads && layer.window > 0 && (use.window == 0 || use.window > layer.window))
      fail(MOTLEY_INVALID_ARGUMENT, "KV layer %d keeps a window of %d; the program reads %d", use.layer, layer.window,
           use.window);
  }
}

motley_code enqueue(motley_queue* queue, motley_programs* programs, const motley_enqueue_args* args,
                    motley_event** event, motley_error* error) {
  return guard_alive(device_of(queue), error, [&] {
    need(queue, programs, args);
    sized(*args, "motley_enqueue_args");
    need(args->batch);
    if (queue->device != programs->device) fail(MOTLEY_INVALID_ARGUMENT, "the program is of another device");
    if (args->bucket >= programs->buckets)
      fail(MOTLEY_OUT_OF_RANGE, "bucket %u of %u", args->bucket, programs->buckets);
    check_pool(programs, args->kv);
    auto run = std::make_shared<RunArgs>();
    run->batch = args->batch;
    run->stream = queue->stream.get();
    run->kv = args->kv ? &args->kv->memory.pool() : nullptr;
    const BatchLimits limits{programs->program.plan().rows_max, programs->vocab,
                             queue->device->kernels->attends_partially()};
    run->checked = check_batch(programs->program.segment(), *args->batch, limits, run->kv);
    run->bound = check_bindings(programs, *args);
    const Size size{args->batch->rows, programs->arithmetic.of(*args->batch, run->kv ? run->kv->block_size : 0)};
    submit(
        queue, Queue::Kind::kProgram, event,
        [device = queue->device, programs, run = std::move(run)](Stream&) { device->run(programs->program, *run); },
        size);
  });
}

// ---- queues ----

motley_code fence(motley_queue* queue, motley_event* event, motley_error* error) {
  return guard_alive(device_of(queue), error, [&] {
    need(queue, event);
    submit(queue, Queue::Kind::kOther, nullptr, [state = event->state](Stream&) { state->wait(); });
  });
}

OpenOptions take_options(const motley_open_options* from) {
  OpenOptions to;
  HostCores host = host_cores(allowed_cores());
  to.cores = std::move(host.cores), to.threads_default = host.threads;
  if (!from) return to;
  sized(*from, "motley_open_options");
  if (from->threads > kThreadsMax) fail(MOTLEY_INVALID_ARGUMENT, "%u threads; at most %u", from->threads, kThreadsMax);
  if (from->virtual_now) fail(MOTLEY_UNIMPLEMENTED, "this device is not simulated: it keeps no virtual time");
  to.threads = from->threads;
  if (from->cores) to.cores = parse_cores(from->cores), to.cores_given = true, to.threads_default = 0;
  to.memory_cap = from->memory_cap;
  if (from->cache_dir) to.cache_dir = from->cache_dir;
  if (from->variant) to.variant = from->variant;
  to.deterministic = from->deterministic != 0;
  to.log = from->log, to.log_user = from->log_user;
  return to;
}

}  // namespace

namespace detail {

motley_code enumerate(Backend& backend, motley_device_desc* out, uint32_t capacity, uint32_t* count,
                      motley_error* error) noexcept {
  return guard(error, [&] {
    need(count);
    if (capacity && !out) fail(MOTLEY_INVALID_ARGUMENT, "enumerate: no room given");
    std::string why;
    const std::vector<motley_device_desc> devices = backend.devices(&why);
    for (uint32_t i = 0; i < devices.size() && i < capacity; ++i) {
      motley_device_desc desc = devices[i];
      desc.index = i;
      if (desc.alignment == 0) desc.alignment = static_cast<uint32_t>(kPageBytes);
      desc.queues_max = kQueuesMax, desc.queue_depth = kQueueDepth;
      put(&out[i], desc);
    }
    *count = static_cast<uint32_t>(devices.size());
    if (devices.empty() || !why.empty()) set_error(error, devices.empty() ? MOTLEY_NOT_FOUND : MOTLEY_OK, why.c_str());
  });
}

motley_code open(Backend& backend, uint32_t index, const motley_open_options* options, motley_device** out,
                 motley_error* error) noexcept {
  return guard(error, [&] {
    need(out);
    const OpenOptions checked = take_options(options);
    std::string why;
    const size_t count = backend.devices(&why).size();
    if (index >= count) fail(MOTLEY_NOT_FOUND, "device %u of %zu", index, count);
    *out = std::make_unique<motley_device>(backend.open(index, checked), checked).release();
  });
}

motley_backend common_table(const char* name, const char* version) {
  motley_backend t{};
  t.struct_size = sizeof t, t.abi = MOTLEY_BACKEND_ABI, t.name = name, t.version = version;
  t.close = close, t.stats = stats;
  t.queue_create = queue_create, t.queue_destroy = queue_destroy;
  t.alloc = alloc, t.free = free_buffer, t.map = map;
  t.copy = copy, t.copy_to_host = copy_to_host, t.copy_from_host = copy_from_host;
  t.pack = pack, t.weight_free = weight_free;
  t.kv_create = kv_create, t.kv_destroy = kv_destroy, t.kv_layout = kv_layout;
  t.kv_export = kv_export, t.kv_import = kv_import;
  t.query = query, t.compile = compile, t.programs_free = programs_free, t.enqueue = enqueue;
  t.fence = fence;
  set_event_entries(&t);
  return t;  // no blobs and no peers: export_programs and the collectives stay null
}

}  // namespace detail

}  // namespace motley::kit
