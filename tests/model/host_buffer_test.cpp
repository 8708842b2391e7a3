// What the host sees of a buffer whose memory is the device's own, while copies are under way.
#include "runtime/host_buffer.hpp"

#include <gtest/gtest.h>

#include <thread>

#include "model/sim_file.hpp"

namespace motley {
namespace {

constexpr uint64_t kForEver = UINT64_MAX, kBytes = 64;
constexpr std::chrono::milliseconds kCopyLasts{60};

class HostBuffers : public ::testing::Test {
 protected:
  HostBuffers()
      : file_("memory_bytes = 1048576\nbandwidth_gb_s = 10\ngflops = {f32 = 10}\nlink_latency_us = 60000\n"),
        device_(file_.open()),
        queue_(*device_.create_queue()),
        buffer_(*HostBuffer::create(device_, kBytes)) {}
  void fill(std::byte with) {
    for (std::byte& byte : buffer_.view<std::byte>(kBytes)) byte = with;
  }
  std::byte first() { return buffer_.view<std::byte>(kBytes)[0]; }

  const testing::SimFile file_;
  const Device device_;
  QueueHandle queue_;
  HostBuffer buffer_;
};

TEST_F(HostBuffers, CopyThatNobodyWaitedFor_EndsBeforeTheHostWrites) {
  fill(std::byte{1});
  ASSERT_TRUE(buffer_.push(queue_, kBytes).ok());
  ASSERT_TRUE(buffer_.acquire(kForEver).ok());
  buffer_.start_pull(queue_, kBytes);  // and the step fails: no pull()
  ASSERT_TRUE(buffer_.acquire(kForEver).ok());
  fill(std::byte{2});
  std::this_thread::sleep_for(3 * kCopyLasts);
  EXPECT_EQ(first(), std::byte{2});
}

TEST_F(HostBuffers, PullAfterOneThatNobodyWaitedFor_GivesWhatIsThereNow) {
  int64_t ended_ns = 0;
  fill(std::byte{1});
  ASSERT_TRUE(buffer_.push(queue_, kBytes).ok());
  ASSERT_TRUE(buffer_.acquire(kForEver).ok());
  buffer_.start_pull(queue_, kBytes);
  ASSERT_TRUE(buffer_.acquire(kForEver).ok());
  fill(std::byte{3});
  ASSERT_TRUE(buffer_.push(queue_, kBytes).ok());
  buffer_.start_pull(queue_, kBytes);  // cannot be: what was pushed may not have arrived
  ASSERT_TRUE(buffer_.pull(queue_, kBytes, kForEver, &ended_ns).ok());
  EXPECT_EQ(first(), std::byte{3});
  buffer_.start_pull(queue_, kBytes);
  ASSERT_TRUE(buffer_.pull(queue_, kBytes, kForEver, &ended_ns).ok());
  EXPECT_EQ(first(), std::byte{3});
}

}  // namespace
}  // namespace motley
