#include "device/worker/remote_device.hpp"

#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <numeric>

#include "base/clock.hpp"
#include "base/log.hpp"

namespace motley::worker {
namespace {

constexpr uint64_t kArenaBytes = 16u << 20;
constexpr int64_t kSignOfLifeEvery_ns = 1'000'000'000;
constexpr int64_t kPatienceAtTheEnd_ns = 5'000'000'000;  // for a worker whose socket is closed to be gone

const char* name_of(Call call) {
  static constexpr const char* kNames[] = {
      "reply", "start",   "open",          "close",           "stats",     "queue_create", "queue_destroy",
      "alloc", "free",    "pack",          "weight_free",     "kv_create", "kv_destroy",   "kv_layout",
      "query", "compile", "programs_free", "export_programs", "staging",   "staging"};
  static_assert(std::size(kNames) == static_cast<size_t>(Call::kCount));
  return kNames[static_cast<size_t>(call)];
}

// What of a device's abilities reaches over to this side.
void reduce(motley_device_desc& desc) {
  const bool maps = (desc.caps & MOTLEY_CAP_HOST_MEMORY) != 0 && (desc.caps & MOTLEY_CAP_IMPORT_HOST) != 0;
  desc.caps &= ~uint64_t{MOTLEY_CAP_IMPORT_HOST | MOTLEY_CAP_COLLECTIVES};
  if (!maps) desc.caps &= ~uint64_t{MOTLEY_CAP_HOST_MEMORY};
}

std::optional<std::string> text_of(const char* text) {
  return text == nullptr ? std::nullopt : std::optional<std::string>(text);
}

}  // namespace

Result<std::unique_ptr<RemoteDevice>> RemoteDevice::start(const std::filesystem::path& file,
                                                          const WorkerOptions& options, motley_log_fn log,
                                                          void* log_user) {
  const std::string name = options.device_name.empty() ? file.stem().string() : options.device_name;
  std::unique_ptr<RemoteDevice> device(new RemoteDevice(options, name, log, log_user));
  ASSIGN_OR_RETURN(device->memory_, StepMemory::create());
  ASSIGN_OR_RETURN(device->arena_memory_, SharedMemory::create("motley-staging", kArenaBytes));
  device->arena_ = Arena(kArenaBytes);
  device->generations_.resize(kSlotCount);
  device->free_slots_.resize(kSlotCount);
  std::iota(device->free_slots_.rbegin(), device->free_slots_.rend(), 0u);
  ASSIGN_OR_RETURN(auto slow, Channel::pair(SOCK_STREAM));
  ASSIGN_OR_RETURN(auto quick, Channel::pair(SOCK_STREAM));
  ASSIGN_OR_RETURN(auto logs, Channel::pair(SOCK_SEQPACKET));
  device->slow_.channel = Channel(std::move(slow.first));
  device->quick_.channel = Channel(std::move(quick.first));
  Descriptor doorbell(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)), bell(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!doorbell || !bell) return error(MOTLEY_RESOURCE_EXHAUSTED, "no descriptor left for a worker's eventfd");
  const int bell_fd = bell.get();
  device->doorbell_ = std::move(doorbell);
  RemoteDevice* self = device.get();
  WorkerWatch watch;
  watch.log = [self](int32_t level, std::string_view text) {
    if (self->log_ != nullptr) self->log_(self->log_user_, level, std::string(text).c_str());
  };
  watch.bell = [self] {
    std::lock_guard lock(self->mutex_);
    self->reap();
  };
  watch.ended = [self](const std::string& how) { self->worker_ended(how); };
  ASSIGN_OR_RETURN(
      device->process_,
      WorkerProcess::start(options.program, {std::move(slow.second), std::move(logs.first), std::move(bell)}, watch));
  const int given[] = {quick.second.get(),         logs.second.get(),       device->memory_.memory().fd(),
                       device->arena_memory_.fd(), device->doorbell_.get(), bell_fd};
  RETURN_IF_ERROR(device->greet(file, given));
  return device;
}

Status RemoteDevice::greet(const std::filesystem::path& file, std::span<const int> descriptors) {
  std::error_code failed;
  Writer body;
  body.put_text(std::string_view(std::filesystem::absolute(file, failed).native()));
  body.put(arena_memory_.bytes());
  body.put(options_.spin_ns);
  ASSIGN_OR_RETURN(const Answer answer, call(Call::kHello, body, descriptors, true));
  Reader reader = answer.reader();
  plugin_name_ = reader.get_text().value_or("");
  plugin_version_ = reader.get_text().value_or("");
  const auto mask = reader.get<uint64_t>();
  const auto code = reader.get<int32_t>();
  const std::string why = reader.get_text().value_or("");
  Array<motley_device_desc> found = reader.get_array<motley_device_desc>(kDevicesMax);
  if (!reader.done()) return error(MOTLEY_DATA_LOSS, "{}: its worker's greeting cannot be read", name_);
  memory_.drop_descriptor();
  arena_memory_.drop_descriptor();
  for (motley_device_desc& desc : found.items) reduce(desc);
  if (code == MOTLEY_OK) {
    devices_ = std::move(found.items);
  } else {
    devices_ = Status(static_cast<Code>(code), why);
  }
  make_table(mask);
  return ok_status();
}

void RemoteDevice::make_table(uint64_t mask) {
  table_ = remote_table();
  table_.name = plugin_name_.c_str(), table_.version = plugin_version_.c_str();
  const auto has = [mask](Entry entry) { return (mask >> static_cast<uint32_t>(entry) & 1) != 0; };
  if (!has(Entry::kCopy)) table_.copy = nullptr;
  if (!has(Entry::kCopyToHost)) table_.copy_to_host = nullptr;
  if (!has(Entry::kCopyFromHost)) table_.copy_from_host = nullptr;
  if (!has(Entry::kKvCreate)) table_.kv_create = nullptr;
  if (!has(Entry::kKvDestroy)) table_.kv_destroy = nullptr;
  if (!has(Entry::kKvLayout)) table_.kv_layout = nullptr;
  if (!has(Entry::kKvExport)) table_.kv_export = nullptr;
  if (!has(Entry::kKvImport)) table_.kv_import = nullptr;
  if (!has(Entry::kExportPrograms)) table_.export_programs = nullptr;
  if (!has(Entry::kEventTimes)) table_.event_times = nullptr;
  if (!has(Entry::kFence)) table_.fence = nullptr;
}

Status RemoteDevice::open(uint32_t index, const motley_open_options& options) {
  if (options.virtual_now != nullptr) {
    return error(MOTLEY_UNIMPLEMENTED, "{}: virtual time does not reach into a worker process; open it without one",
                 name_);
  }
  OpenCall open;
  open.index = index, open.threads = options.threads;
  open.memory_cap = options.memory_cap, open.deterministic = options.deterministic;
  open.cores = text_of(options.cores), open.cache_dir = text_of(options.cache_dir);
  open.variant = text_of(options.variant);
  if (!options_.spec.empty()) open.spec = options_.spec;
  Writer body;
  open.encode(body);
  ASSIGN_OR_RETURN(const Answer answer, call(Call::kOpen, body, {}, true));
  Reader reader = answer.reader();
  desc_ = reader.get<motley_device_desc>();
  if (!reader.done()) return error(MOTLEY_DATA_LOSS, "{}: its worker's answer cannot be read", name_);
  desc_.family[sizeof desc_.family - 1] = '\0';
  reduce(desc_);
  std::lock_guard lock(mutex_);
  opened_ = true;
  if (options_.device_name.empty()) {
    name_ = fmt::format("{}:{}", desc_.family, desc_.index);
  }
  return ok_status();
}

RemoteDevice::~RemoteDevice() {
  if (process_ == nullptr) return;
  if (opened_ && lost().ok()) {
    {
      std::lock_guard lock(mutex_);
      closing_ = true;
    }
    const Status closed = call(Call::kClose, Writer(), {}, true).error();
    if (closed.ok()) process_->wait_ended(options_.call_timeout_ns);
  }
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  process_.reset();
}

Status RemoteDevice::lost() const {
  std::lock_guard lock(mutex_);
  return lost_;
}

Result<Answer> RemoteDevice::call(Call call, const Writer& body, std::span<const int> descriptors, bool slow) {
  const int64_t timeout_ns = call == Call::kCompile ? options_.compile_timeout_ns
                             : slow                 ? options_.slow_call_timeout_ns
                             : call == Call::kStats ? options_.stats_timeout_ns
                                                    : options_.call_timeout_ns;
  std::vector<std::byte> bytes(sizeof(uint64_t));
  {
    std::lock_guard lock(mutex_);
    const uint64_t position = ring_.position();
    std::memcpy(bytes.data(), &position, sizeof position);
  }
  bytes.insert(bytes.end(), body.bytes().begin(), body.bytes().end());
  Lane& lane = slow ? slow_ : quick_;
  std::lock_guard lock(lane.mutex);
  RETURN_IF_ERROR(lost());
  return exchange(lane, call, bytes, descriptors, timeout_ns);
}

Result<Answer> RemoteDevice::exchange(Lane& lane, Call call, std::span<const std::byte> body,
                                      std::span<const int> descriptors, int64_t timeout_ns) {
  const int64_t deadline_ns = system_clock().now_ns() + timeout_ns;
  const Status sent = lane.channel.send(call, ++lane.last_id, body, descriptors, deadline_ns);
  if (sent.code() == MOTLEY_RESOURCE_EXHAUSTED) return sent;  // too large: nothing went out
  if (!sent.ok()) return give_up(sent, call, timeout_ns);
  Result<Message> reply = &lane == &slow_        ? slow_reply(deadline_ns)
                          : call == Call::kStats ? figures(deadline_ns)
                                                 : lane.channel.receive(deadline_ns);
  if (!reply.ok()) return give_up(reply.error(), call, timeout_ns);
  Answer answer;
  answer.body = std::move(reply->body);
  Reader reader(answer.body);
  const auto code = reader.get<int32_t>();
  const std::string text = reader.get_text().value_or("");
  if (reply->call != Call::kReply || reply->id != lane.last_id || !reader.ok() || code < 0 ||
      code > MOTLEY_UNAUTHENTICATED || !reply->descriptors.empty()) {
    return give_up(error(MOTLEY_DATA_LOSS, "its worker's answer cannot be read"), call, timeout_ns);
  }
  if (code != MOTLEY_OK) return Status(static_cast<Code>(code), text);
  answer.skip = answer.body.size() - reader.left();
  return answer;
}

// Waits as long as it takes, but for a worker that lives.
Result<Message> RemoteDevice::slow_reply(int64_t deadline_ns) {
  for (;;) {
    const int64_t now_ns = system_clock().now_ns();
    if (deadline_ns - now_ns <= kSignOfLifeEvery_ns || slow_.channel.wait_readable(now_ns + kSignOfLifeEvery_ns)) {
      return slow_.channel.receive(deadline_ns);
    }
    RETURN_IF_ERROR(ask_for_life());
  }
}

// Where cores are few and wanted by many, a worker may be late with its figures: it has not stopped while it is seen at
// work. It has the time of any other call then.
Result<Message> RemoteDevice::figures(int64_t deadline_ns) {
  const int64_t last_ns = deadline_ns - options_.stats_timeout_ns + options_.call_timeout_ns;
  while (!quick_.channel.wait_readable(deadline_ns) && deadline_ns < last_ns && process_->at_work())
    deadline_ns = std::min(last_ns, deadline_ns + options_.stats_timeout_ns);
  return quick_.channel.receive(deadline_ns);
}

Status RemoteDevice::ask_for_life() {
  if (!opened_) return ok_status();  // the other channel is served once the device is open
  std::unique_lock lock(quick_.mutex, std::try_to_lock);
  if (!lock.owns_lock()) return ok_status();  // another call finds out
  RETURN_IF_ERROR(lost());
  const std::vector<std::byte> position(sizeof(uint64_t));  // 0: waits for no step
  return exchange(quick_, Call::kStats, position, {}, options_.stats_timeout_ns).error();
}

// After a failed exchange the channel is of no use, and so the device is lost. A worker that is gone or talks nonsense
// is ended here; one that keeps silent is the caller's to kill.
Status RemoteDevice::give_up(Status why, Call call, int64_t timeout_ns) {
  if (why.code() == MOTLEY_DEADLINE_EXCEEDED) {
    std::lock_guard lock(mutex_);
    if (!lost_.ok()) return error(MOTLEY_DEADLINE_EXCEEDED, "{}, during {}", lost_.message(), name_of(call));
    lost_ = error(MOTLEY_UNAVAILABLE, "{}: its worker process {} stopped answering", name_, process_->pid());
    return error(MOTLEY_DEADLINE_EXCEEDED, "{}: its worker process {} did not answer {} within {} ms", name_,
                 process_->pid(), name_of(call), timeout_ns / 1'000'000);
  }
  if (why.code() != MOTLEY_UNAVAILABLE) {
    std::lock_guard lock(mutex_);
    lost_ = error(MOTLEY_UNAVAILABLE, "{}: {}", name_, why.message());
  } else {
    process_->wait_ended(kPatienceAtTheEnd_ns);
  }
  process_->kill();
  return lost();
}

void RemoteDevice::worker_ended(const std::string& how) {
  std::lock_guard lock(mutex_);
  reap();
  lost_ = lost_.ok() ? error(MOTLEY_UNAVAILABLE, "{}: its worker {}", name_, how)
                     : error(MOTLEY_UNAVAILABLE, "{}; its worker {}", lost_.message(), how);
  for (const auto& work : in_flight_) {
    EventSlot& slot = memory_.slot(work->slot);
    work->copy_to = nullptr;
    complete(*work, lost_);
    slot.state.store(work->generation * 2 + 1, std::memory_order_seq_cst);
    futex_wake_all(slot.state);
  }
  in_flight_.clear();
  // A worker that was asked to end and did so in another way has something wrong with it, or with its plugin.
  if (opened_ && (!closing_ || !how.ends_with("code 0"))) log_warning("{}", lost_.message());
}

void RemoteDevice::dismiss(Call call, uint64_t id, bool slow) {
  Writer body;
  body.put(id);
  const Status status = this->call(call, body, {}, slow).error();
  if (!status.ok() && status.code() != MOTLEY_UNAVAILABLE) log_warning("{}: {}", name_of(call), status.message());
}

motley_code RemoteDevice::stats(motley_device_stats* out, motley_error*) {
  motley_device_stats stats{};
  stats.struct_size = sizeof stats;
  if (const auto answer = call(Call::kStats, Writer()); answer.ok()) {
    Reader reader = answer->reader();
    const auto told = reader.get<motley_device_stats>();
    if (reader.done()) stats = told;
  }
  {
    std::lock_guard lock(mutex_);
    if (!lost_.ok()) {
      stats = last_stats_;
      stats.lost = 1;
    }
    last_stats_ = stats;
  }
  const uint32_t size = out->struct_size == 0 ? sizeof stats : std::min<uint32_t>(out->struct_size, sizeof stats);
  stats.struct_size = size;
  std::memcpy(out, &stats, size);
  return MOTLEY_OK;
}

}  // namespace motley::worker
