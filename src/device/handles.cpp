#include "device/handles.hpp"

#include <algorithm>

#include "base/log.hpp"
#include "device/virtual_time.hpp"
#include "device/worker/isolated.hpp"

namespace motley {
namespace {

void forward_log(void*, int32_t level, const char* text) {
  static constexpr LogLevel kLevels[] = {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning, LogLevel::kError};
  log(kLevels[level >= 0 && level <= 3 ? level : 3], "{}", text == nullptr ? "" : text);
}

const char* text_or_null(const std::string& text) { return text.empty() ? nullptr : text.c_str(); }

// Borrows the texts.
motley_open_options abi_options(const DeviceOptions& options) {
  motley_open_options open{};
  open.struct_size = sizeof open;
  open.threads = options.threads;
  open.cores = text_or_null(options.cores);
  open.variant = text_or_null(options.variant);
  open.memory_cap = options.memory_cap;
  open.deterministic = options.deterministic ? 1 : 0;
  if (options.virtual_time) open.virtual_now = [](void*) { return virtual_now_ns(); };
  open.log = forward_log;
  return open;
}

}  // namespace

Result<Device> Device::open(const Plugin& plugin, uint32_t index, const DeviceOptions& options) {
  const motley_open_options open = abi_options(options);
  motley_device* device = nullptr;
  motley_error failure{};
  RETURN_IF_ERROR(to_status(plugin.api().open(index, &open, &device, &failure), failure, "open"));
  return Device(&plugin.api(), device, nullptr, options);
}

Result<Device> Device::open_isolated(const std::filesystem::path& plugin_file, uint32_t index,
                                     const DeviceOptions& options, const WorkerOptions& worker) {
  ASSIGN_OR_RETURN(const IsolatedDevice opened,
                   motley::open_isolated(plugin_file, index, abi_options(options), worker));
  return Device(opened.api, opened.device, opened.process, options);
}

int32_t Device::format_of(int32_t dtype, Quality quality) const {
  const bool floats = dtype == MOTLEY_F32 || dtype == MOTLEY_F16 || dtype == MOTLEY_BF16,
             free = floats || !holds(dtype);
  if (free && quality == Quality::kFast && holds(MOTLEY_Q4_0)) return MOTLEY_Q4_0;
  if (free && quality != Quality::kExact && holds(MOTLEY_Q8_0)) return MOTLEY_Q8_0;
  // F8_E4M3's scales are not F16's: its numbers may lie beyond that.
  const int32_t first = dtype == MOTLEY_F8_E4M3_S64 && holds(MOTLEY_BF16) ? MOTLEY_BF16 : MOTLEY_F16;
  for (const int32_t format : {dtype, first, int32_t{MOTLEY_F16}, int32_t{MOTLEY_BF16}, int32_t{MOTLEY_F32}})
    if (holds(format)) return format;
  return MOTLEY_F16;
}

Result<QueueHandle> Device::create_queue() const {
  motley_queue* queue = nullptr;
  motley_error failure{};
  RETURN_IF_ERROR(to_status(api_->queue_create(raw(), &queue, &failure), failure, "queue_create"));
  return QueueHandle(api_, queue);
}

Result<BufferHandle> Device::allocate(uint64_t bytes, motley_use use) const {
  motley_buffer* buffer = nullptr;
  motley_error failure{};
  RETURN_IF_ERROR(to_status(api_->alloc(raw(), bytes, use, nullptr, &buffer, &failure), failure, "alloc"));
  return BufferHandle(api_, buffer);
}

Result<void*> Device::map(const BufferHandle& buffer) const {
  void* memory = api_->map == nullptr ? nullptr : api_->map(buffer.get());
  if (memory == nullptr) return error(MOTLEY_FAILED_PRECONDITION, "the buffer's memory is separate from the host's");
  return memory;
}

Result<PackedWeight> Device::pack(const motley_weight_desc& desc) const {
  motley_weight* weight = nullptr;
  motley_weight_info info{};
  info.struct_size = sizeof info;
  motley_error failure{};
  RETURN_IF_ERROR(to_status(api_->pack(raw(), &desc, &weight, &info, &failure), failure, desc.name));
  PackedWeight packed;
  packed.weight = WeightHandle(api_, weight);
  packed.info = info;
  return packed;
}

Result<KvHandle> Device::create_kv(const motley_kv_desc& desc) const {
  if (api_->kv_create == nullptr) return error(MOTLEY_UNIMPLEMENTED, "{} keeps no KV", api_->name);
  motley_kv* kv = nullptr;
  motley_error failure{};
  RETURN_IF_ERROR(to_status(api_->kv_create(raw(), &desc, &kv, &failure), failure, "kv_create"));
  return KvHandle(api_, kv);
}

Result<motley_kv_layout> Device::kv_layout(const motley_kv_desc& desc) const {
  if (api_->kv_layout == nullptr) return error(MOTLEY_UNIMPLEMENTED, "{} keeps no KV", api_->name);
  motley_kv_layout layout{};
  layout.struct_size = sizeof layout;
  motley_error failure{};
  RETURN_IF_ERROR(to_status(api_->kv_layout(raw(), &desc, &layout, &failure), failure, "kv_layout"));
  return layout;
}

Result<QueryResult> Device::query(const motley_segment& segment, std::span<const uint32_t> buckets) const {
  motley_query_result result{};
  result.struct_size = sizeof result;
  motley_error failure{};
  const auto count = static_cast<uint32_t>(buckets.size());
  RETURN_IF_ERROR(to_status(api_->query(raw(), &segment, buckets.data(), count, &result, &failure), failure, "query"));
  if (result.support == MOTLEY_SUPPORT_NATIVE)
    return QueryResult{result.workspace_bytes, result.compile_ns, result.program_bytes};
  result.reason[sizeof result.reason - 1] = '\0';
  return error(MOTLEY_UNIMPLEMENTED, "{}", result.reason);
}

Result<ProgramsHandle> Device::compile(const motley_segment& segment, std::span<motley_weight* const> weights,
                                       std::span<const uint32_t> buckets, std::span<const std::byte> blob) const {
  motley_compile_options options{};
  options.struct_size = sizeof options;
  options.buckets = buckets.data();
  options.bucket_count = static_cast<uint32_t>(buckets.size());
  if (!blob.empty()) options.blob = blob.data(), options.blob_bytes = blob.size();
  motley_programs* programs = nullptr;
  motley_error failure{};
  RETURN_IF_ERROR(
      to_status(api_->compile(raw(), &segment, weights.data(), &options, &programs, &failure), failure, "compile"));
  return ProgramsHandle(api_, programs);
}

Result<std::vector<std::byte>> Device::export_programs(const ProgramsHandle& programs) const {
  if (!makes_blobs()) return error(MOTLEY_UNIMPLEMENTED, "{} makes no blobs", api_->name);
  motley_error failure{};
  const auto ask = [&](std::byte* to, uint64_t* bytes) {
    return to_status(api_->export_programs(programs.get(), to, bytes, &failure), failure, "export_programs");
  };
  uint64_t bytes = 0;
  RETURN_IF_ERROR(ask(nullptr, &bytes));
  if (bytes > kBlobBytesMax) return error(MOTLEY_INTERNAL, "{} says that a blob takes {} bytes", api_->name, bytes);
  std::vector<std::byte> blob(bytes);
  RETURN_IF_ERROR(ask(blob.data(), &bytes));
  blob.resize(std::min<uint64_t>(bytes, blob.size()));
  return blob;
}

Result<EventHandle> Device::enqueue(const QueueHandle& queue, const ProgramsHandle& programs,
                                    const motley_enqueue_args& args) const {
  motley_event* event = nullptr;
  motley_error failure{};
  RETURN_IF_ERROR(to_status(api_->enqueue(queue.get(), programs.get(), &args, &event, &failure), failure, "enqueue"));
  return EventHandle(api_, event);
}

Result<EventHandle> Device::copy_to_host(const QueueHandle& queue, std::span<std::byte> to,
                                         const BufferHandle& from) const {
  motley_event* event = nullptr;
  motley_error failure{};
  RETURN_IF_ERROR(to_status(api_->copy_to_host(queue.get(), to.data(), from.get(), 0, to.size(), &event, &failure),
                            failure, "copy_to_host"));
  return EventHandle(api_, event);
}

Result<EventHandle> Device::copy_from_host(const QueueHandle& queue, const BufferHandle& to,
                                           std::span<const std::byte> from) const {
  motley_event* event = nullptr;
  motley_error failure{};
  RETURN_IF_ERROR(to_status(api_->copy_from_host(queue.get(), to.get(), 0, from.data(), from.size(), &event, &failure),
                            failure, "copy_from_host"));
  return EventHandle(api_, event);
}

Result<EventHandle> Device::import_kv(const QueueHandle& queue, const KvHandle& kv, std::span<const int32_t> blocks,
                                      uint32_t layers, std::span<const std::byte> from) const {
  if (api_->kv_import == nullptr) return error(MOTLEY_UNIMPLEMENTED, "{} takes no KV", api_->name);
  motley_event* event = nullptr;
  motley_error failure{};
  RETURN_IF_ERROR(to_status(api_->kv_import(queue.get(), kv.get(), blocks.data(), static_cast<uint32_t>(blocks.size()),
                                            0, layers, from.data(), from.size(), &event, &failure),
                            failure, "kv_import"));
  return EventHandle(api_, event);
}

Result<EventHandle> Device::export_kv(const QueueHandle& queue, const KvHandle& kv, std::span<const int32_t> blocks,
                                      uint32_t layers, std::span<std::byte> to) const {
  if (api_->kv_export == nullptr) return error(MOTLEY_UNIMPLEMENTED, "{} gives no KV", api_->name);
  motley_event* event = nullptr;
  motley_error failure{};
  RETURN_IF_ERROR(to_status(api_->kv_export(queue.get(), kv.get(), blocks.data(), static_cast<uint32_t>(blocks.size()),
                                            0, layers, to.data(), to.size(), &event, &failure),
                            failure, "kv_export"));
  return EventHandle(api_, event);
}

Status Device::wait(const EventHandle& event, uint64_t timeout_ns) const {
  motley_error failure{};
  return to_status(api_->event_wait(event.get(), timeout_ns, &failure), failure, "device");
}

Result<motley_event_times> Device::times(const EventHandle& event) const {
  motley_event_times times{};
  times.struct_size = sizeof times;
  if (api_->event_times == nullptr) return error(MOTLEY_UNIMPLEMENTED, "{} times no events", api_->name);
  motley_error failure{};
  RETURN_IF_ERROR(to_status(api_->event_times(event.get(), &times, &failure), failure, "event_times"));
  return times;
}

Result<motley_device_stats> Device::stats() const {
  motley_device_stats stats{};
  stats.struct_size = sizeof stats;
  if (api_->stats == nullptr) return stats;
  motley_error failure{};
  RETURN_IF_ERROR(to_status(api_->stats(raw(), &stats, &failure), failure, "stats"));
  return stats;
}

}  // namespace motley
