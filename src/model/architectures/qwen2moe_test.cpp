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
  TestFile file = small_model("qwen2moe");
  add_qkv_biases(&file);
  use_experts(&file, "qwen2moe");
  file.set("qwen2moe.expert_shared_feed_forward_length", u32(10));
  file.add("blk.0.ffn_gate_inp_shexp.weight", {8});
  file.add("blk.0.ffn_gate_shexp.weight", {8, 10});
  file.add("blk.0.ffn_up_shexp.weight", {8, 10});
  file.add("blk.0.ffn_down_shexp.weight", {10, 8});
  return file;
}

TEST(Qwen2Moe, Ffn_AddsTheSharedExpertToTheChosenOnes) {
  const std::string bytes = small().bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  const Graph& graph = model->graph();
  EXPECT_EQ(
      kinds(graph, Part::kFfn),
      (std::vector<int32_t>{MOTLEY_OP_RMSNORM, MOTLEY_OP_MATMUL, MOTLEY_OP_TOPK_ROUTER, MOTLEY_OP_GROUPED_MATMUL,
                            MOTLEY_OP_GROUPED_MATMUL, MOTLEY_OP_SILU_MUL, MOTLEY_OP_GROUPED_MATMUL,
                            MOTLEY_OP_COMBINE_EXPERTS, MOTLEY_OP_MATMUL, MOTLEY_OP_MATMUL, MOTLEY_OP_SILU_MUL,
                            MOTLEY_OP_MATMUL, MOTLEY_OP_MATMUL, MOTLEY_OP_SIGMOID_MUL, MOTLEY_OP_ADD, MOTLEY_OP_ADD}));
  const auto& router = nodes_of(graph, MOTLEY_OP_TOPK_ROUTER)[0]->op.attr.router;
  EXPECT_EQ(router.experts, 4);
  EXPECT_EQ(router.top_k, 2);
  EXPECT_EQ(router.gating, 1);
  EXPECT_EQ(router.normalise, 0);
  EXPECT_EQ(router.scale, 1.0f);
  const GraphNode& sigmoid = *nodes_of(graph, MOTLEY_OP_SIGMOID_MUL)[0];
  expect_shape(graph, sigmoid.op.in[1], MOTLEY_F32, {MOTLEY_DIM_ROWS, 1});
  EXPECT_EQ(find_weight(graph, "blk.0.ffn_up_shexp.weight").rows, 10);
}

TEST(Qwen2Moe, NoExperts_AreRefused) {
  TestFile file = small_model("qwen2moe");
  add_qkv_biases(&file);
  EXPECT_THAT(refusal(file.bytes()), HasSubstr("name no experts"));
}

}  // namespace
}  // namespace motley
