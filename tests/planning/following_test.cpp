// A plan that follows its devices: engine's scheduler, runtime and simulated devices on virtual time.
#include <gtest/gtest.h>

#include <cstdio>
#include <random>

#include "model/random_model.hpp"
#include "planning/sharing.hpp"
#include "planning/virtual_service.hpp"

namespace motley::testing {
namespace {

constexpr int64_t kMs = 1'000'000, kSecond = 1000 * kMs;
constexpr Load kLoad{.requests = 0, .concurrency = 8, .prompt_len = 12, .output_len = 24, .step_rows = 40};
constexpr double kTie = 0.35;  // logits: tokens that were closer may change places where rounding differs

struct Slow {
  int64_t at_ns = 0, for_ns = 0;  // from the start; 0 = for ever
  double factor = 2;
};

std::string faults_text(const std::vector<Slow>& faults, int64_t start_ns) {
  std::string text;
  for (const Slow& slow : faults) {
    text += fmt::format("[[fault]]\nwhat = \"slow\"\nat_ns = {}\nfor_ms = {}\nfactor = {}\n", start_ns + slow.at_ns,
                        static_cast<double>(slow.for_ns) / 1e6, slow.factor);
  }
  return text;
}

class Following : public ::testing::Test {
 protected:
  // Two devices so fast, measured as they are, and then in service on another machine of the same with these faults.
  void begin(double speed, const std::vector<Slow>& of_first, const std::vector<Slow>& of_second, double jitter = 0,
             uint64_t seed = 1) {
    service_.reset();  // before the machine it is of
    SimDevice device = sharing_device(speed);
    {
      const VirtualMachine measured({device, device}, sharing_link());
      input_ = measured.measure(model(), 64);
      start_ns_ = virtual_start_ns();
      device.jitter = jitter;
      device.seed = seed;
      SimDevice first = device, second = device;
      second.seed = seed + 100;
      first.rules = faults_text(of_first, start_ns_);
      second.rules = faults_text(of_second, start_ns_);
      machine_ = std::make_unique<VirtualMachine>(std::vector{first, second}, sharing_link());
      input_ = renamed(std::move(input_), measured, *machine_);
    }
    service_ = std::make_unique<VirtualService>(model(), *machine_, input_, kLoad, start_ns_);
  }
  void run(int64_t seconds) { service_->run_until(start_ns_ + seconds * kSecond); }
  double tokens_per_s(int64_t begin_s, int64_t end_s) const {
    return service_->tokens_per_s(start_ns_ + begin_s * kSecond, start_ns_ + end_s * kSecond);
  }
  // Of the best plan, as the planner's model has it, with the second device so many times as slow.
  double best_tokens_per_s(double factor) const {
    const auto report = plan(*shape_of(model()), with_drift(input_, {{machine_->name(1), factor}}), request_of(kLoad));
    CHECK(report.ok(), "{}", report.error().message());
    return report->predicted.tokens_per_s;
  }
  const Model& model() const { return random_.model(); }

  const RandomModel random_{sharing_model()};
  PlanInput input_;
  int64_t start_ns_ = 0;
  std::unique_ptr<VirtualMachine> machine_;
  std::unique_ptr<VirtualService> service_;
};

// The same up to a token that was as good as undecided.
void expect_same(const std::vector<SampledToken>& got, const std::vector<SampledToken>& want, uint64_t id) {
  ASSERT_EQ(got.size(), want.size()) << "request " << id;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i].id == want[i].id) continue;
    ASSERT_EQ(want[i].top.size(), 2u);
    EXPECT_LT(want[i].top[0].logprob - want[i].top[1].logprob, kTie) << "request " << id << " token " << i;
    return;
  }
}

TEST_F(Following, ADeviceAtHalfItsSpeedInMidLoad_IsPlannedForWithinTwoSeconds) {
  begin(0.1, {}, {});
  run(25);
  const auto undisturbed = service_->texts();
  EXPECT_TRUE(service_->moves().empty());
  const double before = best_tokens_per_s(1), after = best_tokens_per_s(2);
  EXPECT_GE(tokens_per_s(5, 25), 0.9 * before);

  begin(0.1, {}, {{.at_ns = 10 * kSecond}});
  run(30);
  ASSERT_EQ(service_->moves().size(), 1u);
  const ServiceMove& move = service_->moves()[0];
  const int64_t slow_at_ns = start_ns_ + 10 * kSecond;
  const std::vector<int64_t> gaps = service_->gaps_over_moves_ns();
  ASSERT_FALSE(gaps.empty());
  const int64_t p99_ns = gaps[(gaps.size() * 99 + 99) / 100 - 1];
  std::printf("%zu blocks of KV moved, %llu positions computed again; of %zu streams' gaps p50 %.0f ms, p99 %.0f ms\n",
              move.blocks, static_cast<unsigned long long>(move.computed_again), gaps.size(),
              static_cast<double>(gaps[gaps.size() / 2]) / 1e6, static_cast<double>(p99_ns) / 1e6);
  std::printf(
      "in force %.2f s after the change; pause %.3f ms, streams' gaps up to %.0f ms; %.0f tokens/s before, %.0f "
      "of %.0f after\n",
      static_cast<double>(move.in_force_ns - slow_at_ns) / 1e9, static_cast<double>(move.pause_ns) / 1e6,
      static_cast<double>(gaps.back()) / 1e6, tokens_per_s(5, 10), tokens_per_s(14, 30), after);
  EXPECT_GE(move.judged_ns, slow_at_ns);
  EXPECT_LE(move.in_force_ns - slow_at_ns, 2 * kSecond);
  EXPECT_LE(move.pause_ns, 200 * kMs);
  EXPECT_GT(move.pause_ns, 0);  // what moving takes
  EXPECT_LE(p99_ns, 200 * kMs);
  EXPECT_GT(move.blocks, 0u);
  EXPECT_EQ(move.computed_again, 0u);
  EXPECT_GE(tokens_per_s(14, 30), 0.9 * after);
  EXPECT_EQ(service_->failed(), 0u);
  size_t compared = 0;
  for (const auto& [id, text] : service_->texts()) {
    const auto known = undisturbed.find(id);
    if (known == undisturbed.end()) continue;
    expect_same(text, known->second, id);
    ++compared;
  }
  EXPECT_GE(compared, 100u);
}

TEST_F(Following, NoiseOf15PercentForTenMinutes_MovesNothing) {
  for (const uint64_t seed : {1, 2}) {
    std::mt19937 random(static_cast<uint32_t>(seed));
    const auto spells = [&] {  // from the fastest to the slowest, 0.85 to 1.15, and less; of a second to half a minute
      std::vector<Slow> all;
      for (int64_t at_ns = 5 * kSecond; all.size() < 60;) {
        const int64_t for_ns = (1 + random() % 20) * kSecond / (1 + random() % 10);
        all.push_back({at_ns, for_ns, 1.05 + 0.3 * static_cast<double>(random() % 1000) / 999});
        at_ns += for_ns + (1 + random() % 10) * kSecond;
      }
      return all;
    };
    const auto of_first = spells(), of_second = spells();
    begin(0.04, of_first, of_second, 0.15, seed);
    run(600);
    EXPECT_TRUE(service_->moves().empty()) << "seed " << seed;
    EXPECT_EQ(service_->failed(), 0u);
  }
}

TEST_F(Following, AChangeBackAndForth_IsSoonLeftAlone) {
  std::vector<Slow> spells;
  for (int64_t s = 10; s < 250; s += 6) spells.push_back({s * kSecond, 3 * kSecond, 2});
  begin(0.05, {}, spells);
  run(250);
  EXPECT_LE(service_->moves().size(), 5u);
  EXPECT_EQ(service_->failed(), 0u);
}

}  // namespace
}  // namespace motley::testing
