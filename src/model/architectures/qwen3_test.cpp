#include <gtest/gtest.h>

#include "model/gguf_model.hpp"
#include "model/gguf_test_file.hpp"
#include "model/graph_test_checks.hpp"

namespace motley {
namespace {

using namespace testing_files;  // NOLINT(google-build-using-namespace): the words of the tests

TEST(Qwen3, Graph_NormsHeadsBeforeRope) {
  const std::string bytes = small_model("qwen3", true).bytes();
  const auto model = load_model_from_bytes(std::as_bytes(std::span(bytes)), "stem");
  ASSERT_TRUE(model.ok()) << model.error().to_string();
  expect_well_formed(**model);
  const Graph& graph = (*model)->graph();
  EXPECT_EQ(
      kinds(graph),
      (std::vector<int32_t>{
          MOTLEY_OP_EMBED,           MOTLEY_OP_RMSNORM,  MOTLEY_OP_MATMUL,  MOTLEY_OP_MATMUL,  MOTLEY_OP_MATMUL,
          MOTLEY_OP_RMSNORM,         MOTLEY_OP_ROPE,     MOTLEY_OP_RMSNORM, MOTLEY_OP_ROPE,    MOTLEY_OP_KV_WRITE,
          MOTLEY_OP_PAGED_ATTENTION, MOTLEY_OP_MATMUL,   MOTLEY_OP_ADD,     MOTLEY_OP_RMSNORM, MOTLEY_OP_MATMUL,
          MOTLEY_OP_MATMUL,          MOTLEY_OP_SILU_MUL, MOTLEY_OP_MATMUL,  MOTLEY_OP_ADD,     MOTLEY_OP_SELECT_ROWS,
          MOTLEY_OP_RMSNORM,         MOTLEY_OP_MATMUL,   MOTLEY_OP_SAMPLE}));
  EXPECT_EQ(weight_of(graph, graph.nodes[5]).name, "blk.0.attn_q_norm.weight");
  EXPECT_EQ(weight_of(graph, graph.nodes[7]).name, "blk.0.attn_k_norm.weight");
  EXPECT_EQ(graph.nodes[5].op.attr.norm.group, 4);
  EXPECT_EQ(graph.nodes[6].op.attr.rope.style, MOTLEY_ROPE_NEOX);
  EXPECT_EQ(graph.nodes[8].op.attr.rope.style, MOTLEY_ROPE_NEOX);
  EXPECT_EQ(find_weight(graph, "blk.0.attn_q_norm.weight").cols, 4);
}

TEST(Qwen3, MissingHeadNorm_IsRefusedByName) {
  const std::string bytes = small_model("qwen3").bytes();
  const auto model = load_model_from_bytes(std::as_bytes(std::span(bytes)), "stem");
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.error().message(), "tensor 'blk.0.attn_q_norm.weight': is missing; convert the model again");
}

}  // namespace
}  // namespace motley
