#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "model/gguf_test_file.hpp"
#include "model/graph_test_checks.hpp"

namespace motley {
namespace {

using namespace testing_files;  // NOLINT(google-build-using-namespace): the words of the tests
using ::testing::HasSubstr;

TEST(Qwen2, Graph_AddsBiasesToQueriesKeysAndValues) {
  TestFile file = small_model("qwen2");
  add_qkv_biases(&file);
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  const Graph& graph = model->graph();
  const auto matmuls = nodes_of(graph, MOTLEY_OP_MATMUL);
  EXPECT_EQ(weight_name(graph, *matmuls[0], 1), "blk.0.attn_q.bias");
  EXPECT_EQ(weight_name(graph, *matmuls[1], 1), "blk.0.attn_k.bias");
  EXPECT_EQ(weight_name(graph, *matmuls[2], 1), "blk.0.attn_v.bias");
  EXPECT_EQ(weight_name(graph, *matmuls[3], 1), "");
  EXPECT_EQ(find_weight(graph, "blk.0.attn_k.bias").cols, 4);
  EXPECT_EQ(find_weight(graph, "blk.0.attn_k.bias").uses, 4u);
  EXPECT_EQ(nodes_of(graph, MOTLEY_OP_ROPE)[0]->op.attr.rope.style, MOTLEY_ROPE_NEOX);
}

TEST(Qwen2, MissingBias_IsRefusedByName) {
  EXPECT_THAT(refusal(small_model("qwen2").bytes()), HasSubstr("tensor 'blk.0.attn_q.bias': is missing"));
}

}  // namespace
}  // namespace motley
