#include "planner/drift.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "planner/planner_test_fleet.hpp"
#include "planner/prediction.hpp"
#include "planner/search.hpp"

namespace motley {
namespace {

using testing::make_device;
using testing::make_shape;

constexpr int64_t kMs = 1'000'000;

// A device that is busy all the time, by `ratio` of what is predicted, looked at every 100 ms.
class Clockwork {
 public:
  explicit Clockwork(DriftWatch* watch) : watch_(*watch) {}
  void run(int64_t ms, double ratio) {
    for (int64_t t = 0; t < ms; t += 100) {
      now_ns_ += 100 * kMs;
      predicted_ += 80e6;
      busy_ += 80e6 * ratio;
      watch_.observe("GPU:0", now_ns_, busy_, predicted_);
    }
  }
  int64_t now_ns() const { return now_ns_; }

 private:
  DriftWatch& watch_;
  int64_t now_ns_ = 0;
  double busy_ = 0, predicted_ = 0;
};

TEST(Drift, ADeviceAtHalfItsSpeed_IsSeenWithinTwoSeconds_AndOnce) {
  DriftWatch watch;
  Clockwork device(&watch);
  device.run(5000, 0.8);  // what the tables are off by
  EXPECT_FALSE(watch.changed());
  const int64_t from = device.now_ns();
  while (!watch.changed() && device.now_ns() < from + 10'000 * kMs) device.run(100, 1.6);
  EXPECT_LE(device.now_ns() - from, 1500 * kMs);
  EXPECT_NEAR(watch.factors().at("GPU:0"), 2, 0.05);
  watch.looked();
  device.run(20'000, 1.6);
  EXPECT_FALSE(watch.changed());
  EXPECT_TRUE(watch.off_plan());  // which was made for what it was
  watch.plan_is_for(watch.factors());
  device.run(20'000, 1.6);
  EXPECT_FALSE(watch.off_plan());
  device.run(2000, 0.8);  // and back
  EXPECT_TRUE(watch.changed());
  EXPECT_TRUE(watch.off_plan());
  EXPECT_NEAR(watch.factors().at("GPU:0"), 1, 0.05);
}

// Slower than it was measured before the first window: its tables are corrected as soon as they are known to be wrong.
TEST(Drift, ADeviceAtHalfItsSpeedFromTheStart_IsSeenWithinTwoSeconds) {
  for (const double ratio : {2.0, 0.5}) {
    DriftWatch watch;
    Clockwork device(&watch);
    while (!watch.changed() && device.now_ns() < 10'000 * kMs) device.run(100, ratio);
    EXPECT_LE(device.now_ns(), 2000 * kMs);
    EXPECT_TRUE(watch.off_plan());
    EXPECT_NEAR(watch.factors().at("GPU:0"), ratio, 0.01);
    EXPECT_NEAR(watch.averages().at("GPU:0"), ratio, 0.01);
    watch.looked();
    watch.plan_is_for(watch.factors());
    device.run(20'000, ratio);
    EXPECT_FALSE(watch.changed() || watch.off_plan());
    device.run(3000, 1);
    EXPECT_TRUE(watch.changed());
    EXPECT_NEAR(watch.factors().at("GPU:0"), 1, 0.01);
  }
}

TEST(Drift, NoiseOf15Percent_ForTenMinutes_IsNoChange) {
  for (const int64_t length_ms : {100, 1000, 5000, 30'000}) {  // of a swing
    DriftWatch watch;
    Clockwork device(&watch);
    std::mt19937_64 random(7);
    device.run(3000, 1);
    for (int64_t ms = 0; ms < 600'000; ms += length_ms) {
      device.run(length_ms, 1 + 0.15 * (2 * static_cast<double>(random() % 10000) / 9999 - 1));
      ASSERT_FALSE(watch.changed() || watch.off_plan()) << "swings of " << length_ms << " ms, after " << ms;
    }
  }
}

TEST(Drift, CountersThatBeginAnew_SayNothing) {
  DriftWatch watch;
  Clockwork before(&watch);
  before.run(5000, 1);
  Clockwork after(&watch);
  after.run(100, 1);
  EXPECT_FALSE(watch.changed());
  EXPECT_NEAR(watch.factors().at("GPU:0"), 1, 1e-6);
}

TEST(Drift, ASlowerDevice_GetsLessOfThePlan) {
  const ModelShape shape = make_shape({});
  const double gib = 0.8 * static_cast<double>(shape.weight_bytes()) / (1 << 30);  // neither holds the model
  PlanInput input;
  input.devices = {make_device("GPU:0", "gpu", {.gib = gib}, shape), make_device("GPU:1", "gpu", {.gib = gib}, shape)};
  input.host_memory = {"", "", 2000, 0.02};
  const auto even = plan(shape, input, {});
  ASSERT_TRUE(even.ok()) << even.error().message();
  const PlanInput drifted = with_drift(input, {{"GPU:1", 2}});
  EXPECT_DOUBLE_EQ(drifted.devices[1].ffn.at(8, 4096), 2 * input.devices[1].ffn.at(8, 4096));
  EXPECT_DOUBLE_EQ(drifted.devices[0].ffn.at(8, 4096), input.devices[0].ffn.at(8, 4096));
  const auto uneven = plan(shape, drifted, {});
  ASSERT_TRUE(uneven.ok()) << uneven.error().message();
  const auto stays = report_on(shape, drifted, {}, even->placement);
  ASSERT_TRUE(stays.ok()) << stays.error().message();
  EXPECT_GT(uneven->predicted.tokens_per_s, 1.1 * stays->predicted.tokens_per_s);
}

// Steps of any size and make-up, on a device that is slow to start, reads fast, and has a large vocabulary.
TEST(Drift, BusyModels_SayWhatThePredictionSays) {
  const ModelShape shape = make_shape({.vocab = 128000});
  PlanInput input;
  input.devices = {make_device("GPU:0", "gpu", {}, shape)};
  input.devices[0].chunk_context_ns = input.devices[0].context.values[0] / 8;
  const auto report = plan(shape, input, {});
  ASSERT_TRUE(report.ok()) << report.error().message();
  const auto models = busy_models(shape, input, report->placement, 0, 512);
  ASSERT_TRUE(models.ok()) << models.error().message();
  ASSERT_EQ(models->size(), 1u);
  const auto check = [&](double decoding, double context, double chunk, double chunk_context) {
    const double rows = decoding + chunk, heads = std::max(1.0, decoding);
    const auto step = predict_step_ns(shape, input, report->placement,
                                      {.decode_rows = decoding,
                                       .context = context,
                                       .chunk_rows = chunk,
                                       .chunk_context = chunk_context,
                                       .head_rows = heads});
    ASSERT_TRUE(step.ok()) << step.error().message();
    StepsByRows done(static_cast<size_t>(std::log2(rows)) + 1);
    done.back() = {1, rows, decoding, heads, decoding * context, chunk * chunk_context};
    EXPECT_NEAR((*models)[0].of(done) / *step, 1, 0.1) << decoding << " and " << chunk << " rows";
  };
  check(1, 1, 0, 0);
  check(1, 1024, 0, 0);
  check(3, 100, 0, 0);
  check(16, 700, 0, 0);
  check(0, 0, 16, 8);
  check(0, 0, 300, 150);
  check(0, 0, 512, 2000);
  check(24, 1024, 200, 300);
}

TEST(Drift, ADeviceThatRunsNothing_IsAsItWasMeasured) {
  DriftWatch watch;
  EXPECT_FALSE(watch.tell("NPU:0", 1.1)) << "within what noise does";
  EXPECT_FALSE(watch.changed());
  EXPECT_TRUE(watch.tell("NPU:0", 3));
  EXPECT_EQ(watch.factors(), (DriftFactors{{"NPU:0", 3}}));
  EXPECT_TRUE(watch.changed());
  EXPECT_TRUE(watch.off_plan());
  watch.looked();
  watch.plan_is_for(watch.factors());
  EXPECT_FALSE(watch.tell("NPU:0", 3.2));
  EXPECT_FALSE(watch.changed());
  EXPECT_FALSE(watch.off_plan());
  // It runs steps again, three times as slow as its tables say: that is what is known of it.
  double busy_ns = 0, predicted_ns = 0;
  const auto serve = [&](int windows, double factor) {
    for (int i = 0; i < windows; ++i) {
      static int64_t now_ns = 0;
      now_ns += 250'000'000, predicted_ns += 60e6, busy_ns += 60e6 * factor;
      watch.observe("NPU:0", now_ns, busy_ns, predicted_ns);
    }
  };
  serve(10, 3.2);
  EXPECT_FALSE(watch.changed());
  EXPECT_NEAR(watch.factors().at("NPU:0"), 3.2, 0.1);
  serve(5, 1);
  EXPECT_TRUE(watch.changed());
  EXPECT_NEAR(watch.factors().at("NPU:0"), 1, 0.05);
  EXPECT_FALSE(watch.tell("NPU:0", NAN));
}

TEST(Drift, OnlySlower_LeavesOutWhoBecameFaster) {
  EXPECT_EQ(only_slower({{"A", 0.5}, {"B", 1}, {"C", 3}}), (DriftFactors{{"C", 3}}));
}

TEST(Drift, BusyModels_OfALaneThatIsNotThere_AreRefused) {
  const ModelShape shape = make_shape({});
  PlanInput input;
  input.devices = {make_device("GPU:0", "gpu", {}, shape)};
  const auto report = plan(shape, input, {});
  ASSERT_TRUE(report.ok()) << report.error().message();
  EXPECT_EQ(busy_models(shape, input, report->placement, 1, 512).error().code(), MOTLEY_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace motley
