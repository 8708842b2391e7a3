// When things are: the busy times of an engine, and who uses which bytes meanwhile.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "sim/event.hpp"

namespace motley::sim {

// One engine (compute, link) that does one thing at a time. Thread-safe.
class Timeline {
 public:
  struct Busy {
    int64_t begin_ns, end_ns;
  };
  // The first gap of `duration_ns` from `earliest_ns` on; it is taken.
  int64_t take(int64_t earliest_ns, int64_t duration_ns);
  // All gaps from `earliest_ns` on, until they come to `duration_ns`: from the first one's begin to the last one's end.
  // In virtual time what was enqueued before may lie far ahead, program by program, each at the time that its inputs
  // are there. An engine that is free until then does not wait for it: in wall time it would begin.
  Busy take_parts(int64_t earliest_ns, int64_t duration_ns);
  // The last taken time ends no earlier than this (work that took longer than simulated).
  void extend(int64_t end_ns);

 private:
  void make_room();
  // The last ones: in virtual time whoever is behind may ask for what lies before others' work.
  static constexpr size_t kBusyMax = 1 << 14;
  std::mutex mutex_;
  std::vector<Busy> busy_;  // ascending, disjoint
};

struct Access {
  uint64_t buffer;  // id
  uint64_t begin, end;
  bool write;
};

// The accesses of work that has not ended. Work of one queue must not touch what unfinished work of another writes, nor
// write what it reads, unless a fence or the host's own waiting puts them in order: on a device with real latencies it
// would see, or leave, half of the contents. Thread-safe.
class AccessLog {
 public:
  struct Work {
    uint64_t queue;  // id
    uint64_t order;  // over all queues of the device
    std::vector<Access> accesses;
    std::shared_ptr<const Event> event;
    int64_t begin_ns = 0, end_ns = 0;  // virtual time
  };
  uint64_t next_order();
  // Wall time: `add` at enqueue, `remove` before the event fires; `conflict` asks, at the work's start, for unfinished
  // work enqueued earlier by other queues.
  // Virtual time: all at enqueue, where unfinished means ending after `begin_ns` and not yet seen by the host.
  void add(Work work);
  void remove(uint64_t order);
  std::optional<std::string> conflict(const Work& work, bool virtual_time);
  // Virtual time: forgets what has ended or was seen.
  void forget(int64_t now_ns);

 private:
  static constexpr size_t kWorksMax = 1 << 16;  // older ones are forgotten
  std::mutex mutex_;
  uint64_t order_ = 0;
  std::vector<Work> works_;
};

}  // namespace motley::sim
