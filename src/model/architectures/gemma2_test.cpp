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
  TestFile file = small_model("gemma2");
  file.add("blk.0.post_attention_norm.weight", {8});
  file.add("blk.0.post_ffw_norm.weight", {8});
  return file;
}

TEST(Gemma2, Graph_NormsBeforeAndAfterEachHalf) {
  const std::string bytes = small().bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(
      kinds(model->graph()),
      (std::vector<int32_t>{MOTLEY_OP_EMBED,           MOTLEY_OP_RMSNORM, MOTLEY_OP_MATMUL,  MOTLEY_OP_MATMUL,
                            MOTLEY_OP_MATMUL,          MOTLEY_OP_ROPE,    MOTLEY_OP_ROPE,    MOTLEY_OP_KV_WRITE,
                            MOTLEY_OP_PAGED_ATTENTION, MOTLEY_OP_MATMUL,  MOTLEY_OP_RMSNORM, MOTLEY_OP_ADD,
                            MOTLEY_OP_RMSNORM,         MOTLEY_OP_MATMUL,  MOTLEY_OP_MATMUL,  MOTLEY_OP_GELU_MUL,
                            MOTLEY_OP_MATMUL,          MOTLEY_OP_RMSNORM, MOTLEY_OP_ADD,     MOTLEY_OP_SELECT_ROWS,
                            MOTLEY_OP_RMSNORM,         MOTLEY_OP_MATMUL,  MOTLEY_OP_SOFTCAP, MOTLEY_OP_SAMPLE}));
  const Graph& graph = model->graph();
  EXPECT_FLOAT_EQ(graph.nodes[0].op.attr.embed.scale, std::sqrt(8.0f));
  EXPECT_EQ(nodes_of(graph, MOTLEY_OP_SOFTCAP)[0]->op.attr.scale.factor, 30.0f);
  EXPECT_EQ(graph.logits, nodes_of(graph, MOTLEY_OP_SOFTCAP)[0]->op.out[0]);
  const auto norms = nodes_of(graph, MOTLEY_OP_RMSNORM);
  EXPECT_EQ(weight_name(graph, *norms[1]), "blk.0.post_attention_norm.weight");
  EXPECT_EQ(weight_name(graph, *norms[3]), "blk.0.post_ffw_norm.weight");
}

TEST(Gemma2, EvenLayers_SeeAWindow) {
  TestFile file = small();
  repeat_layer(&file, "gemma2", 4);
  file.set("gemma2.attention.sliding_window", u32(32));
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  const auto attentions = nodes_of(model->graph(), MOTLEY_OP_PAGED_ATTENTION);
  const int32_t windows[] = {32, 0, 32, 0};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(attentions[i]->op.attr.attention.window, windows[i]);
    EXPECT_EQ(attentions[i]->op.attr.attention.softcap, 50.0f);
    EXPECT_EQ(attentions[i]->op.attr.attention.scale, 0.5f);
    EXPECT_EQ(model->kv_layers()[i].window, static_cast<uint32_t>(windows[i]));
  }
}

TEST(Gemma2, LargestModel_ScalesQueriesByItsWidth) {
  TestFile file = small();
  file.set("gemma2.attention.key_length", u32(2));
  file.set("gemma2.attention.value_length", u32(2));
  file.tensor("blk.0.attn_q.weight") = {"blk.0.attn_q.weight", {8, 4}, MOTLEY_F32, 128};
  file.tensor("blk.0.attn_k.weight") = {"blk.0.attn_k.weight", {8, 2}, MOTLEY_F32, 64};
  file.tensor("blk.0.attn_v.weight") = {"blk.0.attn_v.weight", {8, 2}, MOTLEY_F32, 64};
  file.tensor("blk.0.attn_output.weight") = {"blk.0.attn_output.weight", {4, 8}, MOTLEY_F32, 128};
  repeat_layer(&file, "gemma2", 46);
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  // 1 / sqrt(8 / 2), where the head dimension alone would give 1 / sqrt(2).
  EXPECT_EQ(nodes_of(model->graph(), MOTLEY_OP_PAGED_ATTENTION)[0]->op.attr.attention.scale, 0.5f);
}

}  // namespace
}  // namespace motley
