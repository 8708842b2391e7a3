// Devices in workers that die or hang while steps run: which one is named, and that nobody waits for it afterwards.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <random>
#include <thread>

#include "base/config.hpp"
#include "device/handles.hpp"
#include "device/registry.hpp"
#include "device/worker/worker_process.hpp"
#include "model/axes.hpp"
#include "model/random_model.hpp"
#include "runtime/runtime_executor.hpp"

namespace motley {
namespace {

constexpr uint32_t kBlockSize = 16, kBlocks = 8;
constexpr int64_t kStepLimit_ns = 500'000'000;
constexpr StepId kStepsMax = 1'000'000;  // more than run before the signal comes

make_model::ModelSpec spec() {
  make_model::ModelSpec spec;
  spec.type = "F32";
  spec.layers = 4;
  spec.heads = 4;
  spec.kv_heads = 2;
  spec.head_dim = 32;
  return spec;
}

Device open_worker() {
  WorkerOptions worker;
  worker.program = MOTLEY_BINARY_DIR "/tests/motley_test_worker";
  DeviceOptions options;
  options.threads = 1;
  auto device = Device::open_isolated(plugin_directory() / "cpu.so", 0, options, worker);
  CHECK(device.ok(), "{}", device.error().message());
  return *std::move(device);
}

struct Way {
  bool stages = false;
  Route route = Route::kSharedMemory;
  bool attended = false;  // in halves, but the last device attends for the first, which has all heads
  bool section = false;   // the last device has no half, but the blocks that the steps lie in
};

// The model over the devices: in halves of every layer, or in stages of half the layers, or on one.
Placement place(const Model& model, std::vector<std::string> names, const Way& way) {
  const bool stages = way.stages;
  const ModelAxes axes = axes_of(model);
  const auto half = [&](int64_t count, size_t i, size_t of) {
    return std::vector<UnitRange>{{count * static_cast<int64_t>(i) / static_cast<int64_t>(of),
                                   count * static_cast<int64_t>(i + 1) / static_cast<int64_t>(of)}};
  };
  const auto layers = static_cast<uint32_t>(model.config().layers);
  Placement placement;
  placement.epoch = 1;
  placement.block_size = kBlockSize;
  placement.kv_dtype = MOTLEY_F32;
  Lane& lane = placement.lanes.emplace_back();
  lane.kv_blocks = kBlocks;
  if (way.section && names.size() > 1) {
    lane.kv_blocks = 1;
    lane.sections = {{names.back(), kBlocks}};
    for (size_t i = 0; i + 1 < names.size(); ++i) lane.routes.push_back({names[i], names.back(), way.route});
    names.pop_back();
  }
  for (size_t i = 0; i < names.size(); ++i) {
    const size_t part = stages ? 0 : i, parts = stages ? 1 : names.size();
    Shard shard;
    shard.device = names[i];
    shard.kv_heads = half(axes.kv_heads, part, parts);
    if (way.attended && names.size() > 1) {
      shard.kv_heads = i == 0 ? half(axes.kv_heads, 0, 1) : std::vector<UnitRange>{};
      if (i == 0) shard.partner = names.back();
    }
    shard.ffn_columns = half(axes.ffn_columns, part, parts);
    shard.vocab_rows = half(axes.vocab, part, parts);
    if (stages || i == 0) lane.stages.emplace_back();
    Stage& stage = lane.stages.back();
    stage.layer_begin = stages ? layers * static_cast<uint32_t>(i) / static_cast<uint32_t>(names.size()) : 0;
    stage.layer_end = stages ? layers * static_cast<uint32_t>(i + 1) / static_cast<uint32_t>(names.size()) : layers;
    stage.shards.push_back(std::move(shard));
    for (size_t j = 0; j < i; ++j) lane.routes.push_back({names[j], names[i], way.route});
  }
  return placement;
}

// A prompt in one step, its last row sampled greedily.
StepPlan prompt(StepId step) {
  StepPlan plan;
  plan.epoch = 1;
  plan.step = step;
  plan.tokens = {1, 5, 9, 2, 7};
  const auto rows = static_cast<uint32_t>(plan.tokens.size());
  for (uint32_t r = 0; r < rows; ++r) plan.positions.push_back(static_cast<int32_t>(r));
  plan.token_slots.assign(rows, -1);
  plan.generated.assign(rows, 0);
  plan.sequences.push_back({1, 0, rows, rows, 0, 1, 0, 1});
  plan.blocks = {1};
  plan.logit_rows = {static_cast<int32_t>(rows) - 1};
  motley_sample_row sample{};
  sample.top_p = sample.repetition_penalty = 1;
  sample.position = rows;
  sample.top_logprobs = -1;
  sample.out_slot = -1;
  plan.samples.push_back(sample);
  return plan;
}

class Loss : public ::testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    open(2);
    start({"D0", "D1"});
  }
  void open(size_t count) {
    while (devices_.size() < count) devices_.push_back(open_worker());
  }
  void start(const std::vector<std::string>& names) {
    RuntimeOptions options;
    options.rows_max = 32;
    options.logit_rows_max = 4;
    options.step_limit_ns = [](double, double) { return kStepLimit_ns; };
    options.kv_limit_ns = kStepLimit_ns;
    std::vector<NamedDevice> named;
    for (size_t i = 0; i < devices_.size(); ++i) named.push_back({fmt::format("D{}", i), &devices_[i]});
    auto made = RuntimeExecutor::create(model_.model(), place(model_.model(), names, GetParam()), named, options);
    ASSERT_TRUE(made.ok()) << made.error().message();
    executor_ = *std::move(made);
  }
  // Steps, each submitted before the one before it has ended, until one fails; OK if none does.
  Status run() {
    auto under_way = executor_->submit(prompt(1));
    Status failed;
    for (StepId step = 2; step < kStepsMax && failed.ok(); ++step) {
      auto next = executor_->submit(prompt(step));
      const StepResult result = under_way.take();
      failed = result.status;
      if (failed.ok()) token_ = result.tokens.at(0).id;
      under_way = std::move(next);
    }
    EXPECT_FALSE(under_way.take().status.ok()) << "a step after the loss";
    return failed;
  }
  void signal(size_t device, int number) { ASSERT_EQ(kill(devices_[device].worker()->pid(), number), 0); }
  // Returns once it has stopped: a signal that was sent alone may find a step computed first.
  void stop(size_t device) {
    signal(device, SIGSTOP);
    siginfo_t info{};
    ASSERT_EQ(waitid(P_PID, static_cast<id_t>(devices_[device].worker()->pid()), &info, WSTOPPED | WNOWAIT), 0);
    ASSERT_EQ(info.si_code, CLD_STOPPED);
  }
  bool ended(size_t device) const { return devices_[device].worker()->wait_ended(0); }

  const testing::RandomModel model_{spec()};
  std::vector<Device> devices_;
  std::unique_ptr<RuntimeExecutor> executor_;
  TokenId token_ = -1;
};

TEST_P(Loss, KilledAtAnyInstant_IsNamedAndTheOtherTakesOver) {
  std::mt19937 random(5);
  for (int round = 0; round < 6; ++round) {
    std::thread killer([this, delay = std::chrono::microseconds(random() % 20'000)] {
      std::this_thread::sleep_for(delay);
      signal(1, SIGKILL);
    });
    const Status why = run();
    killer.join();
    EXPECT_EQ(why.code(), MOTLEY_UNAVAILABLE) << why.message();
    const auto lost = executor_->lost_devices();
    ASSERT_EQ(lost.size(), 1u) << why.message();
    EXPECT_EQ(lost[0].name, "D1");
    EXPECT_FALSE(lost[0].hangs);
    EXPECT_TRUE(ended(1));
    executor_.reset();
    start({"D0"});
    const StepResult alone = executor_->submit(prompt(1)).take();
    ASSERT_TRUE(alone.status.ok()) << alone.status.message();
    if (token_ >= 0) {
      EXPECT_EQ(alone.tokens.at(0).id, token_);
    }
    executor_.reset();
    devices_[1] = open_worker();
    start({"D0", "D1"});
  }
}

// As a GPU's worker is beside the processor.
TEST_P(Loss, AWorkerBesideADeviceOfThisProcess_IsNamedAndTheOtherTakesOver) {
  executor_.reset();
  DeviceOptions options;
  options.threads = 1;
  const DeviceRegistry registry = DeviceRegistry::scan(plugin_directory());
  const auto cpu = registry.find("CPU:0");
  ASSERT_TRUE(cpu.ok()) << cpu.error().message();
  auto own = Device::open(*(*cpu)->plugin, (*cpu)->description.desc.index, options);
  ASSERT_TRUE(own.ok()) << own.error().message();
  devices_[0] = *std::move(own);
  start({"D0", "D1"});
  std::thread killer([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    signal(1, SIGKILL);
  });
  EXPECT_EQ(run().code(), MOTLEY_UNAVAILABLE);
  killer.join();
  const auto lost = executor_->lost_devices();
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0].name, "D1");
  executor_.reset();
  start({"D0"});
  const StepResult alone = executor_->submit(prompt(1)).take();
  ASSERT_TRUE(alone.status.ok()) << alone.status.message();
  if (token_ >= 0) EXPECT_EQ(alone.tokens.at(0).id, token_);
}

TEST_P(Loss, Stopped_IsNamedByItsDeadlineAndKilled) {
  ASSERT_TRUE(executor_->submit(prompt(1)).take().status.ok());
  signal(1, SIGSTOP);
  EXPECT_EQ(run().code(), MOTLEY_UNAVAILABLE);
  const auto lost = executor_->lost_devices();
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0].name, "D1");
  EXPECT_TRUE(lost[0].hangs);
  EXPECT_TRUE(ended(1));
  EXPECT_FALSE(ended(0));
}

constexpr size_t kKvOwner = 1;  // of all ways

// Blocks there and back, until a device is lost; OK if none is.
Status move_blocks(RuntimeExecutor& executor, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    auto saved = executor.save_kv({{0, 1}, {0, 2}});
    if (!saved.ok()) return saved.error();
    const auto loaded = executor.load_kv(std::make_shared<const KvContents>(*std::move(saved)), {{{0, 1}, {0, 3}}});
    if (!loaded.ok()) return loaded.error();
  }
  return ok_status();
}

TEST_P(Loss, KilledWhileBlocksMove_IsNamed) {
  ASSERT_TRUE(executor_->describe().moves_kv);
  std::mt19937 random(7);
  for (int round = 0; round < 6; ++round) {
    ASSERT_TRUE(move_blocks(*executor_, 1).ok());
    std::thread killer([this, delay = std::chrono::microseconds(random() % 5'000)] {
      std::this_thread::sleep_for(delay);
      signal(kKvOwner, SIGKILL);
    });
    const Status why = move_blocks(*executor_, 1'000'000);
    killer.join();
    EXPECT_EQ(why.code(), MOTLEY_UNAVAILABLE) << why.message();
    const auto lost = executor_->lost_devices();
    ASSERT_EQ(lost.size(), 1u) << why.message();
    EXPECT_EQ(lost[0].name, "D1");
    EXPECT_EQ(executor_->submit(prompt(1)).take().status.code(), MOTLEY_UNAVAILABLE);
    executor_.reset();
    devices_[kKvOwner] = open_worker();
    start({"D0", "D1"});
  }
}

TEST_P(Loss, StoppedBeforeBlocksMove_IsNamedByItsDeadlineAndKilled) {
  ASSERT_TRUE(executor_->describe().moves_kv);
  auto saved = executor_->save_kv({{0, 1}});
  ASSERT_TRUE(saved.ok());
  const auto contents = std::make_shared<const KvContents>(*std::move(saved));
  for (const bool loads : {false, true}) {
    stop(kKvOwner);
    const Status why =
        loads ? executor_->load_kv(contents, {{{0, 1}, {0, 3}}}).error() : executor_->save_kv({{0, 1}}).error();
    EXPECT_FALSE(why.ok());
    const auto lost = executor_->lost_devices();
    ASSERT_EQ(lost.size(), 1u) << why.message();
    EXPECT_EQ(lost[0].name, "D1");
    EXPECT_TRUE(lost[0].hangs);
    EXPECT_TRUE(ended(kKvOwner));
    EXPECT_FALSE(ended(0));
    executor_.reset();
    devices_[kKvOwner] = open_worker();
    start({"D0", "D1"});
  }
}

TEST_P(Loss, BothStopped_EveryStepEndsAndSoDoesTheExecutor) {
  for (const size_t device : {0, 1}) stop(device);
  EXPECT_EQ(run().code(), MOTLEY_UNAVAILABLE);
  const auto lost = executor_->lost_devices();
  ASSERT_GE(lost.size(), 1u);
  EXPECT_EQ(lost[0].name, GetParam().stages ? "D0" : lost[0].name);      // in a pipeline the first has something to do
  for (const size_t device : {0, 1}) devices_[device].worker()->kill();  // as the owner does with what it gives up
  executor_.reset();
}

// One driver is done before the other, which meets it no more.
TEST_P(Loss, DroppedWithStepsUnderWay_EndsThemFirst) {
  for (int round = 0; round < 50; ++round) {
    std::vector<Future<StepResult>> under_way;
    for (StepId step = 1; step <= 2; ++step) under_way.push_back(executor_->submit(prompt(step)));
    executor_.reset();
    for (Future<StepResult>& each : under_way) {
      const StepResult result = each.take();
      EXPECT_TRUE(result.status.ok()) << result.status.message();
    }
    start({"D0", "D1"});
  }
}

TEST_P(Loss, DeadBeforeTheExecutorIsMade_IsAnErrorOfItsMaking) {
  executor_.reset();
  devices_[1].worker()->kill();
  const std::array named{NamedDevice{"D0", &devices_[0]}, NamedDevice{"D1", &devices_[1]}};
  const Status refused =
      RuntimeExecutor::create(model_.model(), place(model_.model(), {"D0", "D1"}, GetParam()), named, {}).error();
  EXPECT_EQ(refused.code(), MOTLEY_UNAVAILABLE) << refused.message();
  EXPECT_NE(refused.message().find("D1"), std::string::npos) << refused.message();
}

// Whoever waits for the stopped one, before it or behind it, is not named.
TEST_P(Loss, OneOfThreeStopped_IsTheOnlyOneNamed) {
  open(3);
  for (size_t victim = 0; victim < devices_.size(); ++victim) {
    executor_.reset();
    start({"D0", "D1", "D2"});
    ASSERT_TRUE(executor_->submit(prompt(1)).take().status.ok());
    signal(victim, SIGSTOP);
    const Status why = run();
    EXPECT_EQ(why.code(), MOTLEY_UNAVAILABLE);
    const auto lost = executor_->lost_devices();
    ASSERT_EQ(lost.size(), 1u) << why.message();
    EXPECT_EQ(lost[0].name, fmt::format("D{}", victim)) << why.message();
    EXPECT_TRUE(lost[0].hangs);
    for (size_t i = 0; i < devices_.size(); ++i) EXPECT_EQ(ended(i), i == victim) << i;
    executor_.reset();
    devices_[victim] = open_worker();
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, Loss,
    ::testing::Values(Way{false, Route::kSharedMemory}, Way{true, Route::kSharedMemory}, Way{false, Route::kGloo},
                      Way{true, Route::kGloo}, Way{false, Route::kSharedMemory, true}, Way{false, Route::kGloo, true},
                      Way{false, Route::kSharedMemory, false, true}, Way{true, Route::kGloo, false, true}),
    [](const auto& info) {
      return fmt::format("{}{}{}{}", info.param.stages ? "pipeline" : "tensor", info.param.attended ? "_attended" : "",
                         info.param.section ? "_section" : "", info.param.route == Route::kGloo ? "_over_gloo" : "");
    });

}  // namespace
}  // namespace motley
