#include "planner/adaptation.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <optional>
#include <random>

#include "planner/lane_set.hpp"
#include "planner/planner_test_fleet.hpp"

namespace motley {
namespace {

using testing::better_plan;
using testing::make_device;
using testing::make_shape;

constexpr int64_t kMs = 1'000'000, kSecond = 1000 * kMs;
constexpr int64_t kPlanNs = 200 * kMs;  // that planning and compiling take, as seen of a small model
constexpr double kRows = 16, kContext = 600;
constexpr double kAtOnce = 10;  // steps that are looked at together

// By device, what its times are multiplied with at a time.
using Story = std::function<double(const std::string& device, int64_t now_ns)>;

// A machine as the planner's own model sees it: tokens come as fast as is predicted for the plan in force with the
// devices as they are, and a move takes what its price says. The tables are off by a third for one of the devices.
class Service {
 public:
  Service() : shape_(make_shape({})), law_(clock_) {
    input_.devices = {make_device("GPU:0", "gpu", {}, shape_), make_device("GPU:1", "gpu", {}, shape_)};
    // A sequence for which neither has room alone: else each would serve by itself.
    const double room = 1.2 * static_cast<double>(input_.devices[0].memory_free - shape_.weight_bytes());
    request_.kv.max_model_len = static_cast<uint32_t>(room / kv_bytes_per_token(shape_, request_));
    input_.host_memory = {"", "", 2000, 0.02};
    auto first = plan(shape_, input_, request_);
    CHECK(first.ok(), "{}", first.error().message());
    take(first->placement);
  }

  // `story`: what lasts; `noise`: what comes on top of it, which no plan is measured by.
  void run(int64_t until_ns, const Story& story, const Story& noise = nullptr) {
    while (clock_.now_ns() < until_ns) {
      DriftFactors truth;
      double step_noise = 1;
      StepsDone& sum = done_.back();
      const double rows = kAtOnce * kRows;
      sum.steps += kAtOnce, sum.rows += rows, sum.decoding += rows, sum.heads += rows, sum.reads += rows * kContext;
      for (const BusyModel& model : models_) {
        const double lasts = story(model.device, clock_.now_ns());
        const double on_top = noise ? noise(model.device, clock_.now_ns()) : 1;
        const StepsByRows some = {{}, {}, {}, {}, {kAtOnce, rows, rows, rows, rows * kContext, 0}};
        busy_[model.device] += model.of(some) * lasts * on_top * (model.device == "GPU:1" ? 1.3 : 0.9);
        truth[model.device] = lasts;
        step_noise = std::max(step_noise, on_top);
      }
      for (const DeviceProfile& device : input_.devices) truth[device.name] = story(device.name, clock_.now_ns());
      clock_.advance_ns(static_cast<int64_t>(kAtOnce * step_ns(truth) * step_noise));
      tokens_ += rows;
      look();
    }
  }

  // Of the plan in force, and the best there is, with the devices like that.
  double tokens_per_s(const DriftFactors& truth) const {
    const auto report = report_on(shape_, with_drift(input_, truth), request_, placement_);
    CHECK(report.ok(), "{}", report.error().message());
    return report->predicted.tokens_per_s;
  }
  double best_tokens_per_s(const DriftFactors& truth) const {
    const auto report = plan(shape_, with_drift(input_, truth), request_);
    CHECK(report.ok(), "{}", report.error().message());
    return report->predicted.tokens_per_s;
  }
  const std::vector<int64_t>& moves_ns() const { return moves_ns_; }
  const std::vector<int64_t>& pauses_ns() const { return pauses_ns_; }
  double tokens() const { return tokens_; }
  int64_t now_ns() const { return clock_.now_ns(); }
  void never_move() { moves_ = false; }

 private:
  void take(const Placement& placement) {
    placement_ = placement;
    auto models = busy_models(shape_, input_, placement_, 0, 512);
    CHECK(models.ok(), "{}", models.error().message());
    models_ = *std::move(models);
    done_.assign(5, {});
    known_ns_.clear();
    law_.begin_anew();
  }

  double step_ns(const DriftFactors& truth) {
    const auto [known, is_new] = known_ns_.emplace(truth, 0);
    if (is_new) {
      known->second = kRows * 1e9 / tokens_per_s(truth);
    }
    return known->second;
  }

  void look() {
    for (const BusyModel& model : models_) law_.observe(model.device, busy_[model.device], model.of(done_));
    if (next_ && clock_.now_ns() >= next_at_ns_) {
      clock_.advance_ns(static_cast<int64_t>(next_->cost.pause_ns));
      pauses_ns_.push_back(static_cast<int64_t>(next_->cost.pause_ns));
      take(std::exchange(next_, std::nullopt)->report.placement);
      law_.moved();
      moves_ns_.push_back(clock_.now_ns());
    }
    if (!moves_ || next_ || !law_.due()) return;
    auto better = better_plan(shape_, input_, request_, placement_, law_.factors());
    CHECK(better.ok(), "{}", better.error().message());
    if (!law_.judge(better->gain, better->cost)) return;
    next_at_ns_ = clock_.now_ns() + kPlanNs + static_cast<int64_t>(better->cost.prepare_ns + better->cost.saving_ns);
    next_ = *std::move(better);
  }

  const ModelShape shape_;
  PlanInput input_;
  PlanRequest request_;
  ManualClock clock_;
  Adaptation law_;
  Placement placement_;
  std::vector<BusyModel> models_;
  StepsByRows done_;
  std::map<std::string, double> busy_;
  std::map<DriftFactors, double> known_ns_;
  std::optional<Move> next_;
  int64_t next_at_ns_ = 0;
  std::vector<int64_t> moves_ns_, pauses_ns_;
  double tokens_ = 0;
  bool moves_ = true;
};

double steady(const std::string&, int64_t) { return 1; }

// Even in [-part, part], anew every `length_ns`, of each device its own.
Story swings(uint64_t seed, int64_t length_ns, double part) {
  return [=](const std::string& device, int64_t now_ns) {
    std::minstd_rand random(static_cast<uint32_t>((seed * 64 + static_cast<unsigned char>(device.back())) * 100'003 +
                                                  static_cast<uint64_t>(now_ns / length_ns) * 7919 + 1));
    random.discard(3);
    return 1 + part * (2 * static_cast<double>(random() % 10'000) / 9'999 - 1);
  };
}

// The same device at `factor` for a half of each period.
Story back_and_forth(int64_t half_ns, double factor) {
  return [=](const std::string& device, int64_t now_ns) {
    return device == "GPU:1" && now_ns > 10 * kSecond && now_ns / half_ns % 2 == 1 ? factor : 1.0;
  };
}

TEST(Adaptation, ADeviceAtHalfItsSpeed_HasAnotherPlanWithinTwoSeconds_AndGivesNineTenthsOfTheBest) {
  for (const double noise : {0.0, 0.15}) {
    for (uint64_t seed = 0; seed < 8; ++seed) {
      SCOPED_TRACE(fmt::format("noise {} seed {}", noise, seed));
      const int64_t since_ns = 20 * kSecond + static_cast<int64_t>(seed) * 37 * kMs;
      const Story half = [&](const std::string& device, int64_t now_ns) {
        return device == "GPU:1" && now_ns >= since_ns ? 2.0 : 1.0;
      };
      Service service;
      service.run(60 * kSecond, half, swings(seed, 200 * kMs, noise));
      ASSERT_EQ(service.moves_ns().size(), 1u);
      EXPECT_GT(service.pauses_ns()[0], kMs);
      EXPECT_LE(service.pauses_ns()[0], 200 * kMs);
      EXPECT_GE(service.moves_ns()[0], since_ns);
      EXPECT_LE(service.moves_ns()[0] - since_ns, 2 * kSecond);
      const DriftFactors truth = {{"GPU:1", 2}};
      EXPECT_GE(service.tokens_per_s(truth), 0.9 * service.best_tokens_per_s(truth));
    }
  }
}

TEST(Adaptation, ADeviceThatIsItselfAgain_GetsItsPartBack) {
  const Story for_a_while = [](const std::string& device, int64_t now_ns) {
    return device == "GPU:1" && now_ns >= 20 * kSecond && now_ns < 60 * kSecond ? 2.0 : 1.0;
  };
  Service service;
  service.run(100 * kSecond, for_a_while);
  ASSERT_EQ(service.moves_ns().size(), 2u);
  EXPECT_LE(service.moves_ns()[1] - 60 * kSecond, 2 * kSecond);
  EXPECT_GE(service.tokens_per_s({}), 0.99 * service.best_tokens_per_s({}));
}

// However long the swings last, up to such that change once in a minute.
TEST(Adaptation, NoiseOf15Percent_ForTenMinutes_MovesNothing) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    for (const int64_t length_ms : {20, 250, 1000, 5000, 60'000}) {
      Service service;
      service.run(600 * kSecond, steady, swings(seed, length_ms * kMs, 0.15));
      EXPECT_TRUE(service.moves_ns().empty()) << "seed " << seed << ", swings of " << length_ms << " ms";
    }
  }
}

// The worst that there is: the one at its slowest while the other is at its fastest, and the other way round.
TEST(Adaptation, NoiseFromOneEndToTheOther_MovesNothing) {
  for (const int64_t length_ms : {300, 2000, 10'000}) {
    const Story against = [=](const std::string& device, int64_t now_ns) {
      return (now_ns / (length_ms * kMs) % 2 == 1) == (device == "GPU:1") ? 1.15 : 0.85;
    };
    Service service;
    service.run(600 * kSecond, steady, against);
    EXPECT_TRUE(service.moves_ns().empty()) << "swings of " << length_ms << " ms";
  }
}

TEST(Adaptation, ChangesInQuickSuccession_AreSoonLeftAlone) {
  for (const int64_t half : {1, 2, 3, 7, 12}) {
    SCOPED_TRACE(fmt::format("every {} s", half));
    Service service, stays;
    service.run(600 * kSecond, back_and_forth(half * kSecond, 2));
    stays.never_move();
    stays.run(600 * kSecond, back_and_forth(half * kSecond, 2));
    EXPECT_LE(service.moves_ns().size(), 5u);
    EXPECT_TRUE(service.moves_ns().empty() || service.moves_ns().back() < 120 * kSecond);
    EXPECT_GE(service.tokens(), 0.97 * stays.tokens());
  }
}

TEST(Adaptation, ChangesThatLast_AreFollowedEachTime) {
  Service service, stays;
  service.run(600 * kSecond, back_and_forth(60 * kSecond, 3));
  stays.never_move();
  stays.run(600 * kSecond, back_and_forth(60 * kSecond, 3));
  EXPECT_GE(service.moves_ns().size(), 8u);
  EXPECT_LE(service.moves_ns().size(), 9u);
  EXPECT_GT(service.tokens(), 1.1 * stays.tokens());
}

// Each step is too small to be worth a move, all of them are not.
TEST(Adaptation, ADeviceThatFadesSlowly_IsFollowedInTheEnd) {
  const Story fades = [](const std::string& device, int64_t now_ns) {
    const double minutes = static_cast<double>(now_ns) / static_cast<double>(60 * kSecond);
    return device == "GPU:1" ? 1 + std::floor(minutes * 10) / 10 : 1.0;
  };
  Service service;
  service.run(180 * kSecond, fades);
  EXPECT_GE(service.moves_ns().size(), 1u);
  EXPECT_LE(service.moves_ns().size(), 4u);
  const DriftFactors truth = {{"GPU:1", fades("GPU:1", service.now_ns())}};
  EXPECT_GE(service.tokens_per_s(truth), 0.85 * service.best_tokens_per_s(truth));
}

// As long as nothing comes of it.
TEST(Adaptation, DevicesThatAreLeftOut_AreMeasuredMoreAndMoreSeldom) {
  ManualClock clock;
  Adaptation law(clock);
  const auto measurings = [&](int64_t for_ns, double factor) {
    int count = 0;
    for (int64_t ns = 0; ns < for_ns; ns += kSecond) {
      clock.advance_ns(kSecond);
      if (!law.measuring_due()) continue;
      law.measured({{"NPU:0", factor}});
      ++count;
    }
    return count;
  };
  EXPECT_EQ(measurings(600 * kSecond, 1), 5);  // 20, 40, 80, 160 and 300 s behind the first
  EXPECT_FALSE(law.due());
  EXPECT_GE(measurings(600 * kSecond, 3), 4) << "one that has changed is looked at sooner";
  EXPECT_TRUE(law.due());
  EXPECT_EQ(law.factors(), (DriftFactors{{"NPU:0", 3}}));
}

// What cannot be done is not tried again and again.
TEST(Adaptation, AMoveThatCannotBe_IsTriedMoreAndMoreSeldom) {
  ManualClock clock;
  Adaptation law(clock);
  double busy = 0, predicted = 0;
  int tried = 0;
  for (int i = 0; i < 6000; ++i) {  // ten minutes
    clock.advance_ns(100 * kMs);
    predicted += 80e6, busy += i < 100 ? 80e6 : 200e6;
    law.observe("GPU:0", busy, predicted);
    if (!law.due()) continue;
    ASSERT_TRUE(law.judge(1.5));
    law.not_moved();
    ++tried;
  }
  EXPECT_GE(tried, 4);
  EXPECT_LE(tried, 9);
}

// With a pool that an earlier move left small: it is judged by what it might have, and the next plan has it all.
// A plan that a loss or a new device brought counts with the device as it was then: that is no news, and what it was
// before is.
TEST(Adaptation, AForeignPlan_IsMeasuredByWhatItWasMadeFor) {
  for (const bool told : {false, true}) {
    ManualClock clock;
    Adaptation law(clock);
    double busy_ns = 0, predicted_ns = 0;
    const auto serve = [&](int64_t for_ns, double factor) {
      bool due = false;
      for (int64_t ns = 0; ns < for_ns; ns += 25 * kMs) {
        clock.advance_ns(25 * kMs);
        predicted_ns += 20e6, busy_ns += 20e6 * factor;
        law.observe("GPU:0", busy_ns, predicted_ns);
        due = due || law.due();
      }
      return due;
    };
    EXPECT_FALSE(serve(3 * kSecond, 1));
    serve(kSecond / 2, 3);
    if (told) law.planned_for(law.factors());
    EXPECT_EQ(serve(20 * kSecond, 3), !told);
    if (told) EXPECT_TRUE(serve(20 * kSecond, 1));
  }
}

TEST(MoveTo, APoolThatAnEarlierMoveLeftSmall_GrowsAgain_AndIsNotAGain) {
  const ModelShape shape = make_shape({});
  PlanInput input;
  input.devices = {make_device("GPU:0", "gpu", {}, shape), make_device("GPU:1", "gpu", {}, shape)};
  input.host_memory = {"", "", 2000, 0.02};
  PlanRequest request;
  request.concurrency = 64;
  const auto best = plan(shape, input, request);
  ASSERT_TRUE(best.ok()) << best.error().message();
  Placement now = best->placement;
  now.lanes[0].kv_blocks = now.lanes[0].kv_blocks / 16 + 64;
  const auto same = better_plan(shape, input, request, now, {});
  ASSERT_TRUE(same.ok()) << same.error().message();
  EXPECT_NEAR(same->gain, 1, 0.02);
  EXPECT_EQ(same->report.placement.lanes[0].kv_blocks, best->placement.lanes[0].kv_blocks);
  now.lanes[0].kv_blocks = best->placement.lanes[0].kv_blocks * 9 / 10;  // not worth a second pool
  const auto near = better_plan(shape, input, request, now, {});
  ASSERT_TRUE(near.ok()) << near.error().message();
  EXPECT_EQ(near->report.placement.lanes[0].kv_blocks, now.lanes[0].kv_blocks);
  EXPECT_EQ(near->report.kv_capacity_tokens, kv_tokens(near->report.placement));
}

// Two replicas, of which one fades: it keeps its share of the requests, and what it gives counts while it is about as
// even as replicas are planned.
TEST(MoveTo, AReplicaThatFades_IsRelieved) {
  const ModelShape shape = make_shape({});
  PlanInput input;
  input.devices = {make_device("GPU:0", "gpu", {}, shape), make_device("GPU:1", "gpu", {}, shape)};
  input.host_memory = {"", "", 1e8, 1};  // so slow that nobody shares a layer, or passes one on
  const auto best = plan(shape, input, {});
  ASSERT_TRUE(best.ok()) << best.error().message();
  ASSERT_EQ(best->placement.lanes.size(), 2u);
  for (const double factor : {1.0, 0.8 * kSlowestReplica, 1.2 * kSlowestReplica}) {
    const DriftFactors slow = {{"GPU:1", factor}};
    const auto better = better_plan(shape, input, {}, best->placement, slow);
    ASSERT_TRUE(better.ok()) << better.error().message();
    if (factor > kSlowestReplica) {
      EXPECT_GT(better->gain, 1.12);
    } else {
      EXPECT_LT(better->gain, 1.12);
    }
  }
}

TEST(MoveTo, ForALoneRequest_IsJudgedByItsTime) {
  const ModelShape shape = make_shape({});
  PlanInput input;
  input.devices = {make_device("GPU:0", "gpu", {}, shape), make_device("GPU:1", "gpu", {}, shape)};
  input.host_memory = {"", "", 2000, 0.02};
  PlanRequest request;
  request.objective = Objective::kLatency;
  const auto best = plan(shape, input, request);
  ASSERT_TRUE(best.ok()) << best.error().message();
  const DriftFactors slow = {{"GPU:1", 4}};
  const auto better = better_plan(shape, input, request, best->placement, slow);
  ASSERT_TRUE(better.ok()) << better.error().message();
  const auto stays = report_on(shape, with_drift(input, slow), request, best->placement);
  ASSERT_TRUE(stays.ok()) << stays.error().message();
  EXPECT_NEAR(better->gain, stays->predicted.request_ms / better->report.predicted.request_ms, 1e-9);
  EXPECT_GT(better->gain, 1.2);
}

}  // namespace
}  // namespace motley
