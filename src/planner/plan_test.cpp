#include "planner/plan.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace motley {
namespace {

// A model of one weight: the planner reads sizes only.
class SizedModel : public Model {
 public:
  explicit SizedModel(size_t bytes) : bytes_(bytes) {
    config_.name = "sized";
    config_.layers = 4;
    config_.kv_heads = 2;
    config_.ffn = 96;
    config_.vocab_size = 50;
    graph_.weights.push_back({.name = "ffn_down", .rows = 64, .cols = 96, .col_axis = Axis::kFfn});
    weight_.bytes = bytes_;
  }
  const ModelConfig& config() const override { return config_; }
  const Graph& graph() const override { return graph_; }
  const std::vector<KvLayer>& kv_layers() const override { return kv_; }
  const WeightSource& weight(size_t) const override { return weight_; }
  Result<WeightBytes> read(size_t) const override { return error(MOTLEY_UNIMPLEMENTED, "a model of sizes alone"); }
  const TokenizerData& tokenizer() const override { return tokenizer_; }
  uint64_t file_bytes() const override { return bytes_; }
  void release(size_t) const override {}

 private:
  size_t bytes_;
  ModelConfig config_;
  Graph graph_;
  WeightSource weight_;
  std::vector<KvLayer> kv_;
  TokenizerData tokenizer_;
};

constexpr uint64_t kGiB = 1ull << 30;
constexpr uint64_t kStep = 64ull << 20;

TEST(PlanSingleDevice, Fits_CoversEveryUnitOnce) {
  const auto placement = plan_single_device(SizedModel(kGiB), {"CPU:0", 16 * kGiB, 8 * kGiB, kStep, 1 << 20}, {});
  ASSERT_TRUE(placement.ok()) << placement.error().message();
  ASSERT_EQ(placement->lanes.size(), 1u);
  const Lane& lane = placement->lanes[0];
  EXPECT_EQ(lane.kv_blocks, 1907u);  // min(2 GB, 8 GiB / 4) of 1 MiB blocks
  ASSERT_EQ(lane.stages.size(), 1u);
  EXPECT_EQ(lane.stages[0].layer_end, 4u);
  EXPECT_EQ(lane.stages[0].shards[0].ffn_columns[0].end, 96);
  EXPECT_EQ(lane.stages[0].kv_owners, std::vector<std::string>{"CPU:0"});
}

TEST(PlanSingleDevice, DefaultPool_IsAQuarterOfFreeMemoryAndNoMoreThanWhatIsLeft) {
  EXPECT_EQ(plan_single_device(SizedModel(kGiB), {"CPU:0", 4 * kGiB, 4 * kGiB, kStep, 1 << 20}, {})->lanes[0].kv_blocks,
            1024u);
  const auto tight =
      plan_single_device(SizedModel(3 * kGiB), {"CPU:0", 4 * kGiB, 3 * kGiB + (128ull << 20), kStep, 1 << 20}, {});
  EXPECT_EQ(tight->lanes[0].kv_blocks, 64u);
}

TEST(PlanSingleDevice, DefaultPoolInMemoryOfItsOwn_IsMostOfWhatWeightsAndAStepLeave) {
  const PlanDevice gpu{"GPU:0", 16 * kGiB, 16 * kGiB, kStep, 1 << 20, true};
  const auto placement = plan_single_device(SizedModel(7 * kGiB), gpu, {});
  EXPECT_EQ(placement->lanes[0].kv_blocks, (9 * 1024 - 64) / 8 * 7u);
}

TEST(PlanSingleDevice, ModelTooLarge_SaysHowMuchIsMissing) {
  const Status refused = plan_single_device(SizedModel(2 * kGiB), {"CPU:0", kGiB, kGiB, kStep, 1 << 20}, {}).error();
  EXPECT_EQ(refused.code(), MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_NE(refused.message().find("1.1 GiB missing"), std::string::npos) << refused.message();
}

TEST(PlanSingleDevice, PoolSmallerThanTheContextAskedFor_IsRefusedWithTheBytesThatWouldDo) {
  PlanOptions options;
  options.kv_bytes = 10 << 20;
  options.max_model_len = 1000;
  const Status refused =
      plan_single_device(SizedModel(kGiB), {"CPU:0", 8 * kGiB, 8 * kGiB, kStep, 1 << 20}, options).error();
  EXPECT_EQ(refused.code(), MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_NE(refused.message().find(std::to_string(63ull << 20)), std::string::npos) << refused.message();
}

TEST(PlanSingleDevice, PoolBeyondTheFreeMemory_IsRefused) {
  PlanOptions options;
  options.kv_bytes = 8 * kGiB;
  EXPECT_FALSE(plan_single_device(SizedModel(kGiB), {"CPU:0", 8 * kGiB, 8 * kGiB, kStep, 1 << 20}, options).ok());
}

}  // namespace
}  // namespace motley
