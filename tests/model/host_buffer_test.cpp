// What the host sees of a buffer whose memory is the device's own, while copies are under way.
#include "runtime/host_buffer.hpp"

#include <gtest/gtest.h>

#include <thread>

#include "model/sim_file.hpp"
#include "runtime/copy_side.hpp"

namespace motley {
namespace {

constexpr uint64_t kForEver = UINT64_MAX, kBytes = 64;
constexpr std::chrono::milliseconds kCopyLasts{60};

class HostBuffers : public ::testing::Test {
 protected:
  HostBuffers()
      : file_("memory_bytes = 1048576\nbandwidth_gb_s = 10\ngflops = {f32 = 10}\nlink_latency_us = 60000\n"),
        device_(file_.open()),
        buffer_(*HostBuffer::create(device_, kBytes)),
        queue_(*device_.create_queue()) {}
  void fill(std::byte with) {
    for (std::byte& byte : buffer_.view<std::byte>(kBytes)) byte = with;
  }
  std::byte first() { return buffer_.view<std::byte>(kBytes)[0]; }

  const testing::SimFile file_;
  const Device device_;
  HostBuffer buffer_;
  QueueHandle queue_;  // goes first, as buffer_ says
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

// What is measured ends with a push that nobody waits for; its memory is given back to the system when it is freed.
TEST_F(HostBuffers, CopySideThatGoes_WaitsForWhatIsUnderWay) {
  constexpr uint64_t kMany = 512 * 1024;
  auto side = CopySide::create(device_, kMany, false);
  ASSERT_TRUE(side.ok());
  ASSERT_TRUE(side->push(kMany).ok());
  { const CopySide gone = *std::move(side); }
  std::this_thread::sleep_for(2 * kCopyLasts);
}

}  // namespace
}  // namespace motley
