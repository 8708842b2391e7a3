// StepRunner: the worker's thread for step calls. It hands the ring's records to the plugin and fires the host's
// events.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "device/worker/step_memory.hpp"
#include "device/worker/wire_structs.hpp"
#include "device/worker/worker_state.hpp"

namespace motley::worker {

class StepRunner {
 public:
  // doorbell wakes this thread, bell the host's; both are eventfds. Starts at once.
  StepRunner(WorkerState& state, StepMemory memory, Descriptor doorbell, Descriptor bell, int64_t spin_ns);
  ~StepRunner();
  // From other threads: returns once all records before `position` have been handed to the plugin.
  void await_position(uint64_t position);
  // Returns once every event of the queue has fired towards the host.
  void await_idle(const WorkerQueue& queue);

 private:
  // What a step call needs until its event has fired.
  struct Job {
    BatchCopy batch;
    motley_batch view{};
    std::shared_ptr<SharedMemory> staging, body;
    std::vector<std::shared_ptr<void>> held;  // objects of the plugin
  };
  struct Pending {
    uint64_t sequence = 0;
    std::shared_ptr<WorkerQueue> queue;
    uint32_t slot = kNoSlot, generation = 0;
    bool silent = false;
    motley_event* event = nullptr;  // null: the plugin refused, and status says why
    Status status;
    std::unique_ptr<Job> job;
  };
  struct QueueRun {
    std::deque<Pending> pending;
    size_t ready = 0;  // of the first ones, fired
    Status unsaid;     // a refusal whose event nobody holds: the next event tells
  };
  struct Submit {
    motley_queue* queue;
    Job& job;
    Reader& reader;
    motley_event** event;
    motley_error* error;
  };
  using Handler = motley_code (StepRunner::*)(const Submit&);

  void loop();
  bool consume();
  void take(Record& record);
  void submit(Record& record, Pending& pending);
  bool find_fired();
  bool publish();
  bool has_fired(Pending& pending) const;
  void fire(Pending& pending, Status& unsaid);
  void sleep();
  void tell_waiters();

  motley_code enqueue(const Submit& call);
  motley_code copy(const Submit& call);
  motley_code copy_to_host(const Submit& call);
  motley_code copy_from_host(const Submit& call);
  motley_code kv_export(const Submit& call);
  motley_code kv_import(const Submit& call);
  Status fence(const Record& record, const WorkerQueue& queue) const;
  // The staging bytes that the record names next; null unless they exist.
  std::byte* staged(const Submit& call, uint64_t* bytes) const;
  std::shared_ptr<SharedMemory> region_of(const StagedBytes& staged) const;

  WorkerState& state_;
  const StepMemory memory_;
  const Descriptor doorbell_, bell_, fired_;  // fired_: the plugin's events ring it
  const int64_t spin_ns_;
  RingReader reader_;
  std::map<uint64_t, QueueRun> runs_;                       // by queue id
  std::vector<std::pair<uint32_t, motley_event*>> events_;  // by slot: generation and the plugin's pending event
  uint64_t sequence_ = 0;
  bool unwatched_ = false;  // the plugin would not ring for an event: look again soon
  std::atomic<uint64_t> consumed_{0};
  std::atomic<uint32_t> waiters_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable progress_;
  std::thread thread_;
};

}  // namespace motley::worker
