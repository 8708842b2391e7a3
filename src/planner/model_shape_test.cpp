#include "planner/model_shape.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace motley {
namespace {

// Two layers of 4 query heads on 2 KV heads of 8, 96 columns, 50 words; f32 unless said.
class WeightsModel : public Model {
 public:
  WeightsModel(bool tied, int32_t down_dtype) {
    config_.name = "weights";
    config_.layers = 2, config_.hidden = 32, config_.vocab_size = 50, config_.heads = 4, config_.kv_heads = 2;
    config_.head_dim = 8, config_.ffn = 96, config_.tied_head = tied;
    add("token_embd.weight", 50, 32, Axis::kVocab, Axis::kHidden, -1);
    if (!tied) add("output.weight", 50, 32, Axis::kVocab, Axis::kHidden, -1);
    add("output_norm.weight", 1, 32, Axis::kNone, Axis::kHidden, -1);
    for (int32_t l = 0; l < 2; ++l) {
      const std::string blk = "blk." + std::to_string(l) + ".";
      add(blk + "attn_norm.weight", 1, 32, Axis::kNone, Axis::kHidden, l);
      add(blk + "attn_q.weight", 32, 32, Axis::kHeads, Axis::kHidden, l);
      add(blk + "attn_k.weight", 16, 32, Axis::kKvHeads, Axis::kHidden, l);
      add(blk + "attn_v.weight", 16, 32, Axis::kKvHeads, Axis::kHidden, l);
      add(blk + "attn_output.weight", 32, 32, Axis::kHidden, Axis::kHeads, l);
      add(blk + "ffn_gate.weight", 96, 32, Axis::kFfn, Axis::kHidden, l);
      add(blk + "ffn_up.weight", 96, 32, Axis::kFfn, Axis::kHidden, l);
      add(blk + "ffn_down.weight", 32, 96, Axis::kHidden, Axis::kFfn, l);
      sources_.back().dtype = down_dtype;
      kv_.push_back({2, 8, l == 0 ? 128u : 0u});
    }
  }
  const ModelConfig& config() const override { return config_; }
  const Graph& graph() const override { return graph_; }
  const std::vector<KvLayer>& kv_layers() const override { return kv_; }
  const WeightSource& weight(size_t i) const override { return sources_[i]; }
  Result<WeightBytes> read(size_t) const override { return error(MOTLEY_UNIMPLEMENTED, "a model of sizes alone"); }
  const TokenizerData& tokenizer() const override { return tokenizer_; }
  uint64_t file_bytes() const override { return 0; }
  void release(size_t) const override {}

  uint64_t bytes() const {
    uint64_t sum = 0;
    for (const WeightSource& source : sources_) sum += source.bytes;
    return sum;
  }
  std::vector<KvLayer> kv_;

 private:
  void add(std::string name, int64_t rows, int64_t cols, Axis row, Axis col, int32_t layer) {
    graph_.weights.push_back({std::move(name), 1, rows, cols, row, col, 1, layer});
    sources_.push_back({MOTLEY_F32, 1, rows, cols, static_cast<uint64_t>(4 * rows * cols)});
  }
  ModelConfig config_;
  Graph graph_;
  std::vector<WeightSource> sources_;
  TokenizerData tokenizer_;
};

TEST(ModelShape, EveryByteIsCountedOnce) {
  for (const bool tied : {false, true}) {
    const WeightsModel model(tied, MOTLEY_F32);
    const auto shape = shape_of(model);
    ASSERT_TRUE(shape.ok()) << shape.error().message();
    EXPECT_EQ(shape->weight_bytes(), model.bytes());
    EXPECT_EQ(shape->layers[0].query_head_bytes, 2u * 8 * 32 * 4);
    EXPECT_EQ(shape->layers[0].kv_head_bytes, 2u * 8 * 32 * 4);
    EXPECT_EQ(shape->layers[0].ffn_column_bytes, 3.0 * 32 * 4);
    EXPECT_EQ(shape->layers[0].replicated_bytes, 128u);
    EXPECT_EQ(shape->kinds(), 2u);  // one has a window
    EXPECT_EQ(shape->head_bytes, 6400u);
  }
}

TEST(ModelShape, ColumnsAreCutAtWholeSubBlocks) {
  EXPECT_EQ(shape_of(WeightsModel(true, MOTLEY_Q4_K))->ffn_unit, 32);  // 64 does not divide 96
  EXPECT_EQ(shape_of(WeightsModel(true, MOTLEY_Q6_K))->ffn_unit, 32);
  EXPECT_EQ(shape_of(WeightsModel(true, MOTLEY_F32))->ffn_unit, 32);
}

TEST(ModelShape, LayersOfUnlikeHeads_AreRefused) {
  WeightsModel model(true, MOTLEY_F32);
  model.kv_[1].kv_heads = 1;
  EXPECT_EQ(shape_of(model).error().code(), MOTLEY_UNIMPLEMENTED);
}

}  // namespace
}  // namespace motley
