#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "model/gguf_test_file.hpp"
#include "model/graph_test_checks.hpp"

namespace motley {
namespace {

using namespace testing_files;  // NOLINT(google-build-using-namespace): the words of the tests
using ::testing::HasSubstr;

TestFile small() {
  TestFile file = small_model("phi3");
  for (const char* name : {"attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"}) {
    file.erase_tensor("blk.0." + std::string(name) + ".weight");
  }
  file.add("blk.0.attn_qkv.weight", {8, 16});
  file.add("blk.0.ffn_up.weight", {8, 24});
  return file;
}

TEST(Phi3, Graph_SplitsWhatIsInOneMatrix) {
  const std::string bytes = small().bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  const Graph& graph = model->graph();
  EXPECT_EQ(kinds(graph, Part::kAttention),
            (std::vector<int32_t>{MOTLEY_OP_RMSNORM, MOTLEY_OP_MATMUL, MOTLEY_OP_SPLIT, MOTLEY_OP_ROPE, MOTLEY_OP_ROPE,
                                  MOTLEY_OP_KV_WRITE, MOTLEY_OP_PAGED_ATTENTION, MOTLEY_OP_MATMUL, MOTLEY_OP_ADD}));
  EXPECT_EQ(kinds(graph, Part::kFfn), (std::vector<int32_t>{MOTLEY_OP_RMSNORM, MOTLEY_OP_MATMUL, MOTLEY_OP_SPLIT,
                                                            MOTLEY_OP_SILU_MUL, MOTLEY_OP_MATMUL, MOTLEY_OP_ADD}));
  const auto splits = nodes_of(graph, MOTLEY_OP_SPLIT);
  expect_shape(graph, splits[0]->op.out[0], MOTLEY_F32, {MOTLEY_DIM_ROWS, 8});
  expect_shape(graph, splits[0]->op.out[2], MOTLEY_F32, {MOTLEY_DIM_ROWS, 4});
  // The gate's rows come first.
  EXPECT_EQ(nodes_of(graph, MOTLEY_OP_SILU_MUL)[0]->op.in[0], splits[1]->op.out[0]);
  EXPECT_EQ(nodes_of(graph, MOTLEY_OP_SILU_MUL)[0]->op.in[1], splits[1]->op.out[1]);
}

TEST(Phi3, PartOfAHead_IsRotated) {
  TestFile file = small();
  file.set("phi3.rope.dimension_count", u32(2));
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  const auto& rope = nodes_of(model->graph(), MOTLEY_OP_ROPE)[0]->op.attr.rope;
  EXPECT_EQ(rope.n_rot, 2);
  EXPECT_EQ(rope.head_dim, 4);
  EXPECT_EQ(rope.style, MOTLEY_ROPE_NEOX);
}

TEST(Phi3, ServedLength_ChoosesTheDivisors) {
  TestFile file = small();
  file.set("phi3.rope.scaling.original_context_length", u32(16));
  file.set("phi3.rope.scaling.attn_factor", f32(1.25f));
  file.add("rope_factors_long.weight", {2});
  file.add("rope_factors_short.weight", {2});
  const std::string bytes = file.bytes();
  const std::pair<uint32_t, const char*> cases[] = {
      {0, "rope_factors_long.weight"}, {17, "rope_factors_long.weight"}, {16, "rope_factors_short.weight"}};
  for (const auto& [length, name] : cases) {
    const auto model = load_well_formed(bytes, {.max_model_len = length});
    ASSERT_NE(model, nullptr);
    const GraphNode& rope = *nodes_of(model->graph(), MOTLEY_OP_ROPE)[1];
    EXPECT_EQ(weight_name(model->graph(), rope), name) << length;
    EXPECT_EQ(rope.op.attr.rope.magnitude, 1.25f);
    EXPECT_EQ(rope.op.attr.rope.position_scale, 1.0f);
  }
}

TEST(Phi3, Window_HoldsForEveryLayer) {
  TestFile file = small();
  repeat_layer(&file, "phi3", 2);
  file.set("phi3.attention.sliding_window", u32(20));
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  for (const GraphNode* node : nodes_of(model->graph(), MOTLEY_OP_PAGED_ATTENTION)) {
    EXPECT_EQ(node->op.attr.attention.window, 20);
  }
}

}  // namespace
}  // namespace motley
