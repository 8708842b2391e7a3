#include "model/hf/load.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "model/graph_test_checks.hpp"
#include "model/hf/directory_test_files.hpp"
#include "model/hf/numbers.hpp"
#include "model/model.hpp"

namespace motley::hf {
namespace {

using namespace testing_files;  // NOLINT(google-build-using-namespace): the words of the tests
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class LoadDirectory : public ::testing::Test {
 protected:
  std::unique_ptr<Model> load(const LoadOptions& options = {}) {
    write();
    auto model = Model::load(folder_.path(), options);
    EXPECT_TRUE(model.ok()) << model.error().to_string();
    return model.ok() ? *std::move(model) : nullptr;
  }
  std::string refusal() {
    write();
    const auto model = Model::load(folder_.path());
    EXPECT_FALSE(model.ok());
    return model.error().message();
  }
  void write() const {
    folder_.write("config.json", config_.dump());
    folder_.write("model.safetensors", safetensors(tensors_));
  }
  TestTensor& tensor(std::string_view name) { return find_tensor(tensors_, name); }

  static size_t index_of(const Model& model, std::string_view name) {
    const auto& weights = model.graph().weights;
    const auto at = std::find_if(weights.begin(), weights.end(), [&](const auto& w) { return w.name == name; });
    CHECK(at != weights.end(), "{}", name);
    return static_cast<size_t>(at - weights.begin());
  }
  static std::string bytes_of(const Model& model, std::string_view name) {
    const auto read = model.read(index_of(model, name));
    CHECK(read.ok(), "{}", read.error().to_string());
    return {reinterpret_cast<const char*>(read->data.data()), read->data.size()};
  }

  TestFolder folder_;
  nlohmann::json config_ = small_config();
  std::vector<TestTensor> tensors_ = small_tensors();
};

TEST_F(LoadDirectory, SmallModel_HasItsWeightsUnderGgufNames) {
  const auto model = load();
  ASSERT_NE(model, nullptr);
  motley::testing_files::expect_well_formed(*model);
  EXPECT_EQ(model->config().name, folder_.path().filename().string());
  EXPECT_TRUE(model->config().tied_head);
  EXPECT_EQ(bytes_of(*model, "blk.0.attn_q.weight"), tensor("model.layers.0.self_attn.q_proj.weight").bytes);
  EXPECT_EQ(bytes_of(*model, "blk.0.ffn_norm.weight"), tensor("model.layers.0.post_attention_layernorm.weight").bytes);
  EXPECT_EQ(bytes_of(*model, "token_embd.weight"), tensor("model.embed_tokens.weight").bytes);
  model->release(index_of(*model, "token_embd.weight"));
  EXPECT_EQ(bytes_of(*model, "token_embd.weight"), tensor("model.embed_tokens.weight").bytes);
  EXPECT_EQ(model->file_bytes(), safetensors(tensors_).size());
  EXPECT_THAT(model->tokenizer().end_tokens, ElementsAre(4));
}

TEST_F(LoadDirectory, MisalignedWeights_AreCopied) {
  // A name that sorts first would still lie where it is written: one odd byte in front of everything.
  tensors_.insert(tensors_.begin(), {"model.layers.0.self_attn.rotary_emb.inv_freq", "U8", {1}, "x"});
  const auto model = load();
  ASSERT_NE(model, nullptr);
  const auto read = model->read(index_of(*model, "blk.0.attn_q.weight"));
  ASSERT_TRUE(read.ok());
  EXPECT_FALSE(read->made.empty());
  EXPECT_EQ(bytes_of(*model, "blk.0.attn_q.weight"), tensor("model.layers.0.self_attn.q_proj.weight").bytes);
}

TEST_F(LoadDirectory, RopeDivisors_AreAWeight) {
  config_["rope_scaling"] = {{"rope_type", "llama3"},
                             {"factor", 2.0},
                             {"low_freq_factor", 1.0},
                             {"high_freq_factor", 4.0},
                             {"original_max_position_embeddings", 64}};
  const auto model = load();
  ASSERT_NE(model, nullptr);
  const std::string bytes = bytes_of(*model, "rope_freqs.weight");
  EXPECT_EQ(bytes, f32_bytes({1, 2}));
  model->release(index_of(*model, "rope_freqs.weight"));
  EXPECT_EQ(bytes_of(*model, "rope_freqs.weight"), bytes);
}

TEST_F(LoadDirectory, SeveralExperts_AreStacked) {
  config_["architectures"] = {"MixtralForCausalLM"};
  config_["num_local_experts"] = 2;
  config_["num_experts_per_tok"] = 1;
  std::erase_if(tensors_, [](const TestTensor& t) { return t.name.find(".mlp.") != std::string::npos; });
  const std::string moe = "model.layers.0.block_sparse_moe.";
  tensors_.push_back(f32_tensor(moe + "gate.weight", {2, 8}));
  for (int i = 0; i < 2; ++i) {
    const std::string expert = moe + "experts." + std::to_string(i);
    tensors_.push_back(f32_tensor(expert + ".w1.weight", {12, 8}, static_cast<float>(10 + i)));
    tensors_.push_back(f32_tensor(expert + ".w2.weight", {8, 12}, static_cast<float>(20 + i)));
    tensors_.push_back(f32_tensor(expert + ".w3.weight", {12, 8}, static_cast<float>(30 + i)));
  }
  const auto model = load();
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->weight(index_of(*model, "blk.0.ffn_up_exps.weight")).experts, 2);
  EXPECT_EQ(bytes_of(*model, "blk.0.ffn_up_exps.weight"),
            tensor(moe + "experts.0.w3.weight").bytes + tensor(moe + "experts.1.w3.weight").bytes);
  EXPECT_EQ(bytes_of(*model, "blk.0.ffn_gate_inp.weight"), tensor(moe + "gate.weight").bytes);

  tensor(moe + "experts.1.w3.weight").name = moe + "experts.2.w3.weight";
  EXPECT_THAT(refusal(), HasSubstr("is of expert 2, but there are 2"));
  std::erase_if(tensors_, [&](const TestTensor& t) { return t.name == moe + "experts.2.w3.weight"; });
  EXPECT_THAT(refusal(), HasSubstr("expert 1 of 2 is missing"));
  tensors_.push_back(f32_tensor(moe + "experts.1.w3.weight", {6, 16}));
  EXPECT_THAT(refusal(), HasSubstr("has another shape or type than the expert before it"));
}

TEST_F(LoadDirectory, QuantisedMatrices_AreMadeOnRead) {
  std::string codes;
  for (int i = 0; i < 64; ++i) codes += static_cast<char>(0x38);  // 1.0 in E4M3
  tensor("model.layers.0.self_attn.q_proj.weight") = {
      "model.layers.0.self_attn.q_proj.weight", "F8_E4M3", {8, 8}, codes};
  tensors_.push_back({"model.layers.0.self_attn.q_proj.weight_scale", "F32", {}, f32_bytes({0.5f})});
  tensors_.push_back({"model.layers.0.self_attn.q_proj.input_scale", "F32", {}, f32_bytes({0.5f})});
  config_["quantization_config"] = {{"quant_method", "fp8"}};
  const auto model = load();
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->weight(index_of(*model, "blk.0.attn_q.weight")).dtype, MOTLEY_BF16);
  const std::string bytes = bytes_of(*model, "blk.0.attn_q.weight");
  ASSERT_EQ(bytes.size(), 128u);
  uint16_t first = 0;
  std::memcpy(&first, bytes.data(), 2);
  EXPECT_EQ(bf16_to_float(first), 0.5f);
}

TEST_F(LoadDirectory, GenerationConfig_SaysWhatEndsAnAnswer) {
  folder_.write("generation_config.json", R"({"eos_token_id":[1,3],"temperature":0.6})");
  EXPECT_THAT(load()->tokenizer().end_tokens, ElementsAre(1, 3));
  folder_.write("generation_config.json", R"({"temperature":0.6})");
  EXPECT_THAT(load()->tokenizer().end_tokens, ElementsAre(4));
  folder_.write("generation_config.json", R"({"eos_token_id":[5]})");
  EXPECT_THAT(refusal(), HasSubstr("'generation_config.json': key 'eos_token_id'"));
}

TEST_F(LoadDirectory, TokenizerAndTemplateFiles_AreHandedOver) {
  folder_.write("tokenizer.json", "{\"model\":{}}");
  folder_.write("tokenizer_config.json", R"({"chat_template":"in the configuration"})");
  folder_.write("chat_template.json", R"({"chat_template":"older"})");
  folder_.write("chat_template.jinja", "{{ newer }}");
  const auto model = load();
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->tokenizer().tokenizer_json, "{\"model\":{}}");
  EXPECT_EQ(model->tokenizer().tokenizer_config_json, R"({"chat_template":"in the configuration"})");
  EXPECT_EQ(model->tokenizer().chat_template_json, R"({"chat_template":"older"})");
  EXPECT_EQ(model->tokenizer().chat_template, "{{ newer }}");
}

TEST_F(LoadDirectory, HeadOfItsOwn_IsUsedUnlessTied) {
  tensors_.push_back(f32_tensor("lm_head.weight", {5, 8}, 40));
  const auto tied = load();
  EXPECT_TRUE(tied->config().tied_head) << "as transformers does";
  config_["tie_word_embeddings"] = false;
  EXPECT_EQ(bytes_of(*load(), "output.weight"), tensor("lm_head.weight").bytes);
  config_.erase("tie_word_embeddings");
  EXPECT_FALSE(load()->config().tied_head);
  tensors_.pop_back();
  EXPECT_TRUE(load()->config().tied_head);
  config_["tie_word_embeddings"] = false;
  EXPECT_THAT(refusal(), HasSubstr("tensor 'lm_head.weight': is missing"));
}

TEST_F(LoadDirectory, ContradictoryFiles_AreRefusedByFileAndKey) {
  config_["vocab_size"] = 6;
  EXPECT_THAT(refusal(), HasSubstr("'config.json': key 'vocab_size': is 6, but 'model.safetensors': tensor "
                                   "'model.embed_tokens.weight' has 5 rows"));
  config_["vocab_size"] = 5;
  config_["head_dim"] = 6;
  EXPECT_THAT(refusal(), HasSubstr("'model.safetensors': tensor 'model.layers.0.self_attn.q_proj.weight': is 8 x 8"));
  config_ = small_config();
  config_["num_hidden_layers"] = 2;
  EXPECT_THAT(refusal(), HasSubstr("tensor 'model.layers.1.input_layernorm.weight': is missing; config.json"));
  config_ = small_config();
  tensor("model.layers.0.mlp.up_proj.weight").name = "model.layers.1.mlp.up_proj.weight";
  EXPECT_THAT(refusal(), HasSubstr("is of layer 1, but 'num_hidden_layers' is 1"));
}

TEST_F(LoadDirectory, TensorsOfUnknownMeaning_AreRefused) {
  tensors_.push_back(f32_tensor("model.layers.0.self_attn.gate.weight", {8}));
  EXPECT_THAT(refusal(), HasSubstr("tensor 'model.layers.0.self_attn.gate.weight': is not part of this architecture"));
  tensors_.back().name = "model.layers.00.mlp.up_proj.weight";
  EXPECT_THAT(refusal(), HasSubstr("is not part of this architecture"));
  tensors_.back().name = "vision_tower.patch.weight";
  EXPECT_NE(load(), nullptr);
  tensors_.back() = f32_tensor("layers.0.mlp.up_proj.weight", {12, 8});
  EXPECT_THAT(refusal(), HasSubstr("stands twice under other prefixes"));
  tensors_.back().name = "model.layers.0.mlp.gate_up_proj.weight";
  EXPECT_THAT(refusal(), HasSubstr("has the place of"));
}

TEST_F(LoadDirectory, FoldersWithoutAModel_AreRefusedWithAdvice) {
  EXPECT_THAT(Model::load(folder_.path()).error().message(),
              StartsWith(folder_.path().string() + ": 'config.json': is missing; name a GGUF file or"));
  folder_.write("a.gguf", "");
  EXPECT_THAT(Model::load(folder_.path()).error().message(), HasSubstr("such as 'a.gguf'"));
  folder_.write("config.json", config_.dump());
  folder_.write("pytorch_model.bin", "");
  EXPECT_THAT(Model::load(folder_.path()).error().message(), HasSubstr("convert the model to safetensors"));
}

}  // namespace
}  // namespace motley::hf
