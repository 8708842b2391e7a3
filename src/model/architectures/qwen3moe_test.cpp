#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "model/gguf_test_file.hpp"
#include "model/graph_test_checks.hpp"

namespace motley {
namespace {

using namespace testing_files;  // NOLINT(google-build-using-namespace): the words of the tests
using ::testing::HasSubstr;

TEST(Qwen3Moe, Ffn_GoesToTheChosenExperts) {
  TestFile file = small_model("qwen3moe", true);
  use_experts(&file, "qwen3moe");
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  const Graph& graph = model->graph();
  EXPECT_EQ(kinds(graph, Part::kFfn),
            (std::vector<int32_t>{MOTLEY_OP_RMSNORM, MOTLEY_OP_MATMUL, MOTLEY_OP_TOPK_ROUTER, MOTLEY_OP_GROUPED_MATMUL,
                                  MOTLEY_OP_GROUPED_MATMUL, MOTLEY_OP_SILU_MUL, MOTLEY_OP_GROUPED_MATMUL,
                                  MOTLEY_OP_COMBINE_EXPERTS, MOTLEY_OP_ADD}));
  EXPECT_EQ(nodes_of(graph, MOTLEY_OP_TOPK_ROUTER)[0]->op.attr.router.normalise, 1);
  const auto grouped = nodes_of(graph, MOTLEY_OP_GROUPED_MATMUL);
  expect_shape(graph, grouped[0]->op.in[1], MOTLEY_I32, {MOTLEY_DIM_ROWS, 2});
  expect_shape(graph, grouped[0]->op.out[0], MOTLEY_F32, {MOTLEY_DIM_ROWS, 2, 6});
  expect_shape(graph, grouped[2]->op.out[0], MOTLEY_F32, {MOTLEY_DIM_ROWS, 2, 8});
  const GraphWeight& down = find_weight(graph, "blk.0.ffn_down_exps.weight");
  EXPECT_EQ(down.experts, 4);
  EXPECT_EQ(down.rows, 8);
  EXPECT_EQ(down.cols, 6);
  EXPECT_EQ(weight_name(graph, *nodes_of(graph, MOTLEY_OP_RMSNORM)[1]), "blk.0.attn_q_norm.weight");
}

TEST(Qwen3Moe, GateAndUpInOne_AreSplit) {
  TestFile file = small_model("qwen3moe", true);
  use_experts(&file, "qwen3moe");
  file.erase_tensor("blk.0.ffn_gate_exps.weight");
  file.erase_tensor("blk.0.ffn_up_exps.weight");
  file.add("blk.0.ffn_gate_up_exps.weight", {8, 12, 4});
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  const GraphNode& split = *nodes_of(model->graph(), MOTLEY_OP_SPLIT)[0];
  expect_shape(model->graph(), split.op.in[0], MOTLEY_F32, {MOTLEY_DIM_ROWS, 2, 12});
  expect_shape(model->graph(), split.op.out[1], MOTLEY_F32, {MOTLEY_DIM_ROWS, 2, 6});
}

TEST(Qwen3Moe, WrongNumberOfExperts_IsRefusedByName) {
  TestFile file = small_model("qwen3moe", true);
  use_experts(&file, "qwen3moe");
  file.set("qwen3moe.expert_count", u32(3));
  EXPECT_THAT(refusal(file.bytes()), HasSubstr("tensor 'blk.0.ffn_gate_inp.weight'"));
}

}  // namespace
}  // namespace motley
