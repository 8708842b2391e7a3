// HostBuffer: a device's buffer as the host sees it. Where the host can map the device's memory it is that memory;
// elsewhere a copy, which pull() and push() bring up to date.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.hpp"
#include "device/handles.hpp"

namespace motley {

// Hears of copies whose times are known.
class CopyObserver {
 public:
  virtual ~CopyObserver() = default;
  virtual void copied(bool to_device, uint64_t bytes, const motley_event_times& times) = 0;
};

// One thread at a time; the device outlives it. The queues that its copies are on go before it, or those have ended.
class HostBuffer {
 public:
  static Result<HostBuffer> create(const Device& device, uint64_t bytes);

  motley_buffer* device_buffer() const { return buffer_.get(); }
  uint64_t bytes() const { return bytes_; }
  // The first `count` Ts. Changed by the host only between pull() or acquire(), and push().
  template <typename T>
  std::span<T> view(size_t count) {
    return {reinterpret_cast<T*>(mapped_ != nullptr ? mapped_ : copy_.data()), count};
  }
  // Enqueues the copy that the next pull() of as many bytes waits for: behind the work that writes the buffer, and
  // before what is enqueued later. A device that cannot take it now is asked again then.
  void start_pull(const QueueHandle& queue, uint64_t bytes);
  // All work that writes the buffer has ended, or the copy was started behind it: the first `bytes` become visible.
  Status pull(const QueueHandle& queue, uint64_t bytes, uint64_t timeout_ns, int64_t* ended_ns);
  // The host may write: an earlier push() has been read, and a copy that was started and never pulled, because its step
  // failed, has ended.
  Status acquire(uint64_t timeout_ns);
  // Work that is enqueued from now on sees the first `bytes` as the host left them.
  Status push(const QueueHandle& queue, uint64_t bytes);
  // From now on `observer` hears of every copy; it outlives the buffer. What was pushed is told once it was waited for,
  // or at tell_pushed() if it has ended by then.
  void observe(CopyObserver* observer) { observer_ = observer; }
  void tell_pushed();

 private:
  HostBuffer(const Device& device, BufferHandle buffer, uint64_t bytes)
      : device_(&device), buffer_(std::move(buffer)), bytes_(bytes) {}

  const Device* device_;
  BufferHandle buffer_;
  uint64_t bytes_;
  std::byte* mapped_ = nullptr;
  std::vector<std::byte> copy_;
  EventHandle pushed_, pulled_;  // copies that the host has not waited for
  bool pulling_ = false;         // pulled_ is the one that the next pull() asks for
  uint64_t pushed_bytes_ = 0;
  CopyObserver* observer_ = nullptr;
};

}  // namespace motley
