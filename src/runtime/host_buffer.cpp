#include "runtime/host_buffer.hpp"

#include <algorithm>
#include <utility>

namespace motley {

Result<HostBuffer> HostBuffer::create(const Device& device, uint64_t bytes) {
  ASSIGN_OR_RETURN(BufferHandle memory, device.allocate(bytes, MOTLEY_USE_ACTIVATION));
  HostBuffer buffer(device, std::move(memory), bytes);
  if (auto mapped = device.map(buffer.buffer_); mapped.ok()) {
    buffer.mapped_ = static_cast<std::byte*>(*mapped);
  } else {
    buffer.copy_.resize(bytes);
  }
  return buffer;
}

void HostBuffer::start_pull(const QueueHandle& queue, uint64_t bytes) {
  pulling_ = false;
  if (mapped_ != nullptr || bytes == 0 || pushed_) return;
  auto started = device_->copy_to_host(queue, std::span(copy_).first(bytes), buffer_);
  if (!started.ok()) return;
  pulled_ = *std::move(started);  // ends behind one that nobody has waited for: they are of one queue
  pulling_ = true;
}

Status HostBuffer::pull(const QueueHandle& queue, uint64_t bytes, uint64_t timeout_ns, int64_t* ended_ns) {
  if (mapped_ != nullptr || bytes == 0) return ok_status();
  if (!std::exchange(pulling_, false)) {
    RETURN_IF_ERROR(acquire(timeout_ns));
    ASSIGN_OR_RETURN(pulled_, device_->copy_to_host(queue, std::span(copy_).first(bytes), buffer_));
  }
  const EventHandle done = std::exchange(pulled_, {});
  RETURN_IF_ERROR(device_->wait(done, timeout_ns));
  if (const auto times = device_->times(done); times.ok()) {
    *ended_ns = std::max(*ended_ns, times->end_ns);
    if (observer_ != nullptr) observer_->copied(false, bytes, *times);
  }
  return ok_status();
}

Status HostBuffer::acquire(uint64_t timeout_ns) {
  pulling_ = false;
  if (pulled_) {
    RETURN_IF_ERROR(device_->wait(pulled_, timeout_ns));
    pulled_.reset();
  }
  if (!pushed_) return ok_status();
  RETURN_IF_ERROR(device_->wait(pushed_, timeout_ns));
  tell_pushed();
  pushed_.reset();
  return ok_status();
}

void HostBuffer::tell_pushed() {
  if (observer_ == nullptr || !pushed_ || pushed_bytes_ == 0) return;
  const auto times = device_->times(pushed_);
  if (!times.ok()) return;
  observer_->copied(true, std::exchange(pushed_bytes_, 0), *times);
}

Status HostBuffer::push(const QueueHandle& queue, uint64_t bytes) {
  if (mapped_ != nullptr || bytes == 0) return ok_status();
  ASSIGN_OR_RETURN(pushed_, device_->copy_from_host(queue, buffer_, std::span<const std::byte>(copy_).first(bytes)));
  pushed_bytes_ = bytes;
  return ok_status();
}

}  // namespace motley
