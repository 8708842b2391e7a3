#include "device/worker/step_memory.hpp"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <cstring>
#include <ctime>
#include <new>

namespace motley::worker {
namespace {

constexpr uint64_t kHeaderBytes = 4096;
constexpr uint64_t kSlotBytes = 256;
constexpr uint64_t kRecordAlign = 64;
constexpr uint64_t kStepBytes = kHeaderBytes + kSlotBytes * kSlotCount + kRingBytes;
static_assert(sizeof(EventSlot) <= kSlotBytes && sizeof(StepHeader) <= kHeaderBytes);
static_assert(kRingBytes % kRecordAlign == 0 && kRecordBytesMax < kRingBytes / 4);

}  // namespace

EventSlot& StepMemory::slot(uint32_t index) const {
  CHECK(index < kSlotCount, "slot {}", index);
  return *reinterpret_cast<EventSlot*>(memory_.data() + kHeaderBytes + kSlotBytes * index);
}

std::byte* StepMemory::ring() const { return memory_.data() + kHeaderBytes + kSlotBytes * kSlotCount; }

Result<StepMemory> StepMemory::create() {
  StepMemory steps;
  ASSIGN_OR_RETURN(steps.memory_, SharedMemory::create("motley-steps", kStepBytes));
  auto* header = new (steps.memory_.data()) StepHeader{};
  header->magic = kMagic, header->version = kVersion;
  header->slots = kSlotCount, header->ring_bytes = kRingBytes;
  return steps;
}

Result<StepMemory> StepMemory::adopt(Descriptor descriptor) {
  StepMemory steps;
  ASSIGN_OR_RETURN(steps.memory_, SharedMemory::adopt(std::move(descriptor), kStepBytes));
  const StepHeader& header = steps.header();
  if (header.magic != kMagic || header.version != kVersion || header.slots != kSlotCount ||
      header.ring_bytes != kRingBytes) {
    return error(MOTLEY_DATA_LOSS, "the step memory is of another version");
  }
  return steps;
}

Status RingWriter::push(RecordHeader record, std::span<const std::byte> body) {
  StepHeader& header = memory_.header();
  const uint64_t bytes = (sizeof record + body.size() + kRecordAlign - 1) / kRecordAlign * kRecordAlign;
  CHECK(bytes <= kRecordBytesMax, "a record of {} bytes", bytes);
  const uint64_t used = tail_ - header.head.load(std::memory_order_acquire);
  if (used > kRingBytes) return error(MOTLEY_DATA_LOSS, "the worker's ring is damaged");
  const uint64_t at = tail_ % kRingBytes;
  const uint64_t pad = kRingBytes - at < bytes ? kRingBytes - at : 0;
  if (kRingBytes - used < bytes + pad) return error(MOTLEY_RESOURCE_EXHAUSTED, "the worker's ring is full");
  if (pad > 0) {
    const RecordHeader filler{static_cast<uint32_t>(pad), static_cast<uint16_t>(Step::kPad), kSilent, kNoSlot, 0, 0};
    std::memcpy(memory_.ring() + at, &filler, sizeof filler);
  }
  std::byte* to = memory_.ring() + (tail_ + pad) % kRingBytes;
  record.bytes = static_cast<uint32_t>(bytes);
  std::memcpy(to, &record, sizeof record);
  if (!body.empty()) std::memcpy(to + sizeof record, body.data(), body.size());
  tail_ += pad + bytes;
  header.tail.store(tail_, std::memory_order_seq_cst);
  return ok_status();
}

Result<bool> RingReader::pop(Record& record) {
  StepHeader& header = memory_.header();
  for (;;) {
    const uint64_t ready = header.tail.load(std::memory_order_acquire) - head_;
    if (ready == 0) return false;
    const uint64_t at = head_ % kRingBytes;
    RecordHeader copy{};
    if (ready > kRingBytes || ready < kRecordAlign) return error(MOTLEY_DATA_LOSS, "the ring's counters are damaged");
    std::memcpy(&copy, memory_.ring() + at, sizeof copy);  // once: the other side may change it under our hands
    const bool pad = copy.step == static_cast<uint16_t>(Step::kPad);
    if (copy.bytes < sizeof copy || copy.bytes % kRecordAlign != 0 || copy.bytes > ready ||
        copy.bytes > kRingBytes - at || (!pad && copy.bytes > kRecordBytesMax) ||
        copy.step >= static_cast<uint16_t>(Step::kCount) || (copy.slot >= kSlotCount && copy.slot != kNoSlot)) {
      return error(MOTLEY_DATA_LOSS, "the ring holds what is no record");
    }
    if (!pad) {
      record.header = copy;
      const std::byte* body = memory_.ring() + at + sizeof copy;
      record.body.assign(body, body + (copy.bytes - sizeof copy));
    }
    head_ += copy.bytes;
    header.head.store(head_, std::memory_order_release);
    if (!pad) return true;
  }
}

void futex_wait(SharedWord& word, uint32_t value, int64_t timeout_ns) {
  timespec patience{};
  patience.tv_sec = static_cast<time_t>(timeout_ns / 1'000'000'000);
  patience.tv_nsec = static_cast<long>(timeout_ns % 1'000'000'000);
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, value, timeout_ns < 0 ? nullptr : &patience,
          nullptr, 0);
}

void futex_wake_all(SharedWord& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace motley::worker
