// The memory of the step calls: a ring of records from host to worker, and the slots of events on their way back.
// Layout and protocol: docs/contracts/worker.md.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.hpp"
#include "device/worker/shared_memory.hpp"
#include "device/worker/wire.hpp"

namespace motley::worker {

inline constexpr uint32_t kSlotCount = 4096;
inline constexpr uint64_t kRingBytes = 4u << 20;
inline constexpr uint32_t kRecordBytesMax = 64u << 10;  // header included; longer bodies lie in staging
inline constexpr uint32_t kNoSlot = UINT32_MAX;
inline constexpr uint32_t kEventTextMax = 208;

using SharedWord = std::atomic<uint32_t>;
using SharedCounter = std::atomic<uint64_t>;
static_assert(SharedWord::is_always_lock_free && SharedCounter::is_always_lock_free);

// An event's place. The host gives it a generation, the worker fires it once.
struct EventSlot {
  SharedWord state;    // generation * 2, + 1 once fired: a futex
  SharedWord waiters;  // threads of the host that sleep on it
  int32_t code;        // the rest is written before firing
  uint32_t timed;      // the plugin told the times
  int64_t start_ns, end_ns;
  char text[kEventTextMax];
};
static_assert(sizeof(EventSlot) % 16 == 0);

struct StepHeader {
  uint32_t magic;
  uint32_t version;
  uint32_t slots;
  uint32_t reserved;
  uint64_t ring_bytes;
  alignas(64) SharedCounter tail;      // bytes written so far, by the host
  alignas(64) SharedCounter head;      // bytes read so far, by the worker
  alignas(64) SharedWord asleep;       // the worker sleeps: ring its doorbell
  alignas(64) SharedWord bell_wanted;  // the host wants its bell rung when events fire
};

// RecordHeader.flags
inline constexpr uint16_t kSilent = 1;      // nobody holds the event
inline constexpr uint16_t kStagedBody = 2;  // the body is a StagedBytes that says where the real one lies

struct RecordHeader {
  uint32_t bytes;  // with this header and the rounding
  uint16_t step;
  uint16_t flags;
  uint32_t slot, generation;
  uint64_t queue;
};
static_assert(sizeof(RecordHeader) == 24);

inline constexpr uint64_t kArenaRegion = 1;  // the staging that is always there; others live for one step call

struct StagedBytes {
  uint64_t region, offset, bytes;
};

struct Record {
  RecordHeader header{};
  std::vector<std::byte> body;
};

// Both sides' view of the memory.
class StepMemory {
 public:
  static Result<StepMemory> create();
  static Result<StepMemory> adopt(Descriptor descriptor);

  StepHeader& header() const { return *reinterpret_cast<StepHeader*>(memory_.data()); }
  EventSlot& slot(uint32_t index) const;
  std::byte* ring() const;
  const SharedMemory& memory() const { return memory_; }
  void drop_descriptor() { memory_.drop_descriptor(); }

 private:
  SharedMemory memory_;
};

// The host's end of the ring. One thread at a time.
class RingWriter {
 public:
  explicit RingWriter(const StepMemory& memory) : memory_(memory) {}
  // RESOURCE_EXHAUSTED when there is no room now; DATA_LOSS when the worker has scribbled over the counters.
  Status push(RecordHeader header, std::span<const std::byte> body);
  uint64_t position() const { return tail_; }

 private:
  const StepMemory& memory_;
  uint64_t tail_ = 0;
};

// The worker's end. One thread at a time.
class RingReader {
 public:
  explicit RingReader(const StepMemory& memory) : memory_(memory) {}
  bool empty() const { return memory_.header().tail.load(std::memory_order_seq_cst) == head_; }
  // The next record, copied out, into `record`; false when there is none. DATA_LOSS for what is no record.
  Result<bool> pop(Record& record);
  uint64_t position() const { return head_; }

 private:
  const StepMemory& memory_;
  uint64_t head_ = 0;
};

// Sleeps while *word == value, at most timeout_ns (negative: without end).
void futex_wait(SharedWord& word, uint32_t value, int64_t timeout_ns);
void futex_wake_all(SharedWord& word);

}  // namespace motley::worker
