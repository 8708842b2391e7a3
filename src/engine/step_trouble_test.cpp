#include "engine/step_trouble.hpp"

#include <gtest/gtest.h>

namespace motley {
namespace {

TEST(StepTrouble, SeveralFailuresOnEnd_AreToldForAWhile_AndNoneThatSuccessesPart) {
  const Status none = error(MOTLEY_RESOURCE_EXHAUSTED, "no memory");
  StepTrouble trouble(1);
  int64_t now_ns = 0;
  const auto fail = [&](uint32_t times) {
    for (uint32_t i = 0; i < times; ++i) trouble.ended(0, i + 1, none, ++now_ns);
  };
  for (int i = 0; i < 3; ++i) {
    fail(kFailedStepsTold - 1);
    EXPECT_TRUE(trouble.told(now_ns).ok());
    trouble.ended(0, 9, ok_status(), ++now_ns);
  }
  fail(kFailedStepsTold + 1);
  const Status told = trouble.told(now_ns);
  EXPECT_EQ(told.code(), MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_NE(told.message().find("the last 4 steps failed"), std::string::npos) << told.message();
  EXPECT_NE(told.message().find("no memory"), std::string::npos) << told.message();
  EXPECT_FALSE(trouble.told(now_ns + kTroubleToldNs - 1).ok());
  EXPECT_TRUE(trouble.told(now_ns + kTroubleToldNs).ok());
  fail(1);  // who asked again found it as it was
  EXPECT_FALSE(trouble.told(now_ns).ok());
  trouble.ended(0, 9, ok_status(), now_ns);
  EXPECT_TRUE(trouble.told(now_ns).ok());
}

TEST(StepTrouble, LanesThatSucceed_HideNoneThatFails) {
  StepTrouble trouble(3);
  for (uint32_t i = 0; i < kFailedStepsTold; ++i) {
    EXPECT_TRUE(trouble.told(0).ok());
    trouble.ended(1, 2 * i + 1, error(MOTLEY_INTERNAL, "a broken device"), 0);
    trouble.ended(0, 2 * i + 2, ok_status(), 0);
  }
  EXPECT_NE(trouble.told(0).message().find("the last 3 steps of lane 1 failed"), std::string::npos);
  trouble.set_lanes(2);  // one of them the same
  EXPECT_EQ(trouble.told(0).code(), MOTLEY_INTERNAL);
  trouble.set_lanes(1);
  EXPECT_TRUE(trouble.told(0).ok());
}

}  // namespace
}  // namespace motley
