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

struct Scene {
  std::vector<SimDevice> devices;
  VirtualLink link = sharing_link();
  Load load = kLoad;
  double memory = 0;  // bytes that plans may use of each device; 0 = what it has
};

// Two devices so fast.
Scene two_equal(double speed) { return {.devices = {sharing_device(speed), sharing_device(speed)}}; }

class Following : public ::testing::Test {
 protected:
  explicit Following(const make_model::ModelSpec& spec = sharing_model()) : random_(spec) {}
  // Devices, measured as they are, and then in service on another machine of the same with these faults; `known`: how
  // many times as slow the first plan takes each device to be.
  void begin(Scene scene, const std::vector<std::vector<Slow>>& faults, double jitter = 0, uint64_t seed = 1,
             const std::vector<double>& known = {}) {
    service_.reset();  // before the machine it is of
    load_ = scene.load;
    {
      const VirtualMachine measured(scene.devices, scene.link);
      input_ = measured.measure(model(), 64);
      start_ns_ = virtual_start_ns();
      for (size_t d = 0; d < scene.devices.size(); ++d) {
        SimDevice& device = scene.devices[d];
        device.jitter = jitter;
        device.seed = seed + 100 * d;
        if (d < faults.size()) device.rules += faults_text(faults[d], start_ns_);
      }
      machine_ = std::make_unique<VirtualMachine>(scene.devices, scene.link);
      input_ = renamed(std::move(input_), measured, *machine_);
    }
    for (DeviceProfile& device : input_.devices) {
      if (scene.memory > 0) device.memory_free = device.memory_total = static_cast<uint64_t>(scene.memory);
      device.own_memory = scene.memory > 0;
    }
    DriftFactors slower;
    for (size_t d = 0; d < known.size(); ++d) slower[machine_->name(d)] = known[d];
    input_ = with_drift(std::move(input_), slower);
    service_ = std::make_unique<VirtualService>(model(), *machine_, input_, load_, start_ns_);
  }
  void run(int64_t seconds) { service_->run_until(start_ns_ + seconds * kSecond); }
  double tokens_per_s(int64_t begin_s, int64_t end_s) const {
    return service_->tokens_per_s(start_ns_ + begin_s * kSecond, start_ns_ + end_s * kSecond);
  }
  // Of the best plan, as the planner's model has it, with one of the devices so many times as slow.
  double best_tokens_per_s(double factor, size_t device = 1) const {
    const auto report =
        plan(*shape_of(model()), with_drift(input_, {{machine_->name(device), factor}}), request_of(load_));
    CHECK(report.ok(), "{}", report.error().message());
    return report->predicted.tokens_per_s;
  }
  // What is served by a plan made for it, where one of the devices is so many times as slow from the start.
  double served_from_the_start(const Scene& scene, double factor, size_t device = 1) {
    std::vector<std::vector<Slow>> faults(scene.devices.size());
    std::vector<double> known(scene.devices.size(), 1);
    faults[device] = {{.factor = factor}}, known[device] = factor;
    begin(scene, faults, 0, 1, known);
    run(20);
    EXPECT_TRUE(service_->moves().empty());
    return tokens_per_s(5, 20);
  }
  // Of the streams' gaps over moves.
  int64_t gap_p99_ns() const { return p99_of(service_->gaps_over_moves_ns()); }
  static int64_t p99_of(const std::vector<int64_t>& ascending) {
    return ascending.empty() ? INT64_MAX : ascending[(ascending.size() * 99 + 99) / 100 - 1];
  }
  // All texts that have ended in both, and how many they are.
  void expect_texts(const std::map<uint64_t, std::vector<SampledToken>>& undisturbed, size_t least) const;
  const Model& model() const { return random_.model(); }

  const RandomModel random_;
  Load load_;
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

void Following::expect_texts(const std::map<uint64_t, std::vector<SampledToken>>& undisturbed, size_t least) const {
  size_t compared = 0;
  for (const auto& [id, text] : service_->texts()) {
    const auto known = undisturbed.find(id);
    if (known == undisturbed.end()) continue;
    expect_same(text, known->second, id);
    ++compared;
  }
  EXPECT_GE(compared, least);
}

TEST_F(Following, ADeviceAtHalfItsSpeedInMidLoad_IsPlannedForWithinTwoSeconds) {
  begin(two_equal(0.1), {});
  run(25);
  const auto undisturbed = service_->texts();
  EXPECT_TRUE(service_->moves().empty());
  const double before = best_tokens_per_s(1), predicted = best_tokens_per_s(2);
  EXPECT_GE(tokens_per_s(5, 25), 0.9 * before);
  const double after = std::max(predicted, served_from_the_start(two_equal(0.1), 2));

  begin(two_equal(0.1), {{}, {{.at_ns = 10 * kSecond}}});
  run(30);
  ASSERT_EQ(service_->moves().size(), 1u);
  const ServiceMove& move = service_->moves()[0];
  const int64_t slow_at_ns = start_ns_ + 10 * kSecond;
  const std::vector<int64_t> gaps = service_->gaps_over_moves_ns();
  ASSERT_FALSE(gaps.empty());
  const int64_t p99_ns = gap_p99_ns();
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
  expect_texts(undisturbed, 100);
}

// A plan that takes seconds to make is judged again when it is there: it takes over where the device is still slow, and
// does not where it has recovered meanwhile.
TEST_F(Following, APlanThatTookLongToMake_IsJudgedAgain) {
  for (const int64_t slow_ns : {int64_t{0}, 4 * kSecond}) {
    begin(two_equal(0.1), {{}, {{.at_ns = 5 * kSecond, .for_ns = slow_ns}}});
    service_->set_making_ns(6 * kSecond);
    run(16);
    EXPECT_EQ(service_->moves().size(), slow_ns == 0 ? 1u : 0u);
    EXPECT_EQ(service_->failed(), 0u);
  }
}

// Two devices that hold the model each, and meet over a slow link: replicas. Of one that fades much the other takes
// over; of one at half its speed it need not, for that serves what the best plan would.
TEST_F(Following, AReplicaThatFades_HandsItsSequencesOver) {
  Scene scene = two_equal(0.12);
  scene.link = {.latency_ns = 20 * kMs, .ns_per_byte = 0.1};
  begin(scene, {});
  run(25);
  const auto undisturbed = service_->texts();
  EXPECT_TRUE(service_->moves().empty());
  for (const double factor : {4.0, 2.0}) {
    SCOPED_TRACE(factor);
    const double after = served_from_the_start(scene, factor);
    begin(scene, {{}, {{.at_ns = 10 * kSecond, .factor = factor}}});
    ASSERT_EQ(service_->placement().lanes.size(), 2u);
    run(30);
    const bool moved = !service_->moves().empty();
    const int64_t in_force_ns = moved ? service_->moves()[0].in_force_ns - start_ns_ - 10 * kSecond : 0;
    const int64_t slow_at_ns = start_ns_ + 10 * kSecond;
    const int64_t p99_ns = moved ? gap_p99_ns() : p99_of(service_->gaps_ns(slow_at_ns, start_ns_ + 30 * kSecond));
    std::printf(
        "%.0f times as slow: in force %.2f s later; streams' gaps p99 %.0f ms; %.0f tokens/s before, %.0f of %.0f "
        "after\n",
        factor, static_cast<double>(in_force_ns) / 1e9, static_cast<double>(p99_ns) / 1e6, tokens_per_s(5, 10),
        tokens_per_s(14, 30), after);
    EXPECT_EQ(moved, factor > kSlowestReplica);
    EXPECT_LE(in_force_ns, 2 * kSecond);
    EXPECT_LE(p99_ns, 200 * kMs);
    EXPECT_GE(tokens_per_s(14, 30), 0.9 * after);
    EXPECT_EQ(service_->failed(), 0u);
    expect_texts(undisturbed, 100);
  }
}

// Its weights are many times the KV of what is served.
make_model::ModelSpec wide_model() {
  make_model::ModelSpec spec = sharing_model();
  spec.ffn *= 4;
  return spec;
}

class FollowingStages : public Following {
 protected:
  FollowingStages() : Following(wide_model()) {}
};

// Layers of stage 0 of the only lane.
uint32_t first_layers(const Placement& placement) {
  CHECK(placement.lanes.size() == 1 && placement.lanes[0].stages.size() == 2);
  return placement.lanes[0].stages[0].layer_end;
}

// Two devices that hold the model only together, and meet over a slow link: a pipeline. One of them slows down: the
// border between the stages moves, and back when it has recovered.
TEST_F(FollowingStages, AtHalfItsSpeed_OneGivesLayersToTheOther_AndTakesThemBack) {
  Scene scene = two_equal(0.3);
  scene.link = {.latency_ns = 3 * kMs, .ns_per_byte = 0.1};
  scene.memory = 1.05 * static_cast<double>(shape_of(model())->weight_bytes());
  begin(scene, {});
  run(20);
  const auto undisturbed = service_->texts();
  ASSERT_EQ(service_->placement().lanes[0].stages.size(), 2u);
  const double best = best_tokens_per_s(1);
  const uint32_t before = first_layers(service_->placement());
  const std::string slows = service_->placement().lanes[0].stages[0].shards[0].device;
  const size_t slow = slows == machine_->name(0) ? 0 : 1;
  const double predicted = best_tokens_per_s(2, slow);
  const double after = std::max(predicted, served_from_the_start(scene, 2, slow));

  std::vector<std::vector<Slow>> faults(2);
  faults[slow] = {{.at_ns = 10 * kSecond, .for_ns = 20 * kSecond}};
  begin(scene, faults);
  run(25);
  ASSERT_EQ(service_->moves().size(), 1u);
  const ServiceMove& move = service_->moves()[0];
  std::printf("layers %u to %u in %.2f s; pause %.3f ms; %.0f tokens/s before, %.0f of %.0f after\n", before,
              first_layers(service_->placement()),
              static_cast<double>(move.in_force_ns - start_ns_ - 10 * kSecond) / 1e9,
              static_cast<double>(move.pause_ns) / 1e6, tokens_per_s(4, 10), tokens_per_s(13, 25), after);
  EXPECT_LT(first_layers(service_->placement()), before);
  EXPECT_LE(move.in_force_ns - start_ns_ - 10 * kSecond, 2 * kSecond);
  EXPECT_LE(move.pause_ns, 200 * kMs);
  EXPECT_GE(tokens_per_s(13, 25), 0.9 * after);
  run(45);
  ASSERT_EQ(service_->moves().size(), 2u);
  EXPECT_EQ(first_layers(service_->placement()), before);
  EXPECT_GE(tokens_per_s(35, 45), 0.9 * best);
  EXPECT_EQ(service_->failed(), 0u);
  expect_texts(undisturbed, 50);
}

// Small, so that much virtual time is soon computed.
make_model::ModelSpec small_model() {
  make_model::ModelSpec spec = sharing_model();
  spec.layers = 4;
  spec.heads = spec.kv_heads = 4;
  spec.ffn = 256;
  return spec;
}

class FollowingRoles : public Following {
 protected:
  FollowingRoles() : Following(small_model()) {}

  // A core, and an NPU that computes prompts for it; both a hundredth as fast as intel-npu-like and its like.
  static Scene with_npu() {
    SimDevice core{.kind = "cpu", .gflops = 0.4, .attention_gflops = 0.2, .bandwidth_gb_s = 0.12, .half_rows = 2};
    SimDevice npu{.kind = "npu", .gflops = 40, .bandwidth_gb_s = 1, .half_rows = 16, .dispatch_us = 4000};
    npu.rules = "dynamic_rows = false\npaged_attention = false\n";
    Scene scene{.devices = {core, npu}};
    scene.load = {.requests = 0, .concurrency = 12, .prompt_len = 64, .output_len = 16, .step_rows = 64};
    return scene;
  }
  bool prompts_on(size_t device) const {
    const std::vector<Lane>& lanes = service_->placement().lanes;
    return lanes.size() == 2 && !lanes[0].decodes && lanes[0].stages[0].shards[0].device == machine_->name(device);
  }
};

// The NPU throttles to a tenth: its prompts go to the core. It is measured now and then from there on, and once it has
// recovered it has its role back.
TEST_F(FollowingRoles, TheNpuThrottles_PromptsGoToTheCore_AndComeBack) {
  const Scene scene = with_npu();
  begin(scene, {});
  run(12);
  const auto undisturbed = service_->texts();
  ASSERT_TRUE(prompts_on(1));
  EXPECT_TRUE(service_->moves().empty());
  const double before = tokens_per_s(4, 12), after = served_from_the_start(scene, 10);

  begin(scene, {{}, {{.at_ns = 10 * kSecond, .for_ns = 30 * kSecond, .factor = 10}}});
  run(25);
  ASSERT_EQ(service_->moves().size(), 1u);
  std::printf("prompts off the NPU after %.2f s; %.0f tokens/s before, %.0f of %.0f after\n",
              static_cast<double>(service_->moves()[0].in_force_ns - start_ns_ - 10 * kSecond) / 1e9, before,
              tokens_per_s(16, 25), after);
  EXPECT_FALSE(prompts_on(1));
  EXPECT_EQ(service_->moves()[0].packed_bytes, 0u) << "who takes over a role has the weights";
  EXPECT_LE(service_->moves()[0].in_force_ns - start_ns_ - 10 * kSecond, 4 * kSecond);
  EXPECT_GE(tokens_per_s(16, 25), 0.9 * after);
  run(75);
  ASSERT_EQ(service_->moves().size(), 2u);
  const int64_t back_ns = service_->moves()[1].in_force_ns - start_ns_ - 40 * kSecond;
  std::printf("back after %.2f s: %.0f tokens/s\n", static_cast<double>(back_ns) / 1e9, tokens_per_s(65, 75));
  EXPECT_GT(back_ns, 0);
  EXPECT_TRUE(prompts_on(1));
  EXPECT_GE(tokens_per_s(65, 75), 0.95 * before);
  EXPECT_EQ(service_->failed(), 0u);
  expect_texts(undisturbed, 50);
}

// An NPU that prompts keep busy all the time: at half its speed the core alone is the better plan.
TEST_F(FollowingRoles, TheNpuAtHalfItsSpeed_LosesItsPromptsWithinTwoSeconds) {
  Scene scene = with_npu();
  scene.devices[0] = scaled(scene.devices[0], 4);
  scene.devices[1].gflops = 30, scene.devices[1].dispatch_us = 5000;
  const double after = served_from_the_start(scene, 2);
  ASSERT_FALSE(prompts_on(1));

  begin(scene, {});
  run(15);
  const auto undisturbed = service_->texts();
  ASSERT_TRUE(prompts_on(1));
  EXPECT_TRUE(service_->moves().empty());
  begin(scene, {{}, {{.at_ns = 5 * kSecond}}});
  run(20);
  ASSERT_EQ(service_->moves().size(), 1u);
  const ServiceMove& move = service_->moves()[0];
  const int64_t in_force_ns = move.in_force_ns - start_ns_ - 5 * kSecond;
  std::printf("prompts off the NPU after %.2f s; pause %.0f ms, streams' gaps p99 %.0f ms; %.0f of %.0f tokens/s\n",
              static_cast<double>(in_force_ns) / 1e9, static_cast<double>(move.pause_ns) / 1e6,
              static_cast<double>(gap_p99_ns()) / 1e6, tokens_per_s(8, 20), after);
  EXPECT_FALSE(prompts_on(1));
  EXPECT_GE(move.judged_ns, start_ns_ + 5 * kSecond);
  EXPECT_LE(in_force_ns, 2 * kSecond);
  EXPECT_LE(move.pause_ns, 200 * kMs);
  EXPECT_LE(gap_p99_ns(), 200 * kMs);
  EXPECT_GE(tokens_per_s(8, 20), 0.9 * after);
  EXPECT_EQ(move.computed_again, 0u);
  EXPECT_EQ(service_->failed(), 0u);
  expect_texts(undisturbed, 100);
}

// Two of them, of which one is enough: the other takes over, in the same role or as one that is attended for, which is
// nearly as good. The core alone gives a third.
TEST_F(FollowingRoles, TheNpuThrottles_PromptsGoToAnother) {
  Scene scene = with_npu();
  scene.devices.push_back(scene.devices[1]);
  begin(scene, {});
  run(12);
  const auto undisturbed = service_->texts();
  ASSERT_NE(prompts_on(1), prompts_on(2));
  const size_t first = prompts_on(1) ? 1 : 2;
  std::vector<std::vector<Slow>> faults(3);
  faults[first] = {{.at_ns = 10 * kSecond, .factor = 10}};
  begin(scene, faults);
  run(25);
  ASSERT_EQ(service_->moves().size(), 1u);
  EXPECT_FALSE(prompts_on(first));
  EXPECT_GE(tokens_per_s(16, 25), 0.9 * tokens_per_s(4, 10));
  EXPECT_EQ(service_->failed(), 0u);
  expect_texts(undisturbed, 50);
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
    begin(two_equal(0.04), {of_first, of_second}, 0.15, seed);
    run(600);
    EXPECT_TRUE(service_->moves().empty()) << "seed " << seed;
    EXPECT_EQ(service_->failed(), 0u);
  }
}

TEST_F(Following, AChangeBackAndForth_IsSoonLeftAlone) {
  std::vector<Slow> spells;
  for (int64_t s = 10; s < 250; s += 6) spells.push_back({s * kSecond, 3 * kSecond, 2});
  begin(two_equal(0.05), {{}, spells});
  run(250);
  EXPECT_LE(service_->moves().size(), 5u);
  EXPECT_EQ(service_->failed(), 0u);
}

}  // namespace
}  // namespace motley::testing
