#include "model/hf/config.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "model/hf/directory_test_files.hpp"

namespace motley::hf {
namespace {

using namespace testing_files;  // NOLINT(google-build-using-namespace): the words of the tests
using ::testing::ElementsAre;
using ::testing::FloatEq;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ModelDescription parse(const nlohmann::json& config, const LoadOptions& options = {}) {
  auto model = parse_config(config.dump(), options);
  EXPECT_TRUE(model.ok()) << model.error().to_string();
  return model.ok() ? *std::move(model) : ModelDescription();
}

nlohmann::json with(const nlohmann::json& changes) {
  nlohmann::json config = small_config();
  for (const auto& [key, value] : changes.items()) config[key] = value;
  return config;
}

TEST(HfConfig, Sizes_ComeFromTheKeys) {
  const ModelDescription model = parse(small_config());
  const ModelConfig& config = model.parameters.config;
  EXPECT_EQ(config.architecture, model.architecture->name);
  EXPECT_EQ(config.layers, 1u);
  EXPECT_EQ(config.hidden, 8u);
  EXPECT_EQ(config.ffn, 12u);
  EXPECT_EQ(config.heads, 2u);
  EXPECT_EQ(config.kv_heads, 1u);
  EXPECT_EQ(config.head_dim, 4u);
  EXPECT_EQ(config.rope_dims, 4u);
  EXPECT_EQ(config.vocab_size, 5u);
  EXPECT_EQ(config.context_length, 64u);
  EXPECT_FLOAT_EQ(config.norm_eps, 1e-5f);
  EXPECT_EQ(model.tied_head, true);
  EXPECT_THAT(model.end_tokens, ElementsAre(4));
  EXPECT_EQ(model.parameters.rope.style, MOTLEY_ROPE_NEOX) << "also where GGUF files are permuted";
  EXPECT_EQ(model.quantization.method, Quantization::Method::kNone);
  EXPECT_THAT(model.rope_divisors, IsEmpty());
}

TEST(HfConfig, SilentKeys_HaveDefaults) {
  nlohmann::json config = small_config();
  for (const char* key : {"num_key_value_heads", "rope_theta", "tie_word_embeddings", "eos_token_id", "hidden_act"}) {
    config.erase(key);
  }
  const ModelDescription model = parse(config);
  EXPECT_EQ(model.parameters.config.kv_heads, 2u);
  EXPECT_EQ(model.parameters.config.rope_base, 10000.0f);
  EXPECT_EQ(model.tied_head, std::nullopt);
  EXPECT_THAT(model.end_tokens, IsEmpty());
}

TEST(HfConfig, UnknownKeys_AreIgnored) {
  EXPECT_EQ(parse(with({{"torch_dtype", "bfloat16"},
                        {"pretraining_tp", 1},
                        {"alibi", false},
                        {"clip_qkv", nullptr},
                        {"residual_multiplier", 1.0},
                        {"mlp_only_layers", nlohmann::json::array()}}))
                .parameters.config.layers,
            1u);
}

TEST(HfConfig, LanguageModelsKeys_MayStandApart) {
  nlohmann::json inner = small_config();
  inner.erase("architectures");
  const ModelDescription model = parse({{"architectures", {"LlamaForCausalLM"}},
                                        {"text_config", inner},
                                        {"eos_token_id", {1, 2}},
                                        {"vision_config", {{"hidden_size", 7}}}});
  EXPECT_EQ(model.parameters.config.hidden, 8u);
  EXPECT_THAT(model.end_tokens, ElementsAre(1, 2));
}

TEST(HfConfig, TrimmedConfigurations_HaveTheirClassDefaults) {
  // All that the published 4B model says of its language model.
  const ModelDescription model = parse({{"architectures", {"Gemma3ForConditionalGeneration"}},
                                        {"text_config",
                                         {{"hidden_size", 2560},
                                          {"intermediate_size", 10240},
                                          {"model_type", "gemma3_text"},
                                          {"num_hidden_layers", 34},
                                          {"rope_scaling", {{"factor", 8.0}, {"rope_type", "linear"}}},
                                          {"sliding_window", 1024}}}});
  const HyperParameters& parameters = model.parameters;
  EXPECT_EQ(parameters.config.heads, 8u);
  EXPECT_EQ(parameters.config.kv_heads, 4u);
  EXPECT_EQ(parameters.config.head_dim, 256u);
  EXPECT_EQ(parameters.config.vocab_size, 262208u);
  EXPECT_EQ(parameters.config.rope_base, 1e6f);
  EXPECT_EQ(parameters.rope.window_base, 1e4f);
  EXPECT_EQ(parameters.rope.linear_factor, 8.0f);
  EXPECT_EQ(parameters.attention_scale, 0.0625f);
  EXPECT_EQ(parameters.attention_softcap, 0.0f);
  EXPECT_EQ(window_of_layer(parameters, 4), 1024u);
  EXPECT_EQ(window_of_layer(parameters, 5), 0u);
  EXPECT_EQ(model.tied_head, true);
}

TEST(HfConfig, ClassesOfExperts_NeedThem) {
  const auto model = parse_config(with({{"architectures", {"Qwen3MoeForCausalLM"}}}).dump(), {});
  ASSERT_FALSE(model.ok());
  EXPECT_THAT(model.error().message(), HasSubstr("key 'num_experts': is missing or 0"));
}

TEST(HfConfig, LinearRope_DividesPositions) {
  for (const char* key : {"type", "rope_type"}) {
    EXPECT_EQ(parse(with({{"rope_scaling", {{key, "linear"}, {"factor", 8.0}}}})).parameters.rope.linear_factor, 8.0f);
  }
  const ModelDescription model =
      parse(with({{"rope_theta", nullptr}, {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 5e5}}}}));
  EXPECT_EQ(model.parameters.config.rope_base, 5e5f);
  EXPECT_EQ(model.parameters.rope.linear_factor, 1.0f);
}

TEST(HfConfig, Llama3Rope_GivesItsDivisors) {
  // Waves of 6.3, 628 and 62832 positions at base 1e12: kept, divided less, divided by the whole factor.
  const ModelDescription model = parse(with({{"head_dim", 12},
                                             {"rope_theta", 1e12},
                                             {"rope_scaling",
                                              {{"rope_type", "llama3"},
                                               {"factor", 8.0},
                                               {"low_freq_factor", 1.0},
                                               {"high_freq_factor", 4.0},
                                               {"original_max_position_embeddings", 1024}}}}));
  EXPECT_EQ(model.parameters.rope.divisors, kRopeDivisorsName);
  const double smooth = (1024 / (2 * M_PI * 100) - 1) / 3;
  const auto between = static_cast<float>(1 / ((1 - smooth) / 8 + smooth));
  EXPECT_THAT(model.rope_divisors,
              ElementsAre(FloatEq(1), FloatEq(between), FloatEq(8), FloatEq(8), FloatEq(8), FloatEq(8)));
}

TEST(HfConfig, YarnRope_IsStretched) {
  const nlohmann::json scaling = {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32}};
  const ModelDescription model = parse(with({{"rope_scaling", scaling}}));
  EXPECT_EQ(model.parameters.rope.yarn_factor, 4.0f);
  EXPECT_EQ(model.parameters.rope.original_context, 32u);
  EXPECT_FLOAT_EQ(model.parameters.rope.magnitude, static_cast<float>(1 + 0.1 * std::log(4.0)));
  EXPECT_TRUE(model.parameters.rope.yarn_whole_bounds);
  EXPECT_EQ(model.parameters.config.context_length, 128u);
  nlohmann::json own = scaling;
  own.update({{"attention_factor", 0.5}, {"beta_fast", 16}, {"beta_slow", 2}, {"truncate", false}});
  const Rope rope = parse(with({{"rope_scaling", own}})).parameters.rope;
  EXPECT_EQ(rope.magnitude, 0.5f);
  EXPECT_EQ(rope.yarn_beta_fast, 16.0f);
  EXPECT_EQ(rope.yarn_beta_slow, 2.0f);
  EXPECT_FALSE(rope.yarn_whole_bounds);
}

TEST(HfConfig, LongRope_IsChosenByTheServedLength) {
  const nlohmann::json config =
      with({{"original_max_position_embeddings", 16},
            {"rope_scaling", {{"type", "longrope"}, {"long_factor", {1.5, 2}}, {"short_factor", {1, 1.25}}}}});
  EXPECT_THAT(parse(config).rope_divisors, ElementsAre(1.5f, 2.0f));
  EXPECT_THAT(parse(config, {.max_model_len = 17}).rope_divisors, ElementsAre(1.5f, 2.0f));
  const ModelDescription near = parse(config, {.max_model_len = 16});
  EXPECT_THAT(near.rope_divisors, ElementsAre(1.0f, 1.25f));
  EXPECT_FLOAT_EQ(near.parameters.rope.magnitude, static_cast<float>(std::sqrt(1 + std::log(4.0) / std::log(16.0))));
  nlohmann::json factor = config;
  factor["rope_scaling"]["factor"] = 2.0;
  EXPECT_FLOAT_EQ(parse(factor).parameters.rope.magnitude,
                  static_cast<float>(std::sqrt(1 + std::log(2.0) / std::log(16.0))));
}

TEST(HfConfig, Windows_ComeByLayerTypesPatternOrFirstLayer) {
  const nlohmann::json four = {{"num_hidden_layers", 4}, {"sliding_window", 16}};
  const auto windows = [&](const nlohmann::json& changes) {
    nlohmann::json config = with(four);
    for (const auto& [key, value] : changes.items()) config[key] = value;
    const HyperParameters parameters = parse(config).parameters;
    std::vector<uint32_t> list;
    for (uint32_t layer = 0; layer < 4; ++layer) list.push_back(window_of_layer(parameters, layer));
    return list;
  };
  EXPECT_THAT(windows({}), ElementsAre(16, 16, 16, 16));
  EXPECT_THAT(windows({{"use_sliding_window", false}}), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(windows({{"sliding_window", nullptr}}), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(windows({{"sliding_window", 0}}), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(windows({{"sliding_window_pattern", 2}}), ElementsAre(16, 0, 16, 0));
  EXPECT_THAT(windows({{"use_sliding_window", true}, {"max_window_layers", 3}}), ElementsAre(0, 0, 0, 16));
  EXPECT_THAT(windows({{"layer_types", {"full_attention", "sliding_attention", "full_attention", "full_attention"}}}),
              ElementsAre(0, 16, 0, 0));
}

TEST(HfConfig, Experts_ComeFromEitherSpelling) {
  const ModelDescription mixtral =
      parse(with({{"architectures", {"MixtralForCausalLM"}}, {"num_local_experts", 8}, {"num_experts_per_tok", 2}}));
  EXPECT_EQ(mixtral.parameters.experts.count, 8u);
  EXPECT_EQ(mixtral.parameters.experts.used, 2u);
  EXPECT_EQ(mixtral.parameters.experts.ffn, 12u);
  const ModelDescription other = parse(with({{"num_experts", 4},
                                             {"num_experts_per_tok", 1},
                                             {"moe_intermediate_size", 6},
                                             {"shared_expert_intermediate_size", 20},
                                             {"norm_topk_prob", false}}));
  EXPECT_EQ(other.parameters.experts.ffn, 6u);
  EXPECT_EQ(other.parameters.experts.shared_ffn, 20u);
  EXPECT_FALSE(other.parameters.experts.normalise);
}

TEST(HfConfig, NumbersOfAttentionAndLogits_AreTaken) {
  const HyperParameters parameters = parse(with({{"query_pre_attn_scalar", 16},
                                                 {"attn_logit_softcapping", 50.0},
                                                 {"final_logit_softcapping", 30},
                                                 {"swiglu_limit", 5.0},
                                                 {"swiglu_alpha", 2.0}}))
                                         .parameters;
  EXPECT_EQ(parameters.attention_scale, 0.25f);
  EXPECT_EQ(parameters.attention_softcap, 50.0f);
  EXPECT_EQ(parameters.logit_softcap, 30.0f);
  EXPECT_EQ(parameters.glu_limit, 5.0f);
  EXPECT_EQ(parameters.glu_alpha, 2.0f);
}

TEST(HfConfig, WrongKeys_AreRefusedByName) {
  const nlohmann::json yarn = {{"rope_type", "yarn"}};
  const std::tuple<nlohmann::json, motley_code, const char*> cases[] = {
      {{{"architectures", nullptr}}, MOTLEY_INVALID_ARGUMENT, "key 'architectures': does not name"},
      {{{"architectures", {"MambaForCausalLM"}}}, MOTLEY_UNIMPLEMENTED, "class 'MambaForCausalLM' is not built"},
      {{{"hidden_size", nullptr}}, MOTLEY_INVALID_ARGUMENT, "key 'hidden_size': is missing; get the model again"},
      {{{"hidden_size", "8"}}, MOTLEY_INVALID_ARGUMENT, "key 'hidden_size': is a text, not a whole number"},
      {{{"hidden_size", 8.5}}, MOTLEY_INVALID_ARGUMENT, "key 'hidden_size': is a number, not a whole number"},
      {{{"hidden_size", -8}}, MOTLEY_INVALID_ARGUMENT, "key 'hidden_size': is -8, not from 1 to"},
      {{{"num_hidden_layers", 100000}}, MOTLEY_INVALID_ARGUMENT, "key 'num_hidden_layers': is 100000"},
      {{{"hidden_size", 9}}, MOTLEY_INVALID_ARGUMENT, "2 heads do not divide a width of 9"},
      {{{"hidden_size", 10}}, MOTLEY_INVALID_ARGUMENT, "a head dimension of 5 is odd"},
      {{{"num_attention_heads", 3}, {"num_key_value_heads", 2}, {"head_dim", 4}},
       MOTLEY_INVALID_ARGUMENT,
       "3 heads cannot share 2 KV heads"},
      {{{"rms_norm_eps", 0}}, MOTLEY_INVALID_ARGUMENT, "key 'rms_norm_eps': is 0, not above 0"},
      {{{"hidden_act", "relu"}}, MOTLEY_UNIMPLEMENTED, "key 'hidden_act': asks for activation 'relu'"},
      {{{"tie_word_embeddings", 1}}, MOTLEY_INVALID_ARGUMENT, "key 'tie_word_embeddings': is a whole number"},
      {{{"residual_multiplier", 0.22}}, MOTLEY_UNIMPLEMENTED, "asks for scaled residuals, which is not built"},
      {{{"decoder_sparse_step", 2}}, MOTLEY_UNIMPLEMENTED, "dense layers between"},
      {{{"mlp_only_layers", {0}}}, MOTLEY_UNIMPLEMENTED, "dense layers between"},
      {{{"num_experts", 2}, {"num_local_experts", 3}},
       MOTLEY_INVALID_ARGUMENT,
       "is 2, but another key for the same is 3"},
      {{{"num_experts", 2}}, MOTLEY_INVALID_ARGUMENT, "key 'num_experts_per_tok': is missing"},
      {{{"num_experts", 2}, {"num_experts_per_tok", 3}}, MOTLEY_INVALID_ARGUMENT, "is 3, but there are 2 experts"},
      {{{"layer_types", {"linear_attention"}}}, MOTLEY_UNIMPLEMENTED, "layers of 'linear_attention'"},
      {{{"layer_types", {"sliding_attention"}}}, MOTLEY_INVALID_ARGUMENT, "gives them no window"},
      {{{"layer_types", nlohmann::json::array()}}, MOTLEY_INVALID_ARGUMENT, "is no list of 1 texts"},
      {{{"eos_token_id", 5}}, MOTLEY_INVALID_ARGUMENT, "key 'eos_token_id': is no id, or not below the 5"},
      {{{"eos_token_id", {-1}}}, MOTLEY_INVALID_ARGUMENT, "key 'eos_token_id'"},
      {{{"rope_theta", "big"}}, MOTLEY_INVALID_ARGUMENT, "key 'rope_theta': is a text"},
      {{{"rope_scaling", 8}}, MOTLEY_INVALID_ARGUMENT, "key 'rope_scaling': is no object"},
      {{{"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}}},
       MOTLEY_UNIMPLEMENTED,
       "key 'rope_scaling.type': asks for rope scaling 'dynamic'"},
      {{{"rope_scaling", {{"rope_type", "mrope"}}}}, MOTLEY_UNIMPLEMENTED, "rope scaling 'mrope'"},
      {{{"rope_scaling", {{"rope_type", "linear"}}}}, MOTLEY_INVALID_ARGUMENT, "key 'rope_scaling.factor': is missing"},
      {{{"rope_scaling", yarn}}, MOTLEY_INVALID_ARGUMENT, "key 'rope_scaling.factor': is missing"},
      {{{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 4}, {"high_freq_factor", 4}}}},
       MOTLEY_INVALID_ARGUMENT,
       "is not above 'low_freq_factor'"},
      {{{"rope_scaling", {{"rope_type", "longrope"}, {"long_factor", {1}}, {"short_factor", {1, 1}}}}},
       MOTLEY_INVALID_ARGUMENT,
       "key 'rope_scaling.long_factor': is no list of 2 numbers"},
      {{{"rope_scaling", {{"rope_type", "longrope"}, {"long_factor", {1, 0}}, {"short_factor", {1, 1}}}}},
       MOTLEY_INVALID_ARGUMENT,
       "element 1 is not above 0"},
      {{{"partial_rotary_factor", 0.25}}, MOTLEY_INVALID_ARGUMENT, "leaves 1 dimensions to turn"},
      {{{"quantization_config", {{"quant_method", "hqq"}}}}, MOTLEY_UNIMPLEMENTED, "'hqq' is not built"},
  };
  for (const auto& [changes, code, expected] : cases) {
    const auto model = parse_config(with(changes).dump(), {});
    ASSERT_FALSE(model.ok()) << expected;
    EXPECT_THAT(model.error().message(), HasSubstr(expected));
    EXPECT_EQ(model.error().code(), code) << model.error().message();
  }
}

TEST(HfConfig, TextsThatAreNoObject_AreRefused) {
  for (const char* text : {"", "{", "[]", "1", "{\"a\":1}{", "{\"architectures\":[]}", "\xFF"}) {
    EXPECT_FALSE(parse_config(text, {}).ok()) << text;
  }
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += "{\"a\":";
  EXPECT_THAT(parse_config(deep, {}).error().message(), HasSubstr("nested deeper than 16 levels"));
}

}  // namespace
}  // namespace motley::hf
