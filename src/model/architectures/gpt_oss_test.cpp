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
  TestFile file = small_model("gpt-oss");
  add_qkv_biases(&file);
  use_experts(&file, "gpt-oss");
  file.erase_tensor("blk.0.ffn_norm.weight");
  file.add("blk.0.post_attention_norm.weight", {8});
  file.add("blk.0.attn_sinks.weight", {2});
  file.add("blk.0.attn_output.bias", {8});
  file.add("blk.0.ffn_gate_inp.bias", {4});
  file.add("blk.0.ffn_gate_exps.bias", {6, 4});
  file.add("blk.0.ffn_up_exps.bias", {6, 4});
  file.add("blk.0.ffn_down_exps.bias", {8, 4});
  file.set("gpt-oss.attention.sliding_window", u32(8));
  return file;
}

TEST(GptOss, Graph_HasSinksBiasesAndClampedExperts) {
  const std::string bytes = small().bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  const Graph& graph = model->graph();
  EXPECT_EQ(kinds(graph, Part::kFfn),
            (std::vector<int32_t>{MOTLEY_OP_RMSNORM, MOTLEY_OP_MATMUL, MOTLEY_OP_TOPK_ROUTER, MOTLEY_OP_GROUPED_MATMUL,
                                  MOTLEY_OP_GROUPED_MATMUL, MOTLEY_OP_CLAMPED_SWIGLU, MOTLEY_OP_GROUPED_MATMUL,
                                  MOTLEY_OP_COMBINE_EXPERTS, MOTLEY_OP_ADD}));
  EXPECT_EQ(weight_name(graph, *nodes_of(graph, MOTLEY_OP_PAGED_ATTENTION)[0]), "blk.0.attn_sinks.weight");
  const auto& glu = nodes_of(graph, MOTLEY_OP_CLAMPED_SWIGLU)[0]->op.attr.glu;
  EXPECT_EQ(glu.alpha, 1.702f);
  EXPECT_EQ(glu.limit, 7.0f);
  EXPECT_EQ(nodes_of(graph, MOTLEY_OP_TOPK_ROUTER)[0]->op.attr.router.gating, 3);
  const auto grouped = nodes_of(graph, MOTLEY_OP_GROUPED_MATMUL);
  EXPECT_EQ(weight_name(graph, *grouped[2], 1), "blk.0.ffn_down_exps.bias");
  const GraphWeight& bias = find_weight(graph, "blk.0.ffn_down_exps.bias");
  EXPECT_EQ(bias.rows, 1);
  EXPECT_EQ(bias.cols, 32);
}

TEST(GptOss, EveryMissingBias_IsRefusedByName) {
  for (const TestTensor& tensor : small().tensors) {
    if (!tensor.name.ends_with(".bias")) continue;
    TestFile file = small();
    file.erase_tensor(tensor.name);
    EXPECT_THAT(refusal(file.bytes()), HasSubstr("tensor '" + tensor.name + "': is missing"));
  }
}

TEST(GptOss, BiasOfTooFewExperts_IsRefusedByName) {
  TestFile file = small();
  file.tensor("blk.0.ffn_up_exps.bias").dims = {6, 3};
  EXPECT_THAT(refusal(file.bytes()), HasSubstr("tensor 'blk.0.ffn_up_exps.bias'"));
}

TEST(GptOss, EvenLayers_SeeAWindow) {
  TestFile file = small();
  repeat_layer(&file, "gpt-oss", 2);
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->kv_layers()[0].window, 8u);
  EXPECT_EQ(model->kv_layers()[1].window, 0u);
}

TEST(GptOss, YarnRamp_IsNotRounded) {
  TestFile file = small();
  file.set("gpt-oss.rope.freq_base", f32(150000));
  file.set("gpt-oss.rope.scaling.type", text("yarn"));
  file.set("gpt-oss.rope.scaling.factor", f32(32));
  file.set("gpt-oss.rope.scaling.original_context_length", u32(4096));
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  const auto& rope = nodes_of(model->graph(), MOTLEY_OP_ROPE)[0]->op.attr.rope;
  const double pi = std::acos(-1.0);
  EXPECT_NEAR(rope.yarn_low, 4 * std::log(4096 / (2 * pi * 32)) / (2 * std::log(150000.0)), 1e-6);
  EXPECT_NEAR(rope.yarn_high, 4 * std::log(4096 / (2 * pi)) / (2 * std::log(150000.0)), 1e-6);
  EXPECT_NEAR(rope.magnitude, 1 + 0.1 * std::log(32.0), 1e-6);
}

}  // namespace
}  // namespace motley
