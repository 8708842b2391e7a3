#include <gtest/gtest.h>

#include <cmath>

#include "model/gguf_model.hpp"
#include "model/gguf_test_file.hpp"
#include "model/graph_test_checks.hpp"

namespace motley {
namespace {

using namespace testing_files;  // NOLINT(google-build-using-namespace): the words of the tests

std::unique_ptr<Model> load(const std::string& bytes) {
  auto model = load_model_from_bytes(std::as_bytes(std::span(bytes)), "stem");
  EXPECT_TRUE(model.ok()) << model.error().to_string();
  return model.ok() ? *std::move(model) : nullptr;
}

TEST(Llama, Graph_IsThePapers) {
  const std::string bytes = small_model("llama").bytes();
  const auto model = load(bytes);
  ASSERT_NE(model, nullptr);
  expect_well_formed(*model);
  EXPECT_EQ(
      kinds(model->graph()),
      (std::vector<int32_t>{
          MOTLEY_OP_EMBED,  MOTLEY_OP_RMSNORM, MOTLEY_OP_MATMUL,      MOTLEY_OP_MATMUL,          MOTLEY_OP_MATMUL,
          MOTLEY_OP_ROPE,   MOTLEY_OP_ROPE,    MOTLEY_OP_KV_WRITE,    MOTLEY_OP_PAGED_ATTENTION, MOTLEY_OP_MATMUL,
          MOTLEY_OP_ADD,    MOTLEY_OP_RMSNORM, MOTLEY_OP_MATMUL,      MOTLEY_OP_MATMUL,          MOTLEY_OP_SILU_MUL,
          MOTLEY_OP_MATMUL, MOTLEY_OP_ADD,     MOTLEY_OP_SELECT_ROWS, MOTLEY_OP_RMSNORM,         MOTLEY_OP_MATMUL,
          MOTLEY_OP_SAMPLE}));
}

TEST(Llama, Attributes_ComeFromTheKeys) {
  TestFile file = small_model("llama");
  file.set("llama.rope.freq_base", f32(100000));
  const std::string bytes = file.bytes();
  const auto model = load(bytes);
  ASSERT_NE(model, nullptr);
  const auto& nodes = model->graph().nodes;
  const auto& rope = nodes[5].op.attr.rope;
  EXPECT_EQ(rope.style, MOTLEY_ROPE_NORM);
  EXPECT_EQ(rope.heads, 2);
  EXPECT_EQ(nodes[6].op.attr.rope.heads, 1);
  EXPECT_EQ(rope.head_dim, 4);
  EXPECT_EQ(rope.n_rot, 4);
  EXPECT_EQ(rope.base, 100000.0f);
  EXPECT_EQ(rope.position_scale, 1.0f);
  EXPECT_EQ(rope.magnitude, 1.0f);
  EXPECT_EQ(rope.yarn_ext_factor, 0.0f);
  EXPECT_EQ(nodes[5].op.weight[0], MOTLEY_NONE);
  EXPECT_EQ(nodes[7].op.attr.kv.kv_heads, 1);
  const auto& attention = nodes[8].op.attr.attention;
  EXPECT_EQ(attention.layer, 0);
  EXPECT_EQ(attention.heads, 2);
  EXPECT_EQ(attention.kv_heads, 1);
  EXPECT_EQ(attention.scale, 0.5f);
  EXPECT_EQ(attention.window, 0);
  EXPECT_EQ(nodes[1].op.attr.norm.group, 8);
  EXPECT_EQ(nodes[1].op.attr.norm.eps, 1e-5f);
}

TEST(Llama, ValuesAndHead_HaveTheirShapes) {
  const std::string bytes = small_model("llama").bytes();
  const auto model = load(bytes);
  ASSERT_NE(model, nullptr);
  const Graph& graph = model->graph();
  expect_shape(graph, graph.token_slots, MOTLEY_I32, {MOTLEY_DIM_SLOTS});
  expect_shape(graph, graph.residual, MOTLEY_F32, {MOTLEY_DIM_ROWS, 8});
  expect_shape(graph, graph.logits, MOTLEY_F32, {MOTLEY_DIM_HEAD_ROWS, 5});
  expect_shape(graph, graph.sampled_ids, MOTLEY_I32, {MOTLEY_DIM_HEAD_ROWS});
  expect_shape(graph, graph.sampled_logprobs, MOTLEY_F32, {MOTLEY_DIM_HEAD_ROWS});
  expect_shape(graph, graph.top_ids, MOTLEY_I32, {MOTLEY_DIM_HEAD_ROWS, MOTLEY_TOP_MAX});
  expect_shape(graph, graph.top_logprobs, MOTLEY_F32, {MOTLEY_DIM_HEAD_ROWS, MOTLEY_TOP_MAX});
  const GraphNode& sample = graph.nodes.back();
  EXPECT_EQ(sample.part, Part::kSample);
  EXPECT_EQ(sample.op.in[0], graph.logits);
  EXPECT_EQ(sample.op.in[1], graph.token_slots);
}

TEST(Llama, Weights_CarryAxesAndUses) {
  const std::string bytes = small_model("llama").bytes();
  const auto model = load(bytes);
  ASSERT_NE(model, nullptr);
  const Graph& graph = model->graph();
  struct Expected {
    const char* name;
    Axis rows, cols;
    uint32_t uses;
    int32_t layer;
  };
  const Expected expected[] = {
      {"token_embd.weight", Axis::kVocab, Axis::kHidden, 3, -1},
      {"blk.0.attn_norm.weight", Axis::kNone, Axis::kHidden, 4, 0},
      {"blk.0.attn_q.weight", Axis::kHeads, Axis::kHidden, 1, 0},
      {"blk.0.attn_k.weight", Axis::kKvHeads, Axis::kHidden, 1, 0},
      {"blk.0.attn_v.weight", Axis::kKvHeads, Axis::kHidden, 1, 0},
      {"blk.0.attn_output.weight", Axis::kHidden, Axis::kHeads, 1, 0},
      {"blk.0.ffn_gate.weight", Axis::kFfn, Axis::kHidden, 1, 0},
      {"blk.0.ffn_down.weight", Axis::kHidden, Axis::kFfn, 1, 0},
      {"output_norm.weight", Axis::kNone, Axis::kHidden, 4, -1},
  };
  for (const Expected& want : expected) {
    const GraphWeight& weight = find_weight(graph, want.name);
    EXPECT_EQ(weight.row_axis, want.rows) << want.name;
    EXPECT_EQ(weight.col_axis, want.cols) << want.name;
    EXPECT_EQ(weight.uses, want.uses) << want.name;
    EXPECT_EQ(weight.layer, want.layer) << want.name;
  }
}

TEST(Llama, OwnOutputMatrix_IsUsedForTheLogits) {
  TestFile file = small_model("llama");
  file.add("output.weight", {8, 5});
  const std::string bytes = file.bytes();
  const auto model = load(bytes);
  ASSERT_NE(model, nullptr);
  const Graph& graph = model->graph();
  EXPECT_FALSE(model->config().tied_head);
  EXPECT_EQ(weight_of(graph, graph.nodes[graph.nodes.size() - 2]).name, "output.weight");
  EXPECT_EQ(find_weight(graph, "token_embd.weight").uses, 2u);
  EXPECT_EQ(find_weight(graph, "output.weight").uses, 1u);
}

TEST(Llama, FrequencyDivisors_AreUsedByEveryRope) {
  TestFile file = small_model("llama");
  file.add("rope_freqs.weight", {2});
  const std::string bytes = file.bytes();
  const auto model = load(bytes);
  ASSERT_NE(model, nullptr);
  for (const size_t node : {5u, 6u}) {
    EXPECT_EQ(weight_of(model->graph(), model->graph().nodes[node]).name, "rope_freqs.weight");
  }
  file.tensor("rope_freqs.weight").dims = {1};
  const std::string misshapen = file.bytes();
  EXPECT_FALSE(load_model_from_bytes(std::as_bytes(std::span(misshapen)), "stem").ok());
}

TEST(Llama, KeyLength_OverridesTheHeadsWidth) {
  TestFile file = small_model("llama");
  file.set("llama.attention.key_length", u32(6));
  file.set("llama.attention.value_length", u32(6));
  file.tensor("blk.0.attn_q.weight") = {"blk.0.attn_q.weight", {8, 12}, MOTLEY_F32, 384};
  file.tensor("blk.0.attn_k.weight") = {"blk.0.attn_k.weight", {8, 6}, MOTLEY_F32, 192};
  file.tensor("blk.0.attn_v.weight") = {"blk.0.attn_v.weight", {8, 6}, MOTLEY_F32, 192};
  file.tensor("blk.0.attn_output.weight") = {"blk.0.attn_output.weight", {12, 8}, MOTLEY_F32, 384};
  const std::string bytes = file.bytes();
  const auto model = load(bytes);
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->config().head_dim, 6u);
  EXPECT_EQ(model->config().rope_dims, 6u);
  EXPECT_EQ(model->kv_layers()[0].head_dim, 6u);
}

TEST(Llama, WithExperts_RoutesAndNormalises) {
  TestFile file = small_model("llama");
  use_experts(&file, "llama");
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  const auto& router = nodes_of(model->graph(), MOTLEY_OP_TOPK_ROUTER)[0]->op.attr.router;
  EXPECT_EQ(router.gating, 1);
  EXPECT_EQ(router.normalise, 1);
  EXPECT_TRUE(nodes_of(model->graph(), MOTLEY_OP_SPLIT).empty());
}

TEST(Llama, ExpertsWithoutAWidthOfTheirOwn_HaveTheFfns) {
  TestFile file = small_model("llama");
  use_experts(&file, "llama");
  file.erase("llama.expert_feed_forward_length");
  file.set("llama.feed_forward_length", u32(6));
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(find_weight(model->graph(), "blk.0.ffn_up_exps.weight").rows, 6);
}

TEST(Llama, Window_HoldsForEveryLayer) {
  TestFile file = small_model("llama");
  repeat_layer(&file, "llama", 2);
  file.set("llama.attention.sliding_window", u32(32));
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  for (const GraphNode* node : nodes_of(model->graph(), MOTLEY_OP_PAGED_ATTENTION)) {
    EXPECT_EQ(node->op.attr.attention.window, 32);
  }
}

TEST(Llama, BiasesThatTheFileHas_AreUsed) {
  TestFile file = small_model("llama");
  file.add("blk.0.attn_q.bias", {8});
  file.add("blk.0.ffn_down.bias", {8});
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  const auto matmuls = nodes_of(model->graph(), MOTLEY_OP_MATMUL);
  EXPECT_EQ(weight_name(model->graph(), *matmuls[0], 1), "blk.0.attn_q.bias");
  EXPECT_EQ(weight_name(model->graph(), *matmuls[1], 1), "");
  EXPECT_EQ(weight_name(model->graph(), *matmuls[6], 1), "blk.0.ffn_down.bias");
}

}  // namespace
}  // namespace motley
