#include "llm/following.hpp"

#include <gtest/gtest.h>

#include "llm/steps_done.hpp"
#include "planner/planner_test_fleet.hpp"

namespace motley {
namespace {

constexpr int64_t kMs = 1'000'000, kSecond = 1000 * kMs;
constexpr uint64_t kSteps = 10;  // between two looks

// Two equal devices that share the layers, as the planner's own tables have them: each is busy with its steps for as
// long as those say, times a factor. A look every 25 ms.
class FollowingADevice : public ::testing::Test {
 protected:
  FollowingADevice()
      : following_(
            clock_, 512, [this] { return see(); },
            [this] {
              serve();
              return follows_;
            },
            [](const DriftFactors&) {}) {
    auto planned = std::make_shared<PlannedModel>();
    planned->shape = testing::make_shape({});
    for (const char* name : {"GPU:0", "GPU:1"})
      planned->input.devices.push_back(testing::make_device(name, "gpu", {}, planned->shape));
    planned->input.host_memory = {"", "", 2000, 0.02};
    planned->request.objective = Objective::kLatency;  // which replicas do nothing for
    auto report = plan(planned->shape, planned->input, planned->request);
    CHECK(report.ok() && report->devices.size() == 2, "{}", report.error().message());
    planned->report = *std::move(report);
    placement_ = planned->report.placement;
    placement_.epoch = 1;
    auto models = busy_models(planned->shape, planned->input, placement_, 0, 512);
    CHECK(models.ok(), "{}", models.error().message());
    models_ = *std::move(models);
    totals_.resize(1);
    planned_ = std::move(planned);
  }

  void serve() {
    clock_.advance_ns(25 * kMs);
    for (const BusyModel& model : models_) {
      TotalsByRows& totals = totals_[0][model.device];
      totals.resize(5);
      totals[4] += {kSteps, 16 * kSteps, 16 * kSteps, 16 * kSteps, 16 * kSteps * 600, 0};
      const TotalsByRows some = {{}, {}, {}, {}, {kSteps, 16 * kSteps, 16 * kSteps, 16 * kSteps, 16 * kSteps * 600, 0}};
      busy_ns_[model.device] += model.of(steps_done(some)) * (model.device == "GPU:1" ? factor_ : 1);
    }
  }
  // Whether a better plan is to be looked for, at some time of these.
  bool due_within(int64_t ns) {
    for (const int64_t end_ns = clock_.now_ns() + ns; clock_.now_ns() < end_ns;) {
      serve();
      if (following_.look(false, [] { return DriftFactors(); })) return true;
    }
    return false;
  }
  std::optional<ServedPlan> see() const {
    if (!serves_) return std::nullopt;
    return ServedPlan{planned_, placement_, totals_,
                      [this](const std::string& name) { return std::optional<double>(busy_ns_.at(name)); }};
  }
  // As whoever moves does; the plan, if it is judged to be worth it.
  std::optional<PlanReport> better() {
    const auto move = testing::better_plan(planned_->shape, planned_->input, planned_->request, placement_,
                                           following_.law().factors());
    CHECK(move.ok(), "{}", move.error().message());
    if (!following_.law().judge(move->gain, move->cost)) return std::nullopt;
    return move->report;
  }
  Code judged_again(const PlanReport& next) { return following_.judge_again(planned_->input, next, 0).code(); }

  ManualClock clock_;
  std::shared_ptr<const PlannedModel> planned_;
  Placement placement_;
  std::vector<BusyModel> models_;
  std::vector<TotalsByDevice> totals_;
  std::map<std::string, double> busy_ns_;
  double factor_ = 1;
  bool follows_ = true, serves_ = true;
  Following following_;
};

class FollowingAFadedDevice : public FollowingADevice {
 protected:
  FollowingAFadedDevice() {
    EXPECT_FALSE(due_within(5 * kSecond));
    factor_ = 4;
    EXPECT_TRUE(due_within(5 * kSecond));
    auto next = better();
    CHECK(next.has_value());
    next_ = *std::move(next);
  }
  PlanReport next_;
};

TEST_F(FollowingAFadedDevice, APlanThatWasSoonPrepared_TakesOver_AsItWasJudged) {
  factor_ = 1;
  clock_.advance_ns(kSecond);
  EXPECT_EQ(judged_again(next_), MOTLEY_OK);
}

TEST_F(FollowingAFadedDevice, APlanThatTookLong_TakesOverWhereTheDeviceIsStillSlow) {
  clock_.advance_ns(60 * kSecond);  // nobody looks
  EXPECT_EQ(judged_again(next_), MOTLEY_OK);
}

// It counts as one refusal: what jumps is looked at at once, and after the next refusal again in 10 s, not 40.
TEST_F(FollowingAFadedDevice, APlanThatTookLong_IsDroppedWhereTheDeviceHasRecovered) {
  clock_.advance_ns(60 * kSecond);
  factor_ = 1;
  EXPECT_EQ(judged_again(next_), MOTLEY_FAILED_PRECONDITION);
  following_.law().not_moved();
  factor_ = 4;
  EXPECT_TRUE(due_within(5 * kSecond));
  ASSERT_FALSE(following_.law().judge(1));
  following_.law().not_moved();
  const int64_t refused_ns = clock_.now_ns();
  EXPECT_TRUE(due_within(60 * kSecond));
  EXPECT_GE(clock_.now_ns() - refused_ns, 10 * kSecond);
  EXPECT_LE(clock_.now_ns() - refused_ns, 11 * kSecond);
}

// A loss was recovered from: the next plan was better than another.
TEST_F(FollowingAFadedDevice, APlanForAnotherThanServesNow_IsRefused) {
  for (const int64_t took_s : {1, 60}) {
    clock_.advance_ns(took_s * kSecond);
    placement_.epoch = 2;
    EXPECT_EQ(judged_again(next_), MOTLEY_UNAVAILABLE);
    placement_.epoch = 1, serves_ = false;
    EXPECT_EQ(judged_again(next_), MOTLEY_UNAVAILABLE);
    serves_ = true;
  }
  follows_ = false;
  EXPECT_EQ(judged_again(next_), MOTLEY_CANCELLED);
}

// A device that hangs while it is looked at holds up changes for no longer than at a start.
TEST(MeasuredWait, IsTheLimitOfMeasuring) {
  constexpr uint64_t kUnlimitedNs = 120'000'000'000;
  EXPECT_EQ(measured_wait_ns(60, kUnlimitedNs), 60'000'000'000u);
  EXPECT_EQ(measured_wait_ns(1, kUnlimitedNs), 5'000'000'000u);
  EXPECT_EQ(measured_wait_ns(600, kUnlimitedNs), kUnlimitedNs);
  EXPECT_EQ(measured_wait_ns(0, kUnlimitedNs), kUnlimitedNs);
}

}  // namespace
}  // namespace motley
