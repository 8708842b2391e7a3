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
  TestFile file = small_model("mistral3");
  file.set("mistral3.rope.scaling.type", text("yarn"));
  file.set("mistral3.rope.scaling.factor", f32(4));
  file.set("mistral3.rope.scaling.original_context_length", u32(16));
  return file;
}

TEST(Mistral3, Yarn_HasTheRampAndMagnitudeOfItsPaper) {
  const std::string bytes = small().bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  for (const GraphNode* node : nodes_of(model->graph(), MOTLEY_OP_ROPE)) {
    const auto& rope = node->op.attr.rope;
    EXPECT_EQ(rope.style, MOTLEY_ROPE_NORM);
    EXPECT_EQ(rope.position_scale, 1.0f);
    EXPECT_EQ(rope.yarn_factor, 4.0f);
    EXPECT_EQ(rope.yarn_ext_factor, 1.0f);
    // 4 * ln(16 / (2 pi beta)) / (2 ln 10000) is -0.55 for 32 turns and 0.20 for one, rounded outwards.
    EXPECT_EQ(rope.yarn_low, 0.0f);
    EXPECT_EQ(rope.yarn_high, 1.0f);
    EXPECT_NEAR(rope.magnitude, 1 + 0.1 * std::log(4.0), 1e-6);
  }
}

TEST(Mistral3, LogMultiplierOfOne_LeavesTheMagnitudeAtOne) {
  TestFile file = small();
  file.set("mistral3.rope.scaling.yarn_log_multiplier", f32(1));
  const std::string bytes = file.bytes();
  const auto model = load_well_formed(bytes);
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(nodes_of(model->graph(), MOTLEY_OP_ROPE)[0]->op.attr.rope.magnitude, 1.0f);
}

TEST(Mistral3, Temperature_IsRefusedWhereItWouldAct) {
  TestFile file = small();
  file.set("mistral3.attention.temperature_scale", f32(0.1f));
  const std::string bytes = file.bytes();
  EXPECT_THAT(refusal(bytes), HasSubstr("give the model a length of at most 16 (--max-model-len)"));
  EXPECT_THAT(refusal(bytes, {.max_model_len = 17}), HasSubstr("UNIMPLEMENTED"));
  EXPECT_EQ(refusal(bytes, {.max_model_len = 16}), "");
}

}  // namespace
}  // namespace motley
