#include "model/hf/store.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "model/dtype.hpp"
#include "model/hf/directory_test_files.hpp"

namespace motley::hf {
namespace {

using namespace testing_files;  // NOLINT(google-build-using-namespace): the words of the tests
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A class of models with everything that classes do otherwise.
const Architecture kOdd = {
    .name = "odd",
    .build = nullptr,
    .hugging_face = {.post_attention_norm = "post_attention_norm", .norm_offset = 1, .interleaved_experts = true}};

class HfStore : public ::testing::Test {
 protected:
  HfStore() {
    model_.architecture = &kOdd;
    model_.parameters.config.layers = 1;
    model_.parameters.config.hidden = 2;
    model_.parameters.experts = {.count = 2, .used = 1, .ffn = 3};
  }

  Result<std::unique_ptr<Store>> open() {
    folder_.write("model.safetensors", safetensors(tensors_));
    ASSIGN_OR_RETURN(const Directory directory, Directory::open(folder_.path()));
    ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(directory));
    ASSIGN_OR_RETURN(auto weights, list_weights(checkpoint, model_));
    return std::make_unique<Store>(std::move(checkpoint), std::move(weights), std::vector<float>(), Store::Keep());
  }
  std::string refusal() {
    const auto store = open();
    EXPECT_FALSE(store.ok());
    return store.error().message();
  }
  static std::vector<float> floats(const Store& store, std::string_view name) {
    const size_t index = store.find(name);
    CHECK(index < store.size(), "{}", name);
    const auto read = store.read(index);
    CHECK(read.ok() && read->data.size() == store.at(index).bytes);
    std::vector<float> values(read->data.size() / sizeof(float));
    std::memcpy(values.data(), read->data.data(), read->data.size());
    return values;
  }

  TestFolder folder_;
  ModelDescription model_;
  std::vector<TestTensor> tensors_;
};

TEST_F(HfStore, Norms_AreRaisedAndNamedAsTheClassSays) {
  tensors_ = {{"model.layers.0.post_attention_layernorm.weight", "F32", {2}, f32_bytes({0.5f, -0.5f})},
              {"model.layers.0.self_attn.q_norm.weight", "BF16", {1}, std::string("\x80\x3F", 2)},
              {"model.layers.0.self_attn.q_proj.weight", "F32", {1, 2}, f32_bytes({3, 4})},
              {"model.layers.0.self_attn.sinks", "F32", {2}, f32_bytes({5, 6})}};
  const auto store = open();
  ASSERT_TRUE(store.ok()) << store.error().to_string();
  EXPECT_THAT(floats(**store, "blk.0.post_attention_norm.weight"), ElementsAre(1.5f, 0.5f));
  EXPECT_THAT(floats(**store, "blk.0.attn_q_norm.weight"), ElementsAre(2.0f));
  EXPECT_THAT(floats(**store, "blk.0.attn_q.weight"), ElementsAre(3, 4));
  EXPECT_THAT(floats(**store, "blk.0.attn_sinks.weight"), ElementsAre(5, 6));
  EXPECT_EQ((*store)->size(), 4u);
  EXPECT_FALSE((*store)->has("blk.0.attn_k.weight"));
}

TEST_F(HfStore, FusedExperts_AreTakenApart) {
  const std::string experts = "model.layers.0.mlp.experts.";
  std::vector<float> up(24), down(12);
  for (size_t i = 0; i < up.size(); ++i) up[i] = static_cast<float>(i);
  for (size_t i = 0; i < down.size(); ++i) down[i] = static_cast<float>(100 + i);
  tensors_ = {{experts + "gate_up_proj", "F32", {2, 2, 6}, f32_bytes(up)},
              {experts + "gate_up_proj_bias", "F32", {2, 6}, f32_bytes({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11})},
              {experts + "down_proj", "F32", {2, 3, 2}, f32_bytes(down)},
              {experts + "down_proj_bias", "F32", {2, 2}, f32_bytes({1, 2, 3, 4})}};
  const auto store = open();
  ASSERT_TRUE(store.ok()) << store.error().to_string();
  EXPECT_THAT(floats(**store, "blk.0.ffn_gate_exps.weight"), ElementsAre(0, 6, 2, 8, 4, 10, 12, 18, 14, 20, 16, 22));
  EXPECT_THAT(floats(**store, "blk.0.ffn_up_exps.weight"), ElementsAre(1, 7, 3, 9, 5, 11, 13, 19, 15, 21, 17, 23));
  EXPECT_THAT(floats(**store, "blk.0.ffn_down_exps.weight"),
              ElementsAre(100, 102, 104, 101, 103, 105, 106, 108, 110, 107, 109, 111));
  EXPECT_THAT(floats(**store, "blk.0.ffn_gate_exps.bias"), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(floats(**store, "blk.0.ffn_up_exps.bias"), ElementsAre(1, 3, 5, 7, 9, 11));
  EXPECT_THAT(floats(**store, "blk.0.ffn_down_exps.bias"), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT((*store)->at((*store)->find("blk.0.ffn_gate_exps.weight")).ne, ElementsAre(2, 3, 2, 1));
  EXPECT_THAT((*store)->at((*store)->find("blk.0.ffn_up_exps.bias")).ne, ElementsAre(3, 2, 1, 1));

  tensors_[1].name = experts + "gate_up_proj_other";
  EXPECT_THAT(refusal(), HasSubstr("has parts that are not built"));
  tensors_[1].name = experts + "gate_up_proj_bias";
  tensors_[0].shape = {2, 6, 2};
  EXPECT_THAT(refusal(), HasSubstr("is not 2 x 2 x 6"));
  tensors_.erase(tensors_.begin());
  EXPECT_THAT(refusal(), HasSubstr("has no 'gate_up_proj' of one kind"));
}

TEST_F(HfStore, FusedExpertsInMxfp4_KeepTheirBytes) {
  model_.parameters.config.hidden = 32;
  model_.parameters.experts = {.count = 2, .used = 1, .ffn = 32};
  const std::string experts = "model.layers.0.mlp.experts.";
  const auto bytes = [](size_t count) {
    std::string text(count, '\0');
    for (size_t i = 0; i < count; ++i) text[i] = static_cast<char>(i * 7 % 251);
    return text;
  };
  tensors_ = {{experts + "gate_up_proj_blocks", "U8", {2, 64, 1, 16}, bytes(2048)},
              {experts + "gate_up_proj_scales", "U8", {2, 64, 1}, bytes(128)},
              {experts + "down_proj_blocks", "U8", {2, 32, 1, 16}, bytes(1024)},
              {experts + "down_proj_scales", "U8", {2, 32, 1}, bytes(64)}};
  const auto store = open();
  ASSERT_TRUE(store.ok()) << store.error().to_string();
  const size_t up = (*store)->find("blk.0.ffn_up_exps.weight");
  ASSERT_LT(up, (*store)->size());
  EXPECT_EQ((*store)->at(up).dtype, MOTLEY_MXFP4);
  EXPECT_THAT((*store)->at(up).ne, ElementsAre(32, 32, 2, 1));
  const auto read = (*store)->read(up);
  ASSERT_TRUE(read.ok());
  ASSERT_EQ(read->data.size(), 2u * 32 * 17);
  // Expert 1, row 2 of up is row 5 of the expert's 64; its elements 0 and 16 share a byte.
  const std::byte* block = read->data.data() + (32 + 2) * 17;
  EXPECT_EQ(std::to_integer<int>(block[0]), (64 + 5) * 7 % 251);
  const int first = (64 + 5) * 16 * 7 % 251, ninth = ((64 + 5) * 16 + 8) * 7 % 251;
  EXPECT_EQ(std::to_integer<int>(block[1]), (first & 15) | (ninth & 15) << 4);

  tensors_[1].shape = {2, 32, 2};
  EXPECT_THAT(refusal(), HasSubstr("with its scales is not MXFP4 of 2 x 64 x 32"));
}

}  // namespace
}  // namespace motley::hf
