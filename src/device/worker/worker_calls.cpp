#include "device/worker/worker_calls.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <new>

#include "base/log.hpp"

namespace motley::worker {
namespace {

Status malformed() { return invalid_argument("the worker got a call that it cannot read"); }
Status unknown(const char* what) { return invalid_argument("the worker has no such {}", what); }
Status taken() { return error(MOTLEY_ALREADY_EXISTS, "the id of a new object is taken"); }

// A plugin's log line on its way to the host. A full socket loses it: the plugin must not wait for that.
void send_log(void* user, int32_t level, const char* text) {
  const auto* state = static_cast<const WorkerState*>(user);
  const std::string_view line(text == nullptr ? "" : text);
  iovec parts[] = {{&level, sizeof level}, {const_cast<char*>(line.data()), std::min<size_t>(line.size(), 4096)}};
  msghdr head{};
  head.msg_iov = parts, head.msg_iovlen = 2;
  sendmsg(state->log_socket.get(), &head, MSG_DONTWAIT | MSG_NOSIGNAL);
}

uint64_t mask_of(const motley_backend& api) {
  const std::pair<Entry, bool> rows[] = {{Entry::kStats, api.stats},
                                         {Entry::kCopy, api.copy},
                                         {Entry::kCopyToHost, api.copy_to_host},
                                         {Entry::kCopyFromHost, api.copy_from_host},
                                         {Entry::kKvCreate, api.kv_create},
                                         {Entry::kKvDestroy, api.kv_destroy},
                                         {Entry::kKvLayout, api.kv_layout},
                                         {Entry::kKvExport, api.kv_export},
                                         {Entry::kKvImport, api.kv_import},
                                         {Entry::kExportPrograms, api.export_programs},
                                         {Entry::kEventTimes, api.event_times},
                                         {Entry::kFence, api.fence}};
  uint64_t mask = 0;
  for (const auto& [entry, there] : rows) mask |= uint64_t{there} << static_cast<uint32_t>(entry);
  return mask;
}

const char* text_or_null(const std::optional<std::string>& text) { return text ? text->c_str() : nullptr; }

}  // namespace

CallServer::CallServer(Channel channel, WorkerState& state, std::unique_ptr<StepRunner>& steps, bool first)
    : channel_(std::move(channel)), state_(state), steps_(steps), first_(first) {}

CallServer::~CallServer() {
  if (second_ == nullptr) return;
  second_->channel_.shut();
  second_thread_.join();
}

const CallServer::Row& CallServer::row_of(Call call) {
  static constexpr std::array<Row, static_cast<size_t>(Call::kCount)> kRows = {{
      {nullptr, false, false},                      // kReply
      {&CallServer::hello, false, false},           // kHello
      {&CallServer::open, false, false},            // kOpen
      {&CallServer::close, false, false},           // kClose
      {&CallServer::stats, true, false},            // kStats
      {&CallServer::queue_create, true, false},     // kQueueCreate
      {&CallServer::queue_destroy, true, true},     // kQueueDestroy
      {&CallServer::alloc, true, false},            // kAlloc
      {&CallServer::free, true, true},              // kFree
      {&CallServer::pack, true, false},             // kPack
      {&CallServer::weight_free, true, true},       // kWeightFree
      {&CallServer::kv_create, true, false},        // kKvCreate
      {&CallServer::kv_destroy, true, true},        // kKvDestroy
      {&CallServer::kv_layout, true, false},        // kKvLayout
      {&CallServer::query, true, false},            // kQuery
      {&CallServer::compile, true, false},          // kCompile
      {&CallServer::programs_free, true, true},     // kProgramsFree
      {&CallServer::export_programs, true, false},  // kExportPrograms
      {&CallServer::stage, true, false},            // kStage
      {&CallServer::unstage, true, true},           // kUnstage
  }};
  return kRows[static_cast<size_t>(call)];
}

std::vector<std::byte> CallServer::answer(Message& message) {
  Writer result;
  Status status;
  const Row& row = row_of(message.call);
  try {
    Request request{Reader(message.body), message.descriptors};
    const auto position = request.reader.get<uint64_t>();
    if (row.handler == nullptr || !request.reader.ok()) {
      status = malformed();
    } else if (row.needs_device && state_.device == nullptr) {
      status = error(MOTLEY_FAILED_PRECONDITION, "the worker has opened no device");
    } else {
      if (row.after_steps) steps_->await_position(position);
      status = (this->*row.handler)(request, result);
    }
  } catch (const std::bad_alloc&) {
    status = error(MOTLEY_RESOURCE_EXHAUSTED, "the worker is out of memory");
  }
  Writer body;
  body.put<int32_t>(status.code());
  body.put_text(std::string_view(status.message()).substr(0, MOTLEY_ERROR_TEXT_MAX));
  std::vector<std::byte> bytes(body.bytes().begin(), body.bytes().end());
  if (status.ok()) bytes.insert(bytes.end(), result.bytes().begin(), result.bytes().end());
  return bytes;
}

Status CallServer::serve() {
  for (;;) {
    ASSIGN_OR_RETURN(Message message, channel_.receive(kForever));
    const std::vector<std::byte> body = answer(message);
    RETURN_IF_ERROR(channel_.send(Call::kReply, message.id, body, {}, kForever));
    if (message.call == Call::kClose) return ok_status();
  }
}

// Descriptors: the second channel, the log, the step memory, the staging arena, the doorbell, the host's bell.
Status CallServer::hello(Request& request, Writer& reply) {
  const auto file = request.reader.get_text();
  const auto arena_bytes = request.reader.get<uint64_t>();
  const auto spin_ns = request.reader.get<int64_t>();
  auto& given = request.descriptors;
  if (!request.reader.done() || !file || given.size() != 6 || !first_) return malformed();
  if (steps_ != nullptr) return error(MOTLEY_ALREADY_EXISTS, "the worker was greeted already");
  ASSIGN_OR_RETURN(StepMemory memory, StepMemory::adopt(std::move(given[2])));
  memory.drop_descriptor();
  ASSIGN_OR_RETURN(SharedMemory arena, SharedMemory::adopt(std::move(given[3]), arena_bytes));
  arena.drop_descriptor();
  ASSIGN_OR_RETURN(state_.plugin, Plugin::open(*file));
  state_.api = &state_.plugin->api();
  state_.log_socket = std::move(given[1]);
  state_.staging.add(kArenaRegion, std::make_shared<SharedMemory>(std::move(arena)));
  steps_ = std::make_unique<StepRunner>(state_, std::move(memory), std::move(given[4]), std::move(given[5]),
                                        std::clamp<int64_t>(spin_ns, 0, 1'000'000));
  second_ = std::make_unique<CallServer>(Channel(std::move(given[0])), state_, steps_, false);
  second_thread_ = std::thread([second = second_.get()] { [[maybe_unused]] const Status end = second->serve(); });
  const auto devices = state_.plugin->enumerate();
  reply.put_text(state_.api->name);
  reply.put_text(state_.api->version == nullptr ? "" : state_.api->version);
  reply.put(mask_of(*state_.api));
  reply.put<int32_t>(devices.error().code());
  reply.put_text(std::string_view(devices.error().message()));
  const bool any = devices.ok();
  reply.put_array(any ? devices->data() : nullptr, any ? static_cast<uint32_t>(devices->size()) : 0);
  return ok_status();
}

Status CallServer::open(Request& request, Writer& reply) {
  OpenCall call;
  if (!call.decode(request.reader)) return malformed();
  if (state_.api == nullptr || state_.device != nullptr) {
    return error(MOTLEY_FAILED_PRECONDITION, "the worker has no plugin, or has opened its device already");
  }
  motley_error failure{};
  motley_device_desc desc{};
  desc.struct_size = sizeof desc;
  if (call.spec) {
    if (state_.api->describe == nullptr) return error(MOTLEY_UNIMPLEMENTED, "the plugin describes no devices");
    RETURN_IF_ERROR(plugin_status(state_.api->describe(call.spec->c_str(), &desc, &failure), failure));
    call.index = desc.index;
  } else if (const auto devices = state_.plugin->enumerate(); devices.ok()) {
    for (const motley_device_desc& device : *devices) {
      if (device.index == call.index) desc = device;
    }
  }
  motley_open_options options{};
  options.struct_size = sizeof options;
  options.threads = call.threads;
  options.cores = text_or_null(call.cores);
  options.memory_cap = state_.memory_cap = call.memory_cap;
  options.cache_dir = text_or_null(call.cache_dir);
  options.variant = text_or_null(call.variant);
  options.deterministic = call.deterministic;
  options.log = send_log;
  options.log_user = &state_;
  motley_device* device = nullptr;
  RETURN_IF_ERROR(plugin_status(state_.api->open(call.index, &options, &device, &failure), failure));
  state_.device = device;
  reply.put(desc);
  return ok_status();
}

Status CallServer::close(Request&, Writer&) {
  if (!first_) return malformed();
  if (second_ != nullptr) {
    second_->channel_.shut();
    second_thread_.join();
    second_.reset();
  }
  steps_.reset();
  state_.close();
  return ok_status();
}

Status CallServer::stats(Request&, Writer& reply) {
  if (state_.api->stats == nullptr) return error(MOTLEY_UNIMPLEMENTED, "the plugin keeps no statistics");
  motley_device_stats stats{};
  stats.struct_size = sizeof stats;
  motley_error failure{};
  RETURN_IF_ERROR(plugin_status(state_.api->stats(state_.device, &stats, &failure), failure));
  stats.bytes_resident += state_.shared_bytes;
  reply.put(stats);
  return ok_status();
}

Status CallServer::queue_create(Request& request, Writer&) {
  const auto id = request.reader.get<uint64_t>();
  if (!request.reader.done()) return malformed();
  motley_queue* queue = nullptr;
  motley_error failure{};
  RETURN_IF_ERROR(plugin_status(state_.api->queue_create(state_.device, &queue, &failure), failure));
  auto owned = std::make_shared<WorkerQueue>(queue, state_.api->queue_destroy);
  return state_.queues.add(id, std::move(owned)) ? ok_status() : taken();
}

Status CallServer::queue_destroy(Request& request, Writer&) {
  const auto queue = state_.queues.take(request.reader.get<uint64_t>());
  if (queue == nullptr) return unknown("queue");
  steps_->await_idle(*queue);
  return ok_status();
}

// Memory that the plugin can use in place comes with the call, mapped by the host too; else the plugin makes its own.
Status CallServer::alloc(Request& request, Writer&) {
  const auto id = request.reader.get<uint64_t>(), bytes = request.reader.get<uint64_t>();
  const auto use = request.reader.get<int32_t>();
  if (!request.reader.done()) return malformed();
  auto owned = std::make_shared<Owned<motley_buffer>>(nullptr, state_.api->free);
  if (!request.descriptors.empty()) {
    ASSIGN_OR_RETURN(owned->memory, SharedMemory::adopt(std::move(request.descriptors[0]), bytes));
    owned->memory.drop_descriptor();
    owned->counted = &state_.shared_bytes;
    state_.shared_bytes += owned->memory.bytes();
    RETURN_IF_ERROR(state_.within_cap());
  }
  motley_error failure{};
  RETURN_IF_ERROR(plugin_status(
      state_.api->alloc(state_.device, bytes, use, owned->memory.data(), &owned->raw, &failure), failure));
  RETURN_IF_ERROR(state_.within_cap());
  return state_.buffers.add(id, std::move(owned)) ? ok_status() : taken();
}

Status CallServer::free(Request& request, Writer&) {
  return state_.buffers.take(request.reader.get<uint64_t>()) != nullptr ? ok_status() : unknown("buffer");
}

Status CallServer::pack(Request& request, Writer& reply) {
  const auto id = request.reader.get<uint64_t>();
  WeightCopy weight;
  if (!weight.decode(request.reader)) return malformed();
  const bool in_file = request.reader.get<uint8_t>() != 0;
  const auto offset = request.reader.get<uint64_t>();
  if (!request.reader.done()) return malformed();
  auto owned = std::make_shared<Owned<motley_weight>>(nullptr, state_.api->weight_free);
  SharedMemory data;
  FileView view;
  static constexpr std::byte kNone[64]{};
  const void* source = weight.has_data ? kNone : nullptr;
  if (weight.has_data && weight.desc.bytes > 0) {
    if (request.descriptors.empty()) return malformed();
    if (in_file) {
      ASSIGN_OR_RETURN(view, FileView::map(request.descriptors[0], offset, weight.desc.bytes));
      source = view.data();
    } else {
      ASSIGN_OR_RETURN(data, SharedMemory::adopt(std::move(request.descriptors[0]), weight.desc.bytes));
      data.drop_descriptor();
      source = data.data();
    }
  }
  const motley_weight_desc desc = weight.view(source);
  motley_weight_info info{};
  info.struct_size = sizeof info;
  motley_error failure{};
  RETURN_IF_ERROR(plugin_status(state_.api->pack(state_.device, &desc, &owned->raw, &info, &failure), failure));
  if (info.aliases_source != 0) {  // so the data stays, here: the host's copy may go
    owned->memory = std::move(data);
    owned->view = std::move(view);
    owned->counted = &state_.shared_bytes;
    state_.shared_bytes += owned->memory.bytes();
    info.aliases_source = 0;
  }
  RETURN_IF_ERROR(state_.within_cap());
  reply.put(info);
  return state_.weights.add(id, std::move(owned)) ? ok_status() : taken();
}

Status CallServer::weight_free(Request& request, Writer&) {
  return state_.weights.take(request.reader.get<uint64_t>()) != nullptr ? ok_status() : unknown("weight");
}

Status CallServer::kv_create(Request& request, Writer&) {
  const auto id = request.reader.get<uint64_t>();
  KvCopy copy;
  if (!copy.decode(request.reader) || !request.reader.done()) return malformed();
  if (state_.api->kv_create == nullptr) return error(MOTLEY_UNIMPLEMENTED, "the plugin keeps no KV");
  const motley_kv_desc desc = copy.view();
  auto owned = std::make_shared<Owned<motley_kv>>(nullptr, state_.api->kv_destroy);
  motley_error failure{};
  RETURN_IF_ERROR(plugin_status(state_.api->kv_create(state_.device, &desc, &owned->raw, &failure), failure));
  RETURN_IF_ERROR(state_.within_cap());
  return state_.kv.add(id, std::move(owned)) ? ok_status() : taken();
}

Status CallServer::kv_destroy(Request& request, Writer&) {
  return state_.kv.take(request.reader.get<uint64_t>()) != nullptr ? ok_status() : unknown("KV pool");
}

Status CallServer::kv_layout(Request& request, Writer& reply) {
  KvCopy copy;
  if (!copy.decode(request.reader) || !request.reader.done()) return malformed();
  if (state_.api->kv_layout == nullptr) return error(MOTLEY_UNIMPLEMENTED, "the plugin keeps no KV");
  const motley_kv_desc desc = copy.view();
  motley_kv_layout layout{};
  layout.struct_size = sizeof layout;
  motley_error failure{};
  RETURN_IF_ERROR(plugin_status(state_.api->kv_layout(state_.device, &desc, &layout, &failure), failure));
  reply.put(layout);
  return ok_status();
}

Status CallServer::query(Request& request, Writer& reply) {
  SegmentCopy copy;
  const bool read = copy.decode(request.reader);
  const Array<uint32_t> buckets = request.reader.get_array<uint32_t>(kBucketsMax);
  if (!read || !request.reader.done()) return malformed();
  const motley_segment segment = copy.view();
  motley_query_result result{};
  result.struct_size = sizeof result;
  motley_error failure{};
  RETURN_IF_ERROR(plugin_status(
      state_.api->query(state_.device, &segment, buckets.data(), buckets.count, &result, &failure), failure));
  reply.put(result);
  return ok_status();
}

Status CallServer::compile(Request& request, Writer&) {
  const auto id = request.reader.get<uint64_t>();
  SegmentCopy copy;
  const bool read = copy.decode(request.reader);
  const Array<uint64_t> ids = request.reader.get_array<uint64_t>(kItemsMax);
  const Array<uint32_t> buckets = request.reader.get_array<uint32_t>(kBucketsMax);
  const auto blob_bytes = request.reader.get<uint64_t>();
  if (!read || !request.reader.done() || (ids.present && ids.count != copy.segment.weight_count)) return malformed();
  std::vector<std::shared_ptr<Owned<motley_weight>>> held;
  std::vector<motley_weight*> weights;
  for (const uint64_t weight : ids.items) {
    held.push_back(state_.weights.find(weight));
    if (weight != 0 && held.back() == nullptr) return unknown("weight");
    weights.push_back(weight == 0 ? nullptr : held.back()->raw);
  }
  SharedMemory blob;
  if (!request.descriptors.empty()) {
    ASSIGN_OR_RETURN(blob, SharedMemory::adopt(std::move(request.descriptors[0]), blob_bytes));
  }
  const motley_segment segment = copy.view();
  motley_compile_options options{};
  options.struct_size = sizeof options;
  options.buckets = buckets.data(), options.bucket_count = buckets.count;
  options.blob = blob.data(), options.blob_bytes = blob.data() == nullptr ? 0 : blob_bytes;
  auto owned = std::make_shared<Owned<motley_programs>>(nullptr, state_.api->programs_free);
  motley_error failure{};
  motley_weight* none = nullptr;
  motley_weight* const* list = !ids.present ? nullptr : weights.empty() ? &none : weights.data();
  RETURN_IF_ERROR(
      plugin_status(state_.api->compile(state_.device, &segment, list, &options, &owned->raw, &failure), failure));
  RETURN_IF_ERROR(state_.within_cap());
  return state_.programs.add(id, std::move(owned)) ? ok_status() : taken();
}

Status CallServer::programs_free(Request& request, Writer&) {
  return state_.programs.take(request.reader.get<uint64_t>()) != nullptr ? ok_status() : unknown("programs");
}

// With memory: the blob is written there.
Status CallServer::export_programs(Request& request, Writer& reply) {
  const auto programs = state_.programs.find(request.reader.get<uint64_t>());
  auto bytes = request.reader.get<uint64_t>();
  if (!request.reader.done()) return malformed();
  if (programs == nullptr) return unknown("programs");
  if (state_.api->export_programs == nullptr) return error(MOTLEY_UNIMPLEMENTED, "the plugin makes no blobs");
  SharedMemory memory;
  if (!request.descriptors.empty()) {
    ASSIGN_OR_RETURN(memory, SharedMemory::adopt(std::move(request.descriptors[0]), bytes));
  }
  motley_error failure{};
  RETURN_IF_ERROR(plugin_status(state_.api->export_programs(programs->raw, memory.data(), &bytes, &failure), failure));
  reply.put(bytes);
  return ok_status();
}

Status CallServer::stage(Request& request, Writer&) {
  const auto region = request.reader.get<uint64_t>(), bytes = request.reader.get<uint64_t>();
  if (!request.reader.done() || request.descriptors.size() != 1) return malformed();
  ASSIGN_OR_RETURN(SharedMemory memory, SharedMemory::adopt(std::move(request.descriptors[0]), bytes));
  memory.drop_descriptor();
  return state_.staging.add(region, std::make_shared<SharedMemory>(std::move(memory))) ? ok_status() : taken();
}

Status CallServer::unstage(Request& request, Writer&) {
  const auto region = request.reader.get<uint64_t>();
  if (region == kArenaRegion) return malformed();
  state_.staging.take(region);
  return ok_status();
}

}  // namespace motley::worker
