// The C entries of a remote device's table: arguments in, Status out as code and text.
#include <algorithm>
#include <cstdio>
#include <optional>

#include "base/file_place.hpp"
#include "base/log.hpp"
#include "device/worker/remote_device.hpp"

namespace motley::worker {
namespace {

RemoteDevice* remote(motley_device* device) { return reinterpret_cast<RemoteDevice*>(device); }
RemoteQueue* remote(motley_queue* queue) { return reinterpret_cast<RemoteQueue*>(queue); }
RemoteBuffer* remote(motley_buffer* buffer) { return reinterpret_cast<RemoteBuffer*>(buffer); }
RemoteWeight* remote(motley_weight* weight) { return reinterpret_cast<RemoteWeight*>(weight); }
RemoteKv* remote(motley_kv* kv) { return reinterpret_cast<RemoteKv*>(kv); }
RemotePrograms* remote(motley_programs* programs) { return reinterpret_cast<RemotePrograms*>(programs); }
RemoteEvent* remote(motley_event* event) { return reinterpret_cast<RemoteEvent*>(event); }

motley_code answer(const Status& status, motley_error* failure) {
  if (!status.ok() && failure != nullptr) {
    failure->code = status.code();
    std::snprintf(failure->text, sizeof failure->text, "%s",
                  status.message().empty() ? std::string(code_name(status.code())).c_str() : status.message().c_str());
  }
  return status.code();
}

// No exception crosses this line.
template <class Body>
motley_code guard(motley_error* failure, Body&& body) noexcept {
  try {
    return answer(body(), failure);
  } catch (const std::exception& thrown) {
    return answer(error(MOTLEY_RESOURCE_EXHAUSTED, "{}", thrown.what()), failure);
  }
}

template <class... T>
Status need(const T*... pointers) {
  if (((pointers != nullptr) && ...)) return ok_status();
  return invalid_argument("a required argument is null");
}

template <class T>
Status sized(const T& given, const char* what) {
  if (given.struct_size >= sizeof(T)) return ok_status();
  return invalid_argument("{}: struct_size is {}, not {}", what, given.struct_size, sizeof(T));
}

// Writes what the caller's struct_size holds; 0 counts as whole.
template <class T>
void put(T* out, T value) {
  const size_t size = out->struct_size == 0 ? sizeof(T) : std::min<size_t>(out->struct_size, sizeof(T));
  value.struct_size = static_cast<uint32_t>(size);
  std::memcpy(out, &value, size);
}

// The one value that an answer brings.
template <class T>
Result<T> value_of(const Result<Answer>& got) {
  if (!got.ok()) return got.error();
  Reader reader = got->reader();
  T value = reader.get<T>();
  if (!reader.done()) return error(MOTLEY_DATA_LOSS, "the worker's answer cannot be read");
  return value;
}

// ---- device ----

void close(motley_device* device) { delete remote(device); }

motley_code stats(motley_device* device, motley_device_stats* out, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(device, out));
    remote(device)->stats(out, failure);
    return ok_status();
  });
}

motley_code queue_create(motley_device* device, motley_queue** out, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(device, out));
    auto queue = std::make_unique<RemoteQueue>(RemoteQueue{remote(device), remote(device)->new_id()});
    Writer body;
    body.put(queue->id);
    RETURN_IF_ERROR(queue->device->call(Call::kQueueCreate, body).error());
    *out = reinterpret_cast<motley_queue*>(queue.release());
    return ok_status();
  });
}

void queue_destroy(motley_queue* raw) {
  if (raw == nullptr) return;
  const std::unique_ptr<RemoteQueue> queue(remote(raw));
  queue->device->queue_destroy(*queue);
}

// ---- memory ----

motley_code alloc(motley_device* raw, uint64_t bytes, int32_t use, void* import, motley_buffer** out,
                  motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(raw, out));
    if (import != nullptr) {
      return error(MOTLEY_UNIMPLEMENTED, "a device in a worker process cannot import the host's memory");
    }
    RemoteDevice& device = *remote(raw);
    auto buffer = std::make_unique<RemoteBuffer>();
    buffer->device = &device, buffer->id = device.new_id(), buffer->bytes = bytes;
    if (device.maps_buffers() && bytes > 0) {
      ASSIGN_OR_RETURN(buffer->memory, SharedMemory::create("motley-buffer", bytes));
    }
    Writer body;
    body.put(buffer->id);
    body.put(bytes);
    body.put(use);
    const int fd = buffer->memory.fd();
    RETURN_IF_ERROR(device.call(Call::kAlloc, body, std::span(&fd, fd >= 0 ? 1 : 0)).error());
    buffer->memory.drop_descriptor();
    *out = reinterpret_cast<motley_buffer*>(buffer.release());
    return ok_status();
  });
}

void free_buffer(motley_buffer* raw) {
  if (raw == nullptr) return;
  const std::unique_ptr<RemoteBuffer> buffer(remote(raw));
  buffer->device->dismiss(Call::kFree, buffer->id);
}

void* map(motley_buffer* buffer) { return buffer == nullptr ? nullptr : remote(buffer)->memory.data(); }

motley_code copy(motley_queue* queue, motley_buffer* dst, motley_buffer* src, const motley_region* regions,
                 uint32_t count, motley_event** event, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(queue, dst, src));
    if (count > kItemsMax || (count > 0 && regions == nullptr)) return invalid_argument("copy: {} regions", count);
    RemoteDevice& device = *remote(queue)->device;
    if (remote(dst)->device != &device || remote(src)->device != &device) {
      return invalid_argument("copy: a buffer of another device");
    }
    for (const motley_region& region : std::span(regions, count)) {
      RETURN_IF_ERROR(check_inside(*remote(dst), region.dst_offset, region.bytes, "copy to"));
      RETURN_IF_ERROR(check_inside(*remote(src), region.src_offset, region.bytes, "copy from"));
    }
    Writer body;
    body.put(remote(dst)->id);
    body.put(remote(src)->id);
    body.put_array(regions, count);
    return device.submit(*remote(queue), Step::kCopy, body, std::make_shared<Work>(), event);
  });
}

motley_code copy_to_host(motley_queue* queue, void* dst, motley_buffer* src, uint64_t offset, uint64_t bytes,
                         motley_event** event, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(queue, dst, src));
    RETURN_IF_ERROR(check_inside(*remote(src), offset, bytes, "copy_to_host"));
    RemoteDevice& device = *remote(queue)->device;
    auto work = std::make_shared<Work>();
    ASSIGN_OR_RETURN(work->data, device.stage(bytes));
    work->copy_to = dst;
    Writer body;
    body.put(remote(src)->id);
    body.put(offset);
    body.put(work->data.on_wire());
    return device.submit(*remote(queue), Step::kCopyToHost, body, std::move(work), event);
  });
}

motley_code copy_from_host(motley_queue* queue, motley_buffer* dst, uint64_t offset, const void* src, uint64_t bytes,
                           motley_event** event, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(queue, dst, src));
    RETURN_IF_ERROR(check_inside(*remote(dst), offset, bytes, "copy_from_host"));
    RemoteDevice& device = *remote(queue)->device;
    auto work = std::make_shared<Work>();
    ASSIGN_OR_RETURN(work->data, device.stage(bytes));
    if (bytes > 0) std::memcpy(work->data.data, src, bytes);
    Writer body;
    body.put(remote(dst)->id);
    body.put(offset);
    body.put(work->data.on_wire());
    return device.submit(*remote(queue), Step::kCopyFromHost, body, std::move(work), event);
  });
}

// ---- weights ----

motley_code pack(motley_device* raw, const motley_weight_desc* desc, motley_weight** out, motley_weight_info* info,
                 motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(raw, desc, out));
    RETURN_IF_ERROR(sized(*desc, "motley_weight_desc"));
    RemoteDevice& device = *remote(raw);
    auto weight = std::make_unique<RemoteWeight>(RemoteWeight{&device, device.new_id()});
    Writer body;
    body.put(weight->id);
    if (!encode_weight(body, *desc)) return invalid_argument("a weight of more ranges than {}", kItemsMax);
    const std::optional<FilePlace> place = find_file_place(desc->data, desc->data != nullptr ? desc->bytes : 0);
    const Descriptor file(place ? place->fd : -1);
    body.put<uint8_t>(place.has_value());
    body.put<uint64_t>(place ? place->offset : 0);
    SharedMemory data;
    if (!place && desc->data != nullptr && desc->bytes > 0) {
      ASSIGN_OR_RETURN(data, SharedMemory::create("motley-weight", desc->bytes));
      std::memcpy(data.data(), desc->data, desc->bytes);
    }
    const int fd = place ? file.get() : data.fd();
    const auto told =
        value_of<motley_weight_info>(device.call(Call::kPack, body, std::span(&fd, fd >= 0 ? 1 : 0), true));
    if (!told.ok()) return told.error();
    if (info != nullptr) put(info, *told);
    *out = reinterpret_cast<motley_weight*>(weight.release());
    return ok_status();
  });
}

void weight_free(motley_weight* raw) {
  if (raw == nullptr) return;
  const std::unique_ptr<RemoteWeight> weight(remote(raw));
  weight->device->dismiss(Call::kWeightFree, weight->id);
}

// ---- KV ----

motley_code kv_create(motley_device* raw, const motley_kv_desc* desc, motley_kv** out, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(raw, desc, out));
    RETURN_IF_ERROR(sized(*desc, "motley_kv_desc"));
    RemoteDevice& device = *remote(raw);
    auto kv = std::make_unique<RemoteKv>(RemoteKv{&device, device.new_id(), desc->blocks, {}});
    Writer body;
    body.put(kv->id);
    if (!encode_kv(body, *desc)) return invalid_argument("a KV pool of {} layers", desc->layers);
    RETURN_IF_ERROR(device.call(Call::kKvCreate, body, {}, true).error());
    kv->block_bytes = kv_block_bytes(*desc);
    *out = reinterpret_cast<motley_kv*>(kv.release());
    return ok_status();
  });
}

void kv_destroy(motley_kv* raw) {
  if (raw == nullptr) return;
  const std::unique_ptr<RemoteKv> kv(remote(raw));
  kv->device->dismiss(Call::kKvDestroy, kv->id);
}

motley_code kv_layout(motley_device* device, const motley_kv_desc* desc, motley_kv_layout* out, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(device, desc, out));
    RETURN_IF_ERROR(sized(*desc, "motley_kv_desc"));
    Writer body;
    if (!encode_kv(body, *desc)) return invalid_argument("a KV pool of {} layers", desc->layers);
    const auto layout = value_of<motley_kv_layout>(remote(device)->call(Call::kKvLayout, body));
    if (layout.ok()) put(out, *layout);
    return layout.error();
  });
}

Status move_blocks(Step step, RemoteQueue& queue, const RemoteKv& kv, std::span<const int32_t> blocks, uint32_t begin,
                   uint32_t end, std::shared_ptr<Work> work, motley_event** event) {
  Writer body;
  body.put(kv.id);
  body.put(begin);
  body.put(end);
  body.put_array(blocks.data(), static_cast<uint32_t>(blocks.size()));
  body.put(work->data.on_wire());
  return queue.device->submit(queue, step, body, std::move(work), event);
}

motley_code kv_export(motley_queue* queue, motley_kv* kv, const int32_t* blocks, uint32_t count, uint32_t begin,
                      uint32_t end, void* dst, uint64_t bytes, motley_event** event, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(queue, kv, dst));
    RETURN_IF_ERROR(check_kv_move(*remote(kv), blocks, count, begin, end, bytes));
    auto work = std::make_shared<Work>();
    ASSIGN_OR_RETURN(work->data, remote(queue)->device->stage(bytes));
    work->copy_to = dst;
    return move_blocks(Step::kKvExport, *remote(queue), *remote(kv), std::span(blocks, count), begin, end,
                       std::move(work), event);
  });
}

motley_code kv_import(motley_queue* queue, motley_kv* kv, const int32_t* blocks, uint32_t count, uint32_t begin,
                      uint32_t end, const void* src, uint64_t bytes, motley_event** event, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(queue, kv, src));
    RETURN_IF_ERROR(check_kv_move(*remote(kv), blocks, count, begin, end, bytes));
    auto work = std::make_shared<Work>();
    ASSIGN_OR_RETURN(work->data, remote(queue)->device->stage(bytes));
    if (bytes > 0) std::memcpy(work->data.data, src, bytes);
    return move_blocks(Step::kKvImport, *remote(queue), *remote(kv), std::span(blocks, count), begin, end,
                       std::move(work), event);
  });
}

// ---- programs ----

motley_code query(motley_device* device, const motley_segment* segment, const uint32_t* buckets, uint32_t count,
                  motley_query_result* out, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(device, segment, out));
    Writer body;
    if (count > kBucketsMax || !encode_segment(body, *segment)) return invalid_argument("the segment is too large");
    body.put_array(buckets, count);
    const auto result = value_of<motley_query_result>(remote(device)->call(Call::kQuery, body));
    if (result.ok()) put(out, *result);
    return result.error();
  });
}

// What enqueue has to know of a segment that the plugin has found sound.
std::unique_ptr<RemotePrograms> facts_of(RemoteDevice& device, const motley_segment& segment,
                                         const motley_compile_options& options) {
  auto programs = std::make_unique<RemotePrograms>();
  programs->device = &device, programs->id = device.new_id();
  programs->values.assign(segment.values, segment.values + segment.value_count);
  programs->written.assign(segment.outputs, segment.outputs + segment.output_count);
  programs->bound.assign(segment.inputs, segment.inputs + segment.input_count);
  programs->bound.insert(programs->bound.end(), programs->written.begin(), programs->written.end());
  std::sort(programs->bound.begin(), programs->bound.end());
  programs->bound.erase(std::unique(programs->bound.begin(), programs->bound.end()), programs->bound.end());
  programs->buckets.assign(options.buckets, options.buckets + options.bucket_count);
  return programs;
}

motley_code compile(motley_device* raw, const motley_segment* segment, motley_weight* const* weights,
                    const motley_compile_options* options, motley_programs** out, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(raw, segment, options, out));
    RETURN_IF_ERROR(sized(*options, "motley_compile_options"));
    if (options->bucket_count > kBucketsMax || (options->bucket_count > 0 && options->buckets == nullptr)) {
      return invalid_argument("{} buckets", options->bucket_count);
    }
    RemoteDevice& device = *remote(raw);
    Writer description;
    if (!encode_segment(description, *segment)) return invalid_argument("the segment is too large");
    std::vector<uint64_t> ids;
    for (uint32_t i = 0; weights != nullptr && i < segment->weight_count; ++i) {
      if (weights[i] != nullptr && remote(weights[i])->device != &device) {
        return invalid_argument("weight {} is of another device", i);
      }
      ids.push_back(weights[i] == nullptr ? 0 : remote(weights[i])->id);
    }
    ids.reserve(1);  // so that an empty list that is there has a place
    SharedMemory blob;
    if (options->blob != nullptr && options->blob_bytes > 0) {
      ASSIGN_OR_RETURN(blob, SharedMemory::create("motley-blob", options->blob_bytes));
      std::memcpy(blob.data(), options->blob, options->blob_bytes);
    }
    std::unique_ptr<RemotePrograms> programs = facts_of(device, *segment, *options);
    Writer body;
    body.put(programs->id);
    body.put_bytes(description.bytes());
    body.put_array(weights == nullptr ? nullptr : ids.data(), static_cast<uint32_t>(ids.size()));
    body.put_array(options->buckets, options->bucket_count);
    body.put(options->blob_bytes);
    const int fd = blob.fd();
    RETURN_IF_ERROR(device.call(Call::kCompile, body, std::span(&fd, fd >= 0 ? 1 : 0), true).error());
    *out = reinterpret_cast<motley_programs*>(programs.release());
    return ok_status();
  });
}

void programs_free(motley_programs* raw) {
  if (raw == nullptr) return;
  const std::unique_ptr<RemotePrograms> programs(remote(raw));
  programs->device->dismiss(Call::kProgramsFree, programs->id);
}

motley_code export_programs(motley_programs* raw, void* dst, uint64_t* bytes, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(raw, bytes));
    const RemotePrograms& programs = *remote(raw);
    SharedMemory memory;
    if (dst != nullptr) {
      ASSIGN_OR_RETURN(memory, SharedMemory::create("motley-blob", *bytes));
    }
    Writer body;
    body.put(programs.id);
    body.put(*bytes);
    const int fd = memory.fd();
    const auto told =
        value_of<uint64_t>(programs.device->call(Call::kExportPrograms, body, std::span(&fd, fd >= 0 ? 1 : 0), true));
    if (!told.ok()) return told.error();
    if (dst != nullptr && *told > *bytes) return error(MOTLEY_DATA_LOSS, "a blob larger than the room for it");
    if (dst != nullptr) std::memcpy(dst, memory.data(), *told);
    *bytes = *told;
    return ok_status();
  });
}

motley_code enqueue(motley_queue* queue, motley_programs* programs, const motley_enqueue_args* args,
                    motley_event** event, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(queue, programs, args));
    RETURN_IF_ERROR(sized(*args, "motley_enqueue_args"));
    RemoteDevice& device = *remote(queue)->device;
    if (remote(programs)->device != &device || (args->kv != nullptr && remote(args->kv)->device != &device)) {
      return invalid_argument("the program or its KV pool is of another device");
    }
    const bool dynamic_rows = (device.desc().caps & MOTLEY_CAP_DYNAMIC_ROWS) != 0;
    RETURN_IF_ERROR(check_enqueue(*remote(programs), *args, dynamic_rows));
    Writer body;
    body.put(remote(programs)->id);
    body.put(args->bucket);
    body.put<uint64_t>(args->kv == nullptr ? 0 : remote(args->kv)->id);
    std::vector<BindingOnWire> bindings;
    bindings.reserve(args->binding_count + 1);
    for (const motley_binding& binding : std::span(args->bindings, args->binding_count)) {
      bindings.push_back({binding.value, 0, remote(binding.buffer)->id, binding.offset});
    }
    body.put_array(bindings.data(), args->binding_count);
    if (!encode_batch(body, *args->batch)) return invalid_argument("enqueue: the batch's numbers are absurd");
    auto work = std::make_shared<Work>();
    work->program = true;
    return device.submit(*remote(queue), Step::kEnqueue, body, std::move(work), event);
  });
}

// ---- events ----

motley_code event_status(motley_event* event, int32_t* fired, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(event, fired));
    Work& work = *remote(event)->work;
    *fired = remote(event)->device->fired(work) ? 1 : 0;
    return *fired != 0 ? work.outcome : ok_status();
  });
}

motley_code event_wait(motley_event* event, uint64_t timeout_ns, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(event));
    Work& work = *remote(event)->work;
    if (remote(event)->device->wait(work, timeout_ns)) return work.outcome;
    return error(MOTLEY_DEADLINE_EXCEEDED, "the event has not fired in time");
  });
}

motley_code event_times(motley_event* event, motley_event_times* out, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(event, out));
    Work& work = *remote(event)->work;
    if (!remote(event)->device->fired(work) || !work.timed) {
      return error(MOTLEY_FAILED_PRECONDITION, "the event has not fired, or the plugin told no times");
    }
    motley_event_times times{};
    times.start_ns = work.start_ns, times.end_ns = work.end_ns;
    put(out, times);
    return ok_status();
  });
}

motley_code event_notify(motley_event* event, int event_fd, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(event));
    if (event_fd < 0) return invalid_argument("event_notify: descriptor {}", event_fd);
    remote(event)->device->notify(*remote(event)->work, event_fd);
    return ok_status();
  });
}

void event_release(motley_event* raw) {
  if (raw == nullptr) return;
  const std::unique_ptr<RemoteEvent> event(remote(raw));
  event->device->forget(*event->work);
}

motley_code fence(motley_queue* queue, motley_event* event, motley_error* failure) {
  return guard(failure, [&]() -> Status {
    RETURN_IF_ERROR(need(queue, event));
    if (remote(event)->device != remote(queue)->device) {
      return invalid_argument("fence: an event of another device; wait for it on the host");
    }
    return remote(queue)->device->fence(*remote(queue), *remote(event)->work);
  });
}

}  // namespace

motley_backend remote_table() {
  motley_backend t{};
  t.struct_size = sizeof t, t.abi = MOTLEY_BACKEND_ABI;
  t.close = close, t.stats = stats;
  t.queue_create = queue_create, t.queue_destroy = queue_destroy;
  t.alloc = alloc, t.free = free_buffer, t.map = map;
  t.copy = copy, t.copy_to_host = copy_to_host, t.copy_from_host = copy_from_host;
  t.pack = pack, t.weight_free = weight_free;
  t.kv_create = kv_create, t.kv_destroy = kv_destroy, t.kv_layout = kv_layout;
  t.kv_export = kv_export, t.kv_import = kv_import;
  t.query = query, t.compile = compile, t.programs_free = programs_free;
  t.export_programs = export_programs, t.enqueue = enqueue;
  t.event_status = event_status, t.event_wait = event_wait, t.event_times = event_times;
  t.event_notify = event_notify, t.event_release = event_release, t.fence = fence;
  return t;  // enumerate, describe and open have no place in a device's own table; collectives do not cross
}

}  // namespace motley::worker
