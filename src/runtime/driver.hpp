// Driver: the thread that runs a device's part of a placement, with a queue, buffers and a tape of its own.
//
// Every part of a lane has a driver, or as many as steps run side by side in it (docs/adr/0014). All drivers of a way
// get its steps in the same order; each replays its own tape and meets the others where the tape says so
// (docs/adr/0010). What a driver does between programs blocks its thread only. Its device
// has the step's limit for itself (DeviceTime): past it, the device is lost. Who waits for others is never lost by
// that: they keep their own limits. Time is counted per driver: with virtual time it moves on with what the device and
// the communicators report, so that a run's times depend on the plan and the devices alone.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.hpp"
#include "base/trace.hpp"
#include "comm/communicator.hpp"
#include "device/handles.hpp"
#include "device/wait.hpp"
#include "model/model.hpp"
#include "runtime/busy_time.hpp"
#include "runtime/device_part.hpp"
#include "runtime/device_time.hpp"
#include "runtime/driver_trace.hpp"
#include "runtime/flight.hpp"
#include "runtime/host_buffer.hpp"
#include "runtime/step_totals.hpp"
#include "runtime/tape.hpp"

namespace motley {

// Of a way from one stage to the next, which is a group of two.
inline constexpr uint32_t kWaySender = 0, kWayReceiver = 1;

// The ends of a driver's ways to the others. Ranks count the shards of a stage from 0.
struct DriverLinks {
  std::unique_ptr<Communicator> stage;                  // null: nobody else is there
  std::unique_ptr<Communicator> receive_from;           // a way: the residual stream comes in; null: it does not
  std::vector<std::unique_ptr<Communicator>> send_to;   // ways: it goes out
  std::vector<std::unique_ptr<Communicator>> partners;  // ways: to the shard's other parts, in their order
  uint32_t sampler = 0;                                 // stage rank that samples (of the last stage)
  std::vector<uint32_t> embedders;                      // stage ranks beside the sampler that need the sampled tokens
  std::vector<std::vector<UnitRange>> vocab;            // by stage rank: the columns of its logits
  // Whose the other ends are: by stage rank (its own, too), and as the ways above.
  std::vector<std::string> stage_devices, send_devices, partner_devices;
};

struct DriverOptions {
  std::string name;             // of the device
  std::vector<int> cores;       // where the driver's thread runs; empty = anywhere
  uint32_t logit_rows_max = 0;  // of one step
  uint32_t slots = 0;
  uint32_t steps_ahead = 1;  // steps that are enqueued before the one before them is done, where nothing stands between
  uint32_t queue_depth = 0;  // programs that a queue of the device takes before it refuses; 0 = any number
  bool virtual_time = false;
  bool simulated = false;    // the device is
  bool replaceable = false;  // there are others: without memory for its programs it is lost, else the step fails
  Trace* trace = nullptr;    // borrowed; null = none
  std::shared_ptr<BusyTime> busy = {};  // as NamedDevice
};

// What a driver has done for steps so far: programs that it enqueued, the rows of each, bytes to and from other
// devices, and the time in which its device had programs of a step to run, as the driver saw it.
struct DriverWork {
  uint64_t programs = 0, rows = 0, bytes_moved = 0;
  int64_t busy_ns = 0;
  std::map<std::string, uint64_t> bytes_to = {};  // each other device; of a sum over several, to each of the others
  DriverWork& operator+=(const DriverWork& other) {
    programs += other.programs, rows += other.rows, bytes_moved += other.bytes_moved, busy_ns += other.busy_ns;
    for (const auto& [device, bytes] : other.bytes_to) bytes_to[device] += bytes;
    return *this;
  }
};

class Driver {
 public:
  // What a driver tells its owner, on its own thread.
  struct Events {
    std::function<void(Flight&)> finished;                       // the last driver has ended its part of the step
    std::function<void(const Driver&, const Status& why)> lost;  // its device is: nothing more runs there
    std::function<void(const Status& why)> broken;               // a meeting failed, and with it the lane
    std::function<Status()> health;                              // not OK: the lane is lost, steps are to be failed
  };

  // Makes the buffers and the tape. `clock` is borrowed.
  static Result<std::unique_ptr<Driver>> create(std::shared_ptr<const DevicePart> part, DriverLinks links,
                                                const DriverOptions& options, const Clock& clock);
  ~Driver();  // ends what is under way

  void start(Events events);
  // Ends the thread once all steps that were pushed have ended. Of drivers that meet, all are stopped before any goes:
  // one that is still at work may call the others' abort().
  void stop();
  // Steps run in the order of the calls. Any thread; never blocks.
  void push(std::shared_ptr<Flight> flight);
  // Every pending and later meeting of this driver's groups answers `why`.
  void abort(const Status& why);

  const std::string& name() const { return options_.name; }
  const Device& device() const { return device_; }
  const DevicePart& part() const { return *part_; }
  std::shared_ptr<const DevicePart> hold_part() const { return part_; }
  const Tape& tape() const { return tape_; }
  const QueueHandle& queue() const { return queue_; }  // before start(), and after stop()
  // Random numbers, of which no two rows are alike, in the place of the residual stream that it would receive; programs
  // that run then add to it. Before start(). UNAVAILABLE and the like from the device.
  Status fill_residual(uint64_t timeout_ns);
  DriverWork work() const;
  // Of the steps whose part here has ended well. Any thread.
  TotalsByRows totals() const {
    std::lock_guard lock(mutex_);
    return totals_;
  }
  // When its device has used up its time, of system_clock(). INT64_MAX where the driver waits for nothing of it just
  // now: idle, in a meeting, or asleep until a step has ended. Any thread.
  int64_t due_ns() const { return due_ns_.load(); }

 private:
  struct ResultSet {
    std::unique_ptr<HostBuffer> ids, logprobs, top_ids, top_logprobs;
  };
  // A step whose programs are all enqueued.
  struct Pending {
    std::shared_ptr<Flight> flight;
    ProgramEvents programs;
    size_t set = 0;
    bool watched = false;  // the last program's event rings the waiter
  };
  using Buffers = std::map<int32_t, std::vector<HostBuffer*>>;  // value -> by result set

  Driver(std::shared_ptr<const DevicePart> part, DriverLinks links, const DriverOptions& options, const Clock& clock,
         Waiter waiter);
  Result<HostBuffer*> make_buffer(uint64_t bytes);
  void bind(int32_t value, HostBuffer* buffer);  // in all result sets
  Status make_buffers();
  Status make_results();
  Status make_border_buffers();
  Status make_tape();
  Status add_program(const ShardPiece& piece, const PartProgram& program);
  void add_partner(const ShardPiece& piece);
  uint64_t row_bytes(int32_t value) const;
  HostBuffer* buffer_of(int32_t value, size_t set) const;
  void add(TapeOp op, HostBuffer* buffer = nullptr, bool contributes = true);

  void loop();
  bool next(std::shared_ptr<Flight>* flight);
  void begin(std::shared_ptr<Flight> flight);
  Status play(Flight& flight, size_t set);
  Status meet(const TapeEntry& entry, Flight& flight, size_t set);
  Status meet_others(const TapeEntry& entry, Flight& flight, size_t set);
  Status make_room(Flight& flight);
  Status wait_for(const EventHandle& event, Flight& flight);
  Status failure(const Status& status) const;  // of a program, as it counts here
  Status settle(Flight& flight);
  Status receive(Flight& flight);
  Status send(Flight& flight);
  Status meet_partners(const TapeEntry& entry, Flight& flight);
  bool meets(size_t partner, const Flight& flight) const;
  Status nothing_seen(HostBuffer& log_sum_exps, uint64_t row_bytes, Flight& flight);
  void count_sent(const std::string& device, uint64_t bytes);
  Status send_rows(Communicator& way, HostBuffer& buffer, uint64_t row_bytes, Flight& flight);
  Status receive_rows(Communicator& way, HostBuffer& buffer, uint64_t row_bytes, Flight& flight);
  Status reduce(Flight& flight, HostBuffer& buffer, bool contributes);
  Status exchange_logits(Flight& flight);
  Status exchange_tokens(Flight& flight, size_t set);
  void put_columns(std::span<const float> from, uint32_t rank, size_t row_begin, size_t rows);
  // The buffers that the step's results are read from, with their bytes.
  std::vector<std::pair<HostBuffer*, uint64_t>> results_of(const Flight& flight, size_t set) const;
  Status read_results(Flight& flight, size_t set);
  void finish(Pending& pending);
  void leave(Flight& flight);
  void report(const Status& why, std::shared_ptr<Flight> flight);
  template <typename Meeting>
  Status with_others(const Flight& flight, const Meeting& meeting);
  bool fatal(const Status& status) const;
  int64_t deadline_ns(const Flight& flight) const;
  uint64_t device_timeout_ns(const Flight& flight) const;
  CommCall call(const Flight& flight);
  void learn_times(const EventHandle& event);
  void learn_busy(const ProgramEvents& programs);
  int64_t now_ns() const;  // as time counts for this driver
  void tell_copies();

  const std::shared_ptr<const DevicePart> part_;
  const Model& model_;  // the part's, as the two below
  const Device& device_;
  const ShardGraph& shard_;
  DriverLinks links_;
  const DriverOptions options_;
  const Clock& clock_;
  Waiter waiter_;
  DriverTrace trace_;
  std::vector<std::unique_ptr<HostBuffer>> buffers_;
  Buffers values_;
  HostBuffer *slots_ = nullptr, *residual_ = nullptr, *own_logits_ = nullptr, *all_logits_ = nullptr;
  std::vector<ResultSet> results_;
  QueueHandle queue_;
  Tape tape_;
  bool meets_ = false;  // the tape is not programs alone

  Events events_;
  mutable std::mutex mutex_;  // guards the three below
  TotalsByRows totals_;
  std::deque<std::shared_ptr<Flight>> waiting_;
  bool stopping_ = false;
  // The driver's thread only:
  std::deque<Pending> pending_;
  std::vector<std::shared_ptr<Flight>> stuck_;  // steps that a device which no longer answers may still read
  ProgramEvents running_;                       // enqueued, not waited for
  uint64_t enqueued_ = 0, ended_ = 0;           // programs, so far; ended: as known
  size_t next_set_ = 0;
  int64_t virtual_ns_ = 0;
  DeviceTime time_;
  bool others_failed_ = false;  // what failed last was a meeting, not this device
  std::atomic<int64_t> due_ns_{INT64_MAX};
  std::atomic<uint64_t> programs_{0}, rows_{0}, bytes_moved_{0};
  std::map<std::string, std::atomic<uint64_t>> bytes_to_;  // of all whom it can meet, from the beginning
  const std::shared_ptr<BusyTime> busy_;
  std::atomic<int64_t> busy_ns_{0};  // of it, what this driver added
  std::thread thread_;
};

}  // namespace motley
