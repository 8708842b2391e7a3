#include "runtime/runtime_executor.hpp"

#include <gtest/gtest.h>

#include "base/config.hpp"
#include "device/registry.hpp"
#include "model/random_model.hpp"
#include "model/sim_file.hpp"
#include "planner/plan.hpp"

namespace motley {
namespace {

// A tiny model on the reference device.
class RuntimeExecutorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    registry_ = DeviceRegistry::scan(plugin_directory());
    const auto entry = registry_.find("REF:0");
    ASSERT_TRUE(entry.ok()) << entry.error().message();
    auto device = Device::open(*(*entry)->plugin, 0, {});
    ASSERT_TRUE(device.ok()) << device.error().message();
    device_.emplace(*std::move(device));
    make_runtime();
  }
  void make_runtime() {
    const auto placement =
        plan_single_device(model_.model(), {"REF:0", 4ull << 30, 4ull << 30, 64ull << 20, 1 << 16}, plan_);
    ASSERT_TRUE(placement.ok()) << placement.error().message();
    RuntimeOptions options;
    options.rows_max = 32;
    options.logit_rows_max = 4;
    auto runtime =
        RuntimeExecutor::create(model_.model(), *placement, std::array{NamedDevice{"REF:0", &*device_}}, options);
    ASSERT_TRUE(runtime.ok()) << runtime.error().message();
    runtime_ = *std::move(runtime);
  }

  // Rows `tokens` of one sequence at the end of `context`, the last one sampled greedily into `out_slot`.
  StepPlan plan(StepId step, std::vector<TokenId> tokens, std::vector<SlotId> slots, uint32_t context,
                SlotId out_slot) {
    StepPlan made;
    made.epoch = 1;
    made.step = step;
    const auto rows = static_cast<uint32_t>(tokens.size());
    for (uint32_t r = 0; r < rows; ++r) made.positions.push_back(static_cast<int32_t>(context - rows + r));
    made.tokens = std::move(tokens);
    made.token_slots = std::move(slots);
    made.generated.assign(rows, 0);
    made.sequences.push_back({1, 0, rows, context, 0, 2, 0, 1});
    made.blocks = {3, 1};
    made.logit_rows = {static_cast<int32_t>(rows) - 1};
    motley_sample_row sample{};
    sample.top_p = 1;
    sample.repetition_penalty = 1;
    sample.position = context;
    sample.top_logprobs = 2;
    sample.out_slot = out_slot;
    made.samples.push_back(sample);
    return made;
  }

  testing::RandomModel model_{make_model::ModelSpec{}};
  PlanOptions plan_;
  DeviceRegistry registry_;
  std::optional<Device> device_;
  std::unique_ptr<RuntimeExecutor> runtime_;
};

TEST_F(RuntimeExecutorTest, SlotReference_GivesWhatTheKnownTokenGives) {
  const std::vector<TokenId> prompt = {1, 5, 9, 2};
  auto first = runtime_->submit(plan(1, prompt, {-1, -1, -1, -1}, 4, 0));
  auto second = runtime_->submit(plan(2, {0}, {0}, 5, 1));  // submitted before the first token is known
  const StepResult one = first.take(), two = second.take();
  ASSERT_TRUE(one.status.ok()) << one.status.message();
  ASSERT_TRUE(two.status.ok()) << two.status.message();
  EXPECT_EQ(two.step, 2u);
  EXPECT_GT(one.busy_ns, 0);
  ASSERT_EQ(one.tokens.size(), 1u);
  EXPECT_EQ(one.tokens[0].top.size(), 2u);
  EXPECT_EQ(one.tokens[0].top[0].id, one.tokens[0].id);
  auto again = runtime_->submit(plan(3, {1, 5, 9, 2, one.tokens[0].id}, {-1, -1, -1, -1, -1}, 5, 2));
  EXPECT_EQ(again.take().tokens[0].id, two.tokens[0].id);
}

TEST_F(RuntimeExecutorTest, BrokenPlans_AnswerInOrderAndHarmNothing) {
  auto stale = plan(1, {1}, {-1}, 1, 0);
  stale.epoch = 9;
  auto wild = plan(2, {1}, {-1}, 1, 0);
  wild.blocks[0] = 1 << 30;
  auto first = runtime_->submit(std::move(stale));
  auto second = runtime_->submit(std::move(wild));
  EXPECT_EQ(first.take().status.code(), MOTLEY_ABORTED);
  EXPECT_EQ(second.take().status.code(), MOTLEY_INVALID_ARGUMENT);
  EXPECT_TRUE(runtime_->submit(plan(3, {1}, {-1}, 1, 0)).take().status.ok());
}

TEST_F(RuntimeExecutorTest, Totals_SayWhatStepsWereMadeOf) {
  ASSERT_TRUE(runtime_->submit(plan(1, {1, 5, 9, 2, 7}, {-1, -1, -1, -1, -1}, 5, 0)).take().status.ok());
  ASSERT_TRUE(runtime_->submit(plan(2, {3}, {-1}, 6, 0)).take().status.ok());
  auto stale = plan(3, {1}, {-1}, 7, 0);
  stale.epoch = 9;  // does not run
  ASSERT_FALSE(runtime_->submit(std::move(stale)).take().status.ok());
  const auto totals = runtime_->totals();
  ASSERT_EQ(totals.size(), 1u);
  const StepTotals none, one{1, 1, 1, 1, 6, 0}, five{1, 5, 0, 1, 0, 1 + 2 + 3 + 4 + 5};
  EXPECT_EQ(totals[0].at("REF:0"), (TotalsByRows{one, none, five}));
}

// A server that ends waits for no weights.
TEST_F(RuntimeExecutorTest, NobodyWaits_IsCancelledBeforeItIsPacked) {
  const auto placement =
      plan_single_device(model_.model(), {"REF:0", 4ull << 30, 4ull << 30, 64ull << 20, 1 << 16}, plan_);
  ASSERT_TRUE(placement.ok()) << placement.error().message();
  std::stop_source stop;
  RuntimeOptions options;
  options.rows_max = 32;
  options.holdings = std::make_shared<Holdings>(model_.model());
  options.stop = stop.get_token();
  const std::array devices{NamedDevice{"REF:0", &*device_}};
  EXPECT_TRUE(RuntimeExecutor::pack(model_.model(), *placement, devices, options).ok());
  stop.request_stop();
  EXPECT_EQ(RuntimeExecutor::pack(model_.model(), *placement, devices, options).error().code(), MOTLEY_CANCELLED);
  EXPECT_EQ(RuntimeExecutor::create(model_.model(), *placement, devices, options).error().code(), MOTLEY_CANCELLED);
}

// NPU:1 is in NPU:10's name, and so in what is said of that.
TEST_F(RuntimeExecutorTest, ProgramThatDoesNotCompile_IsToldOfItsDeviceAlone) {
  const std::string npu = "memory_bytes = 1073741824\nbandwidth_gb_s = 40\ngflops = {f32 = 50}\n";
  const testing::SimFile well_file(npu), ill_file(npu + "[[fault]]\nwhat = \"compile\"\n");
  const Device well = well_file.open(), ill = ill_file.open();
  auto placement = plan_single_device(model_.model(), {"NPU:1", 4ull << 30, 4ull << 30, 64ull << 20, 1 << 16}, plan_);
  ASSERT_TRUE(placement.ok()) << placement.error().message();
  std::vector<Stage>& stages = placement->lanes[0].stages;
  stages.push_back(stages[0]);
  stages[0].layer_end = stages[1].layer_begin = 1;
  const auto told_of = [&](const std::string& first, const std::string& second) {
    stages[0].shards[0].device = stages[0].kv_owners[0] = first;
    stages[1].shards[0].device = stages[1].kv_owners[0] = second;
    const std::array devices{NamedDevice{"NPU:1", &well}, NamedDevice{"NPU:10", &ill}};
    std::string told;
    RuntimeOptions options;
    options.part_failed = [&](const std::string& device) { told += device + ";"; };
    const Status made = RuntimeExecutor::create(model_.model(), *placement, devices, options).error();
    EXPECT_EQ(made.ok(), told.empty()) << made.message();
    return told;
  };
  EXPECT_EQ(told_of("NPU:1", "NPU:10"), "NPU:10;");
  EXPECT_EQ(told_of("NPU:10", "NPU:1"), "NPU:10;");
  EXPECT_EQ(told_of("NPU:1", "NPU:1"), "");
}

// Two lanes of a device that compiles, 10 s for a program and row count: two layers are three programs, 30 s.
TEST_F(RuntimeExecutorTest, ProgramsOfAllLanes_CompileOnceAndWithinTheLimit) {
  const testing::SimFile file(
      "kind = \"npu\"\nmemory_bytes = 1000000000\nbandwidth_gb_s = 10\ngflops = {f32 = 10}\ndynamic_rows = false\n"
      "paged_attention = false\ncompile_s = 10\ncompile_max_s = 10\n");
  auto placement = plan_single_device(model_.model(), {"REF:0", 4ull << 30, 4ull << 30, 64ull << 20, 1 << 16}, plan_);
  ASSERT_TRUE(placement.ok()) << placement.error().message();
  Stage& stage = placement->lanes[0].stages[0];
  stage.shards.push_back(stage.shards[0]);
  Shard &dense = stage.shards[0], &rest = stage.shards[1];
  dense.device = "NPU:0", dense.partner = "REF:0", dense.vocab_rows = {};
  rest.kv_heads = rest.ffn_columns = {};
  Placement alike = *placement;
  alike.lanes.push_back(alike.lanes[0]);
  alike.lanes[1].pool = 1;
  Placement unlike = alike;
  std::vector<Shard>& shares = unlike.lanes[1].stages[0].shards;
  const int64_t columns = shares[0].ffn_columns[0].end;
  shares[0].ffn_columns = {{0, columns / 2}}, shares[1].ffn_columns = {{columns / 2, columns}};
  std::string told;
  struct Made {
    Status status;
    std::vector<size_t> buckets;  // [lane]
    uint64_t compile_s = 0;
  };
  const auto made_of = [&](const Placement& of, double seconds, const std::vector<uint32_t>& measured = {}) {
    const Device npu = file.open();
    const std::array devices{NamedDevice{"REF:0", &*device_},
                             NamedDevice{.name = "NPU:0", .device = &npu, .any_rows = false}};
    RuntimeOptions options;
    options.rows_max = 64, options.logit_rows_max = 4, options.compile_seconds_max = seconds;
    options.part_failed = [&](const std::string& device) { told += device; };
    if (!measured.empty()) options.row_counts["NPU:0"] = measured;
    const auto runtime = RuntimeExecutor::create(model_.model(), of, devices, options);
    Made made{runtime.error(), {}, 0};
    if (!runtime.ok()) return made;
    for (const LaneDescription& lane : (*runtime)->describe().lanes) made.buckets.push_back(lane.buckets.size());
    made.compile_s = npu.stats()->compile_ns / 1'000'000'000;
    return made;
  };
  const Made one = made_of(*placement, 150), both = made_of(alike, 150), apart = made_of(unlike, 150);
  ASSERT_TRUE(one.status.ok() && both.status.ok() && apart.status.ok())
      << one.status.message() << both.status.message() << apart.status.message();
  EXPECT_EQ(one.buckets, std::vector<size_t>{5});
  EXPECT_EQ(one.compile_s, 150u);
  EXPECT_EQ(both.buckets, (std::vector<size_t>{5, 5}));
  EXPECT_EQ(both.compile_s, 150u) << "once for both";
  EXPECT_EQ(apart.buckets[0], apart.buckets[1]);
  EXPECT_LT(apart.buckets[0], 5u);
  EXPECT_LE(apart.compile_s, 150u);
  EXPECT_GT(apart.compile_s, 30 * apart.buckets[0]);
  const Made few = made_of(unlike, 1000, {4, 64});
  EXPECT_EQ(few.buckets, (std::vector<size_t>{2, 2})) << "no more than it was measured with: " << few.status.message();
  EXPECT_EQ(made_of(alike, 30).status.message(), "");
  EXPECT_EQ(told, "");
  const Status none = made_of(unlike, 30).status;
  EXPECT_EQ(none.code(), MOTLEY_UNIMPLEMENTED);
  EXPECT_NE(none.message().find("in all lanes of the plan: programs of 64 rows alone"), std::string::npos)
      << none.message();
  EXPECT_EQ(told, "NPU:0");
}

TEST_F(RuntimeExecutorTest, Destroyed_FinishesWhatIsUnderWay) {
  auto first = runtime_->submit(plan(1, {1, 2, 3}, {-1, -1, -1}, 3, 0));
  runtime_.reset();
  EXPECT_TRUE(first.take().status.ok());
}

TEST_F(RuntimeExecutorTest, PlacementThatDoesNotFit_IsRefused) {
  const auto placement =
      plan_single_device(model_.model(), {"REF:0", 4ull << 30, 4ull << 30, 64ull << 20, 1 << 16}, plan_);
  const std::array devices{NamedDevice{"REF:0", &*device_}};
  const auto refuse = [&](const std::function<void(Lane&)>& change) {
    Placement broken = *placement;
    change(broken.lanes[0]);
    return RuntimeExecutor::create(model_.model(), broken, devices, {}).error().code();
  };
  EXPECT_EQ(refuse([](Lane& lane) { lane.stages.push_back(lane.stages[0]); }), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(refuse([](Lane& lane) { lane.stages[0].layer_end -= 1; }), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(refuse([](Lane& lane) { lane.stages[0].shards[0].device = "GPU:7"; }), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(refuse([](Lane& lane) { lane.stages[0].shards[0].kv_heads = {}; }), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(refuse([](Lane& lane) { lane.stages[0].shards.push_back(lane.stages[0].shards[0]); }),
            MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(refuse([](Lane& lane) { lane.stages[0].shards[0].vocab_rows[0].end += 1; }), MOTLEY_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace motley
