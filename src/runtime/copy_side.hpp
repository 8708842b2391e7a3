// A device's memory as seen from a driver, to time what it moves between two programs.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "base/status.hpp"
#include "comm/communicator.hpp"
#include "device/handles.hpp"
#include "device/virtual_time.hpp"
#include "planner/profile.hpp"
#include "runtime/host_buffer.hpp"

namespace motley {

inline constexpr int kCopySamples = 5;  // of copies and links, of which the median counts
inline constexpr int kCopyRounds = 8;
inline constexpr uint32_t kCopiedRows = 256;  // at which what a byte costs is measured; beside one

// The lower one of an even number: what disturbs a time only adds to it.
inline double lower_median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[(values.size() - 1) / 2];
}

// Moves a value to the host and back, as a driver does between two programs.
class CopySide {
 public:
  static Result<CopySide> create(const Device& device, uint64_t bytes_max, bool virtual_time) {
    ASSIGN_OR_RETURN(QueueHandle queue, device.create_queue());
    ASSIGN_OR_RETURN(HostBuffer buffer, HostBuffer::create(device, bytes_max));
    return CopySide(std::move(queue), std::move(buffer), virtual_time);
  }
  Status push(uint64_t bytes) {
    const VirtualTimeScope scope(&virtual_ns_);
    return buffer_.push(queue_, bytes);
  }
  // Once what was pushed has arrived.
  Status pull(uint64_t bytes) {
    const VirtualTimeScope scope(&virtual_ns_);
    return buffer_.pull(queue_, bytes, UINT64_MAX, &virtual_ns_);
  }
  Result<double> there_and_back_ns(uint64_t bytes, int rounds) {
    int64_t began_ns = 0;
    for (int i = 0; i <= rounds; ++i) {
      RETURN_IF_ERROR(push(bytes));
      RETURN_IF_ERROR(pull(bytes));
      if (i == 0) began_ns = now_ns();
    }
    return static_cast<double>(now_ns() - began_ns) / rounds;
  }
  // Of bytes between `few` and `most`.
  Result<CopyCost> cost(uint64_t few, uint64_t most, int samples) {
    std::vector<double> small, large;
    for (int i = 0; i < samples; ++i) {
      ASSIGN_OR_RETURN(const double one, there_and_back_ns(few, kCopyRounds));
      ASSIGN_OR_RETURN(const double many, there_and_back_ns(most, kCopyRounds));
      small.push_back(one / 2), large.push_back(many / 2);
    }
    const double one = lower_median(std::move(small)), many = lower_median(std::move(large));
    const double ns_per_byte = std::max(0.0, many - one) / static_cast<double>(most - few);
    return CopyCost{std::max(0.0, one - static_cast<double>(few) * ns_per_byte), ns_per_byte};
  }
  std::span<float> view(size_t count) { return buffer_.view<float>(count); }
  int64_t now_ns() const { return virtual_time_ ? virtual_ns_ : system_clock().now_ns(); }
  bool virtual_time() const { return virtual_time_; }
  CommCall call() { return virtual_time_ ? CommCall{.virtual_ns = &virtual_ns_} : CommCall{}; }

 private:
  CopySide(QueueHandle queue, HostBuffer buffer, bool virtual_time)
      : buffer_(std::move(buffer)),
        queue_(std::move(queue)),
        virtual_time_(virtual_time),
        virtual_ns_(virtual_time ? virtual_start_ns() : 0) {}
  HostBuffer buffer_;
  QueueHandle queue_;  // goes first: it waits for what nobody pulled
  bool virtual_time_;
  int64_t virtual_ns_;
};

}  // namespace motley
