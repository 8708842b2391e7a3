// What stands behind a simulated device's handles. Each wraps the cpu plugin's handle that computes for it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <memory>
#include <mutex>

#include "kit/arithmetic.hpp"
#include "kit/budget.hpp"
#include "kit/check.hpp"
#include "kit/kv.hpp"
#include "sim/cost.hpp"
#include "sim/event.hpp"
#include "sim/inner.hpp"
#include "sim/rules.hpp"
#include "sim/timeline.hpp"

namespace motley::sim {

template <class T>
using Owned = std::unique_ptr<T, void (*)(T*)>;  // a handle of the cpu plugin

class Queue;

// A device's clock: the machine's, or the host's virtual one, which is asked on enqueuing threads alone.
struct Clock {
  int64_t (*virtual_now)(void*) = nullptr;
  void* user = nullptr;
  bool is_virtual() const { return virtual_now != nullptr; }
  int64_t now() const { return virtual_now ? virtual_now(user) : kit::monotonic_ns(); }
};

// What the faults of a spec do to one program.
struct Verdict {
  bool dies = false;     // the device is lost with this program
  bool hangs = false;    // it never ends
  bool starves = false;  // others have the memory that it needs
  int64_t delay_ns = 0;  // a stall
  double factor = 1;
};

// The programs that lie on a device which holds so many at once: the one that ran longest ago makes room. Thread-safe.
class Residents {
 public:
  explicit Residents(uint32_t most) : most_(most) {}
  uint64_t names(size_t count) { return next_.fetch_add(count); }  // the first of so many names
  // Whether it was not there; it is now.
  bool load(uint64_t program);
  void forget(uint64_t first, size_t count);

 private:
  const uint32_t most_;  // 0: any number
  std::atomic<uint64_t> next_{1};
  std::mutex mutex_;
  std::vector<uint64_t> there_;  // the last one ran last
};

// Thread-safe, but for `close`.
class Device {
 public:
  // Throws Error.
  Device(const Spec& spec, const motley_open_options& options);
  ~Device();
  Device(const Device&) = delete;

  // Throws UNAVAILABLE once the device is lost.
  void require_alive();
  // Also notices a death by time: of the machine's clock; in virtual time work finds it out (Queue).
  bool lost();
  void lose();
  bool known_lost() const { return lost_; }
  // Queues are woken when the device is lost.
  void add_queue(Queue* queue);
  void remove_queue(Queue* queue);
  int64_t death_ns() const { return death_ns_; }  // by a fault with a time; far away without one
  // Counts a program and applies the faults that it meets; `at_ns` is when it could begin.
  Verdict judge_program(int64_t at_ns);
  // Takes the time of compiling that long, and answers when its programs may run (virtual time). Throws INTERNAL where
  // a bucket is to fail.
  int64_t compile(double seconds, std::span<const uint32_t> buckets);
  // Programs need so much for themselves: one after another, so that the most of any is held, to the device's end.
  void take_workspace(uint64_t bytes);
  // A weight is packed: throws UNAVAILABLE once the device is lost, and lasts as long as a fault of it says.
  void packing();
  // The part of the bandwidth that is left beside the other devices of the memory group: those that have a queue
  // (virtual time, where who runs when must not matter) or that run a program now (wall time).
  double bandwidth_share() const;

  const Spec spec;
  const Clock clock;
  Rates rates;
  Owned<motley_device> inner_device{nullptr, nullptr};
  kit::Budget budget;
  Timeline compute, link;
  Residents residents;
  AccessLog accesses;
  std::atomic<bool> hung{false};
  std::atomic<uint32_t> running{0};  // programs, now
  std::atomic<uint64_t> programs{0}, rows{0}, padded_rows{0}, bytes_copied{0}, busy_ns{0};
  std::atomic<uint64_t> compile_ns{0}, blob_hits{0}, reloads{0};
  std::atomic<double> flops{0}, padded_flops{0};
  uint64_t next_queue() { return queues_made_.fetch_add(1); }
  uint64_t next_buffer() { return buffers_made_.fetch_add(1); }

 private:
  const int64_t zero_ns_;  // what faults by time count from: the opening, or 0 of virtual time
  const int64_t death_ns_;
  std::atomic<bool> lost_{false};
  std::atomic<uint64_t> queues_made_{0}, buffers_made_{0};
  std::atomic<uint32_t> queues_open_{0};
  std::mutex workspace_;
  uint64_t workspace_bytes_ = 0;              // guarded by workspace_
  std::vector<kit::Share> workspace_shares_;  // likewise
  std::mutex compiling_;
  Timeline compiler_;
  std::mutex waking_;
  std::vector<Queue*> queues_;  // guarded by waking_
  std::mutex faults_;           // guards the rest
  uint64_t enqueued_ = 0;
  struct Slow {
    int64_t until_ns;
    double factor;
  };
  std::vector<Slow> slow_;
  std::vector<bool> met_;  // of spec.faults
};

struct Buffer {
  Device* device = nullptr;
  kit::Share share;  // of ACTIVATION memory; staging is the host's
  Owned<motley_buffer> inner{nullptr, nullptr};
  std::byte* data = nullptr;
  uint64_t bytes = 0;
  uint64_t id = 0;  // never used again
  bool staging = false;
  bool imported = false;  // the host's memory, which programs reach over the link
  bool of_host() const { return staging || imported; }
};

struct Weight {
  Device* device = nullptr;
  std::vector<std::byte> source;  // a copy, where the cpu plugin would use the host's
  Owned<motley_weight> inner{nullptr, nullptr};
  std::vector<Owned<motley_weight>> parts;  // of its columns, where sums are held in F16
  kit::Share share;
  WeightFacts facts;
};

struct Kv {
  Kv(Device* owner, kit::KvShape shape_in) : device(owner), shape(std::move(shape_in)) {}
  Device* device;
  kit::KvShape shape;
  kit::Share share;
  Owned<motley_kv> inner{nullptr, nullptr};
};

struct Programs {
  Programs(Device* owner, Owned<motley_programs> inner_in, kit::CheckedSegment segment_in,
           const std::vector<WeightFacts>& weights, std::vector<uint32_t> buckets_in);
  ~Programs() { device->residents.forget(first_name, buckets.size()); }
  Programs(const Programs&) = delete;
  uint64_t name(size_t bucket) const { return first_name + bucket; }  // among the residents
  bool writes(int32_t value) const { return written[static_cast<size_t>(value)]; }
  bool has_head_rows() const;
  // An output whose old contents no op reads.
  bool overwrites(int32_t value) const;

  Device* device;
  Owned<motley_programs> inner;
  kit::CheckedSegment segment;
  ProgramCost cost;
  kit::Arithmetic arithmetic;
  std::vector<uint32_t> buckets;
  std::vector<bool> written;  // by value
  const uint64_t first_name;
  int64_t ready_ns = 0;         // virtual time: not run before
  std::vector<std::byte> blob;  // of export_programs
  kit::Share share;
};

}  // namespace motley::sim
