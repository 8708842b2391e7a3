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
  TestFile file = small_model("gemma3", true);
  file.add("blk.0.post_attention_norm.weight", {8});
  file.add("blk.0.post_ffw_norm.weight", {8});
  file.set("gemma3.attention.sliding_window", u32(16));
  file.set("gemma3.rope.freq_base", f32(1000000));
  return file;
}

TEST(Gemma3, Graph_NormsHeadsAndBothSidesOfEachHalf) {
  const std::string bytes = small().bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  const Graph& graph = model->graph();
  EXPECT_EQ(
      kinds(graph, Part::kAttention),
      (std::vector<int32_t>{MOTLEY_OP_RMSNORM, MOTLEY_OP_MATMUL, MOTLEY_OP_MATMUL, MOTLEY_OP_MATMUL, MOTLEY_OP_RMSNORM,
                            MOTLEY_OP_ROPE, MOTLEY_OP_RMSNORM, MOTLEY_OP_ROPE, MOTLEY_OP_KV_WRITE,
                            MOTLEY_OP_PAGED_ATTENTION, MOTLEY_OP_MATMUL, MOTLEY_OP_RMSNORM, MOTLEY_OP_ADD}));
  EXPECT_EQ(kinds(graph, Part::kFfn),
            (std::vector<int32_t>{MOTLEY_OP_RMSNORM, MOTLEY_OP_MATMUL, MOTLEY_OP_MATMUL, MOTLEY_OP_GELU_MUL,
                                  MOTLEY_OP_MATMUL, MOTLEY_OP_RMSNORM, MOTLEY_OP_ADD}));
  EXPECT_TRUE(nodes_of(graph, MOTLEY_OP_SOFTCAP).empty());
  EXPECT_FLOAT_EQ(graph.nodes[0].op.attr.embed.scale, std::sqrt(8.0f));
}

TEST(Gemma3, EverySixthLayer_SeesEverythingWithARopeOfItsOwn) {
  TestFile file = small();
  repeat_layer(&file, "gemma3", 12);
  file.set("gemma3.rope.scaling.type", text("linear"));
  file.set("gemma3.rope.scaling.factor", f32(8));
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  for (const GraphNode* node : nodes_of(model->graph(), MOTLEY_OP_PAGED_ATTENTION)) {
    EXPECT_EQ(node->op.attr.attention.window, node->layer % 6 == 5 ? 0 : 16) << node->layer;
  }
  for (const GraphNode* node : nodes_of(model->graph(), MOTLEY_OP_ROPE)) {
    const bool global = node->layer % 6 == 5;
    EXPECT_EQ(node->op.attr.rope.base, global ? 1000000.0f : 10000.0f) << node->layer;
    EXPECT_EQ(node->op.attr.rope.position_scale, global ? 0.125f : 1.0f) << node->layer;
  }
}

TEST(Gemma3, Keys_MayNameTheBaseAndThePattern) {
  TestFile file = small();
  repeat_layer(&file, "gemma3", 3);
  file.set("gemma3.rope.freq_base_swa", f32(5000));
  file.set("gemma3.attention.sliding_window_pattern", array(GgufType::kBool, 3, std::string("\x01\x00\x01", 3)));
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  const auto ropes = nodes_of(model->graph(), MOTLEY_OP_ROPE);
  EXPECT_EQ(ropes[0]->op.attr.rope.base, 5000.0f);
  EXPECT_EQ(ropes[2]->op.attr.rope.base, 1000000.0f);
  EXPECT_EQ(model->kv_layers()[1].window, 0u);
  EXPECT_EQ(model->kv_layers()[2].window, 16u);
}

}  // namespace
}  // namespace motley
