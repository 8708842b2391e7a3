#include "runtime/device_time.hpp"

#include <gtest/gtest.h>

#include "runtime/busy_time.hpp"

namespace motley {
namespace {

constexpr int64_t kLimit = 1000;

TEST(DeviceTime, Step_CountsFromItsSubmissionWhereTheDeviceIsFree) {
  DeviceTime time;
  EXPECT_EQ(time.due_ns(50, kLimit), 1050);
  time.end(40);
  EXPECT_EQ(time.due_ns(50, kLimit), 1050);
}

TEST(DeviceTime, StepInAQueue_CountsFromTheEndOfTheOneBefore) {
  DeviceTime time;
  time.begin();
  time.end(900);
  EXPECT_EQ(time.due_ns(50, kLimit), 1900);
}

TEST(DeviceTime, WhatOthersKeepItWaiting_IsNotCounted) {
  DeviceTime time;
  time.begin();
  time.waited(5 * kLimit);
  time.waited(7);
  EXPECT_EQ(time.due_ns(50, kLimit), 50 + 5 * kLimit + 7 + kLimit);
}

TEST(DeviceTime, Waits_AreForgottenWithTheirStep) {
  DeviceTime time;
  time.begin();
  time.waited(5 * kLimit);
  time.end(6000);
  EXPECT_EQ(time.due_ns(50, kLimit), 7000);
  time.begin();
  EXPECT_EQ(time.due_ns(6500, kLimit), 7500);
}

TEST(DeviceTime, NoLimit_IsNeverDue) {
  DeviceTime time;
  time.begin();
  time.waited(5);
  EXPECT_EQ(time.due_ns(50, INT64_MAX), INT64_MAX);
}

TEST(BusyTime, WhatRanBesideAnother_CountsOnce) {
  BusyTime busy;
  EXPECT_EQ(busy.add(100, 200), 100);
  EXPECT_EQ(busy.add(150, 260), 60);
  EXPECT_EQ(busy.add(120, 250), 0);
  EXPECT_EQ(busy.add(400, 500), 100);
}

// A step of a program a layer is told when it has ended, others' programs that ran within it before.
TEST(BusyTime, ALongStepToldAfterWhatRanWithinIt_CountsTheRest) {
  BusyTime busy;
  EXPECT_EQ(busy.add(4000, 9500), 5500);
  EXPECT_EQ(busy.add(9600, 9700), 100);
  EXPECT_EQ(busy.add(0, 10000), 4400);
  EXPECT_EQ(busy.add(500, 9900), 0);
  EXPECT_EQ(busy.add(9000, 11000), 1000);
  for (int64_t i = 0; i < 2000; ++i) EXPECT_EQ(busy.add(20000 + 10 * i, 20005 + 10 * i), 5);
  EXPECT_EQ(busy.add(11000, 20000), 0) << "so old that it stays as it was counted";
}

}  // namespace
}  // namespace motley
