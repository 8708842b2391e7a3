// RemoteDevice: the host's side of one device in a worker process. Behind its table (remote_table.cpp) it looks like
// any other device; what differs is said in docs/contracts/worker.md.
#pragma once

#include <atomic>
#include <deque>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device/worker/arena.hpp"
#include "device/worker/channel.hpp"
#include "device/worker/step_memory.hpp"
#include "device/worker/wire_structs.hpp"
#include "device/worker/worker_options.hpp"
#include "device/worker/worker_process.hpp"
#include "motley/backend.h"

namespace motley::worker {

class RemoteDevice;

// What the table's handles point to.
struct RemoteQueue {
  RemoteDevice* device;
  uint64_t id;
  uint32_t programs = 0;  // enqueued and not known to be finished
};
struct RemoteBuffer {
  RemoteDevice* device;
  uint64_t id, bytes;
  SharedMemory memory;  // empty: separate
};
struct RemoteWeight {
  RemoteDevice* device;
  uint64_t id;
};
struct RemoteKv {
  RemoteDevice* device;
  uint64_t id;
  uint32_t blocks;
  std::vector<uint64_t> block_bytes;  // by layer, of the canonical form
};
struct RemotePrograms {
  RemoteDevice* device;
  uint64_t id;
  std::vector<motley_value> values;
  std::vector<int32_t> bound, written;  // value ids: inputs and outputs, once each; outputs
  std::vector<uint32_t> buckets;
};

// Bytes in memory that both sides see: of the arena, or of a region made for one call.
struct Staging {
  uint64_t region = kArenaRegion, offset = 0, bytes = 0;
  std::byte* data = nullptr;
  SharedMemory own;
  StagedBytes on_wire() const { return {region, offset, bytes}; }
};

// A step call on its way. Shared by the device's list and the user's event, which outlive one another freely.
struct Work {
  uint32_t slot = 0, generation = 0;
  RemoteQueue* queue = nullptr;
  bool program = false;  // counts against the queue's depth
  Staging data, body;
  void* copy_to = nullptr;  // where data goes once the call is done
  std::vector<int> event_fds;
  // Written once, before `fired`.
  Status outcome;
  bool timed = false;
  int64_t start_ns = 0, end_ns = 0;
  std::atomic<bool> fired{false};
};

struct RemoteEvent {
  RemoteDevice* device;
  std::shared_ptr<Work> work;
};

// The answer to a control call: what follows code and text.
struct Answer {
  std::vector<std::byte> body;
  size_t skip = 0;
  Reader reader() const { return Reader(std::span(body).subspan(skip)); }
};

// Thread-safe; as everywhere one thread at a time per queue.
class RemoteDevice {
 public:
  // A worker that has opened the plugin's file, and no device yet. What the plugin logs goes to `log`.
  static Result<std::unique_ptr<RemoteDevice>> start(const std::filesystem::path& file, const WorkerOptions& options,
                                                     motley_log_fn log, void* log_user);
  ~RemoteDevice();  // closes the device and ends the worker, by force if it does not answer
  RemoteDevice(const RemoteDevice&) = delete;
  RemoteDevice& operator=(const RemoteDevice&) = delete;

  // As this side can offer them: no imports, no collectives.
  const Result<std::vector<motley_device_desc>>& devices() const { return devices_; }
  Status open(uint32_t index, const motley_open_options& options);
  const motley_device_desc& desc() const { return desc_; }
  const motley_backend& table() const { return table_; }
  WorkerProcess& process() { return *process_; }
  bool maps_buffers() const { return (desc_.caps & MOTLEY_CAP_HOST_MEMORY) != 0; }

  // ---- control ----
  // `slow`: on the channel and with the deadline of calls that may take long, while the other channel shows that the
  // worker lives.
  Result<Answer> call(Call call, const Writer& body, std::span<const int> descriptors = {}, bool slow = false);
  // A call without an answer's value, for destruction; a device that is gone has nothing to destroy.
  void dismiss(Call call, uint64_t id, bool slow = false);
  uint64_t new_id() { return next_id_.fetch_add(1); }
  motley_code stats(motley_device_stats* out, motley_error* error);
  // OK, or why the device answers no more.
  Status lost() const;

  // ---- steps ----
  Result<Staging> stage(uint64_t bytes);
  // Sends one step call. On success *event (if wanted) is a new handle; work's staging goes back by itself, also on
  // failure. RESOURCE_EXHAUSTED when the queue or the ring is full.
  Status submit(RemoteQueue& queue, Step step, const Writer& body, std::shared_ptr<Work> work, motley_event** event);
  Status fence(RemoteQueue& queue, const Work& work);
  void queue_destroy(RemoteQueue& queue);
  bool fired(Work& work);
  bool wait(Work& work, uint64_t timeout_ns);
  void notify(Work& work, int event_fd);
  void forget(Work& work);  // no eventfd of it is written after this

 private:
  struct Lane {
    Channel channel;
    std::mutex mutex;
    uint64_t last_id = 0;
  };
  RemoteDevice(WorkerOptions options, std::string name, motley_log_fn log, void* log_user)
      : options_(std::move(options)), name_(std::move(name)), log_(log), log_user_(log_user) {}
  Status launch();
  Status greet(const std::filesystem::path& file, std::span<const int> descriptors);
  void make_table(uint64_t mask);
  Result<Answer> exchange(Lane& lane, Call call, std::span<const std::byte> body, std::span<const int> descriptors,
                          int64_t timeout_ns);
  Result<Message> slow_reply(int64_t deadline_ns);
  Result<Message> figures(int64_t deadline_ns);
  Status ask_for_life();
  Status give_up(Status why, Call call, int64_t timeout_ns);
  void worker_ended(const std::string& how);

  Status push(RemoteQueue& queue, Step step, const Writer& body, const std::shared_ptr<Work>& work, bool silent);
  void ring_doorbell();
  void reap();
  void complete(Work& work, Status outcome);
  void give_back(Staging& staging);
  bool has_fired(const Work& work) const;

  const WorkerOptions options_;
  std::string name_;  // "CPU:0", for messages
  motley_log_fn log_;
  void* log_user_;
  std::string plugin_name_, plugin_version_;
  motley_backend table_{};
  Result<std::vector<motley_device_desc>> devices_ = error(MOTLEY_NOT_FOUND, "not asked yet");
  motley_device_desc desc_{};
  bool opened_ = false;
  Lane quick_, slow_;
  std::atomic<uint64_t> next_id_{kArenaRegion + 1};
  Descriptor doorbell_;
  SharedMemory arena_memory_;
  StepMemory memory_;

  mutable std::mutex mutex_;  // guards what follows; held for no call but memory copies
  RingWriter ring_{memory_};
  Arena arena_{0};
  std::vector<uint32_t> free_slots_, generations_;
  std::deque<std::shared_ptr<Work>> in_flight_;  // in the order of the calls
  uint32_t watched_ = 0;                         // of them, with an eventfd to ring
  Status lost_;
  bool closing_ = false;
  motley_device_stats last_stats_{};

  std::unique_ptr<WorkerProcess> process_;  // last: its thread uses the above
};

inline motley_event* handle(RemoteEvent* event) { return reinterpret_cast<motley_event*>(event); }

// The table's functions, for every remote device; which are left out is the plugin's to say.
motley_backend remote_table();

// ---- checks that the host can make itself, so that a wrong call is refused at once (remote_check.cpp) ----
Status check_enqueue(const RemotePrograms& programs, const motley_enqueue_args& args, bool dynamic_rows);
Status check_kv_move(const RemoteKv& kv, const int32_t* blocks, uint32_t count, uint32_t begin, uint32_t end,
                     uint64_t bytes);
Status check_inside(const RemoteBuffer& buffer, uint64_t offset, uint64_t bytes, const char* what);
// Bytes of a block of each layer in the canonical form (docs/formats/kv.md).
std::vector<uint64_t> kv_block_bytes(const motley_kv_desc& desc);

}  // namespace motley::worker
