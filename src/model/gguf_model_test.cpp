#include "model/gguf_model.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <random>

#include "model/architecture.hpp"
#include "model/gguf_test_file.hpp"

namespace motley {
namespace {

using namespace testing_files;  // NOLINT(google-build-using-namespace): the words of the tests
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// Any architecture without head norms will do here; their own tests lie beside their files.
std::string first_architecture() { return std::string(architectures().front()->name); }
TestFile good() { return small_model(first_architecture()); }
std::string key(std::string_view suffix) { return first_architecture() + "." + std::string(suffix); }

Result<std::unique_ptr<Model>> load(const std::string& bytes) {
  return load_model_from_bytes(std::as_bytes(std::span(bytes)), "stem");
}

TEST(Model, GoodFile_GivesItsConfigAndTokenizer) {
  const std::string bytes = good().bytes();
  const auto model = load(bytes);
  ASSERT_TRUE(model.ok()) << model.error().to_string();
  const ModelConfig& config = (*model)->config();
  EXPECT_EQ(config.architecture, first_architecture());
  EXPECT_EQ(config.name, "stem");
  EXPECT_EQ(config.layers, 1u);
  EXPECT_EQ(config.hidden, 8u);
  EXPECT_EQ(config.vocab_size, 5u);
  EXPECT_EQ(config.context_length, 64u);
  EXPECT_EQ(config.heads, 2u);
  EXPECT_EQ(config.kv_heads, 1u);
  EXPECT_EQ(config.head_dim, 4u);
  EXPECT_EQ(config.ffn, 12u);
  EXPECT_EQ(config.norm_eps, 1e-5f);
  EXPECT_EQ(config.rope_base, 10000.0f);
  EXPECT_EQ(config.rope_dims, 4u);
  EXPECT_TRUE(config.tied_head);
  EXPECT_EQ((*model)->file_bytes(), bytes.size());
  const TokenizerData& tokenizer = (*model)->tokenizer();
  EXPECT_EQ(tokenizer.model, "gpt2");
  EXPECT_EQ(tokenizer.tokens, (std::vector<std::string_view>{"a", "b", "ab", "<s>", "</s>"}));
  EXPECT_EQ(tokenizer.types, (std::vector<int32_t>{1, 1, 1, 3, 3}));
  EXPECT_EQ(tokenizer.merges, std::vector<std::string_view>{"a b"});
  EXPECT_EQ(tokenizer.bos, 3);
  EXPECT_EQ(tokenizer.eos, 4);
  EXPECT_EQ(tokenizer.eot, std::nullopt);
  EXPECT_EQ(tokenizer.add_bos, true);
  EXPECT_EQ(tokenizer.add_eos, std::nullopt);
  ASSERT_EQ((*model)->kv_layers().size(), 1u);
  EXPECT_EQ((*model)->kv_layers()[0].kv_heads, 1u);
  EXPECT_EQ((*model)->kv_layers()[0].head_dim, 4u);
}

struct GoodFile {
  const char* name;
  std::function<void(TestFile&)> change;
};
const GoodFile kGoodFiles[] = {
    {"NoTokenizer",
     [](TestFile& f) { std::erase_if(f.keys, [](const auto& k) { return k.first.starts_with("tokenizer."); }); }},
    {"KvHeadsDefaultToHeads",
     [](TestFile& f) {
       f.erase(key("attention.head_count_kv"));
       f.tensor("blk.0.attn_k.weight") = {"blk.0.attn_k.weight", {8, 8}, MOTLEY_F32, 256};
       f.tensor("blk.0.attn_v.weight") = {"blk.0.attn_v.weight", {8, 8}, MOTLEY_F32, 256};
     }},
    {"PerLayerArraysThatAgree",
     [](TestFile& f) {
       f.set(key("attention.head_count_kv"), numbers<uint32_t>(GgufType::kU32, {1}));
       f.set(key("feed_forward_length"), numbers<int32_t>(GgufType::kI32, {12}));
     }},
    {"NeutralUnbuiltKeys",
     [](TestFile& f) {
       f.set(key("expert_count"), u32(0));
       f.set(key("logit_scale"), f32(1));
       f.set(key("attention.causal"), boolean(1));
       f.set(key("use_parallel_residual"), boolean(0));
     }},
    {"RopeScalingNone",
     [](TestFile& f) {
       f.set(key("rope.scaling.type"), text("none"));
       f.set(key("rope.scaling.factor"), f32(4));
     }},
    {"UnknownTensorOutsideTheLayers", [](TestFile& f) { f.add("something.else", {2}); }},
    {"UnknownKey", [](TestFile& f) { f.set("some.other.key", text("x")); }},
    {"OneOfOneSplit", [](TestFile& f) { f.set("split.count", u32(1)); }},
    {"TypeModel", [](TestFile& f) { f.set("general.type", text("model")); }},
    {"SpecialIdOfNone",
     [](TestFile& f) {
       f.set("tokenizer.ggml.bos_token_id", i32(-1));
       f.set("tokenizer.ggml.padding_token_id", u32(0xFFFFFFFF));
     }},
};

TEST(Model, HarmlessVariations_Load) {
  for (const GoodFile& variation : kGoodFiles) {
    SCOPED_TRACE(variation.name);
    TestFile file = good();
    variation.change(file);
    const auto model = load(file.bytes());
    EXPECT_TRUE(model.ok()) << model.error().to_string();
  }
}

TEST(Model, LinearRopeScaling_ScalesPositions) {
  const std::pair<const char*, bool> cases[] = {
      {"rope.scaling.factor", true}, {"rope.scaling.factor", false}, {"rope.scale_linear", false}};
  for (const auto& [suffix, with_type] : cases) {
    TestFile file = good();
    if (with_type) file.set(key("rope.scaling.type"), text("linear"));
    file.set(key(suffix), f32(4));
    const std::string bytes = file.bytes();
    const auto model = load(bytes);
    ASSERT_TRUE(model.ok()) << model.error().to_string();
    int ropes = 0;
    for (const GraphNode& node : (*model)->graph().nodes) {
      if (node.op.kind != MOTLEY_OP_ROPE) continue;
      EXPECT_EQ(node.op.attr.rope.position_scale, 0.25f);
      ++ropes;
    }
    EXPECT_EQ(ropes, 2);
  }
}

struct BadModel {
  const char* name;
  std::function<void(TestFile&)> spoil;
  std::string text;
  Code code = MOTLEY_INVALID_ARGUMENT;
};

void expect_refused(const BadModel& bad) {
  SCOPED_TRACE(bad.name);
  TestFile file = good();
  bad.spoil(file);
  const auto model = load(file.bytes());
  ASSERT_FALSE(model.ok());
  const std::string message = model.error().message();
  EXPECT_EQ(model.error().code(), bad.code) << message;
  EXPECT_THAT(message, HasSubstr(bad.text));
  EXPECT_THAT(message, Not(HasSubstr("\n")));
  EXPECT_THAT(message, AnyOf(StartsWith("key '"), StartsWith("tensor '"))) << "the place";
  EXPECT_THAT(message, AnyOf(HasSubstr("get it again"), HasSubstr("convert the model again"), HasSubstr("use a"),
                             HasSubstr("give the"), HasSubstr("get all parts"), HasSubstr("--max-model-len")))
      << "the remedy";
}

BadModel without(const char* suffix) {
  return {suffix, [suffix](TestFile& f) { f.erase(key(suffix)); }, "'" + key(suffix) + "': is missing"};
}
BadModel with(const char* name, const char* suffix, std::string value, Code code = MOTLEY_INVALID_ARGUMENT) {
  return {name, [=](TestFile& f) { f.set(key(suffix), value); }, "'" + key(suffix) + "'", code};
}

TEST(Model, BadHyperParameters_AreRefusedByKey) {
  const BadModel cases[] = {
      without("block_count"),
      without("context_length"),
      without("embedding_length"),
      without("feed_forward_length"),
      without("attention.head_count"),
      without("attention.layer_norm_rms_epsilon"),
      with("LayersZero", "block_count", u32(0)),
      with("LayersTooMany", "block_count", u32(1025)),
      with("LayersMoreThanTensors", "block_count", u32(1000)),
      with("LayersText", "block_count", text("1")),
      with("HiddenZero", "embedding_length", u32(0)),
      with("HiddenHuge", "embedding_length", u32(1u << 30)),
      with("ContextZero", "context_length", u32(0)),
      with("ContextHuge", "context_length", u32(~0u)),
      with("FfnNegative", "feed_forward_length", i32(-12)),
      with("FfnArrayOfWrongLength", "feed_forward_length", numbers<int32_t>(GgufType::kI32, {12, 12})),
      with("FfnArrayOfText", "feed_forward_length", texts({"12"})),
      with("FfnArrayOutOfRange", "feed_forward_length", numbers<int32_t>(GgufType::kI32, {0})),
      with("HeadsZero", "attention.head_count", u32(0)),
      with("HeadsThatDoNotDivide", "attention.head_count", u32(3)),
      with("KvHeadsThatDoNotDivide", "attention.head_count_kv", u32(4)),
      with("KeyLengthOdd", "attention.key_length", u32(3), MOTLEY_UNIMPLEMENTED),
      with("ValueLengthOfItsOwn", "attention.value_length", u32(8), MOTLEY_UNIMPLEMENTED),
      with("EpsilonZero", "attention.layer_norm_rms_epsilon", f32(0)),
      with("EpsilonLarge", "attention.layer_norm_rms_epsilon", f32(2)),
      with("RopeBaseNegative", "rope.freq_base", f32(-1)),
      with("RopeDimensionsOdd", "rope.dimension_count", u32(3)),
      with("RopeDimensionsAboveHead", "rope.dimension_count", u32(6)),
      with("LogitScale", "logit_scale", f32(2), MOTLEY_UNIMPLEMENTED),
      with("FinalSoftcapZero", "final_logit_softcapping", f32(0)),
      with("ParallelResidual", "use_parallel_residual", boolean(1), MOTLEY_UNIMPLEMENTED),
      with("NotCausal", "attention.causal", boolean(0), MOTLEY_UNIMPLEMENTED),
      with("VocabSizeContradicts", "vocab_size", u32(6)),
  };
  for (const BadModel& bad : cases) expect_refused(bad);
}

TEST(Model, BadScalingExpertsAndWindows_AreRefusedByKey) {
  const BadModel cases[] = {
      with("RopeScalingUnknown", "rope.scaling.type", text("spiral"), MOTLEY_UNIMPLEMENTED),
      with("YarnOfAnotherStrength", "rope.scaling.yarn_ext_factor", f32(0.5f), MOTLEY_UNIMPLEMENTED),
      {"YarnWithoutFactor", [](TestFile& f) { f.set(key("rope.scaling.type"), text("yarn")); },
       "'" + key("rope.scaling.factor") + "': is missing"},
      {"YarnOfBaseOne",
       [](TestFile& f) {
         f.set(key("rope.scaling.type"), text("yarn"));
         f.set(key("rope.scaling.factor"), f32(4));
         f.set(key("rope.freq_base"), f32(1));
       },
       "'" + key("rope.freq_base") + "'"},
      {"TemperatureBeyondTheOriginalContext",
       [](TestFile& f) {
         f.set(key("attention.temperature_scale"), f32(0.1f));
         f.set(key("rope.scaling.original_context_length"), u32(16));
       },
       "'" + key("attention.temperature_scale") + "'", MOTLEY_UNIMPLEMENTED},
      with("RopeScalingFactorZero", "rope.scaling.factor", f32(0)),
      with("RopeScalingTypeOfWrongType", "rope.scaling.type", u32(1)),
      with("ExpertsTooMany", "expert_count", u32(1u << 20)),
      {"ExpertsOfWhichNoneIsUsed", [](TestFile& f) { f.set(key("expert_count"), u32(8)); },
       "'" + key("expert_used_count") + "': is missing"},
      {"MoreExpertsUsedThanThereAre",
       [](TestFile& f) {
         f.set(key("expert_count"), u32(8));
         f.set(key("expert_used_count"), u32(9));
       },
       "'" + key("expert_used_count") + "'"},
      with("RouterUnknown", "expert_gating_func", u32(4), MOTLEY_UNIMPLEMENTED),
      with("ExpertsInGroups", "expert_group_count", u32(8), MOTLEY_UNIMPLEMENTED),
      with("DenseLayersFirst", "leading_dense_block_count", u32(1), MOTLEY_UNIMPLEMENTED),
      with("WindowOfWrongType", "attention.sliding_window", text("4096")),
      with("WindowPatternOfWrongLength", "attention.sliding_window_pattern", array(GgufType::kBool, 2, {1, 0})),
      with("WindowPatternOfNumbers", "attention.sliding_window_pattern", numbers<uint32_t>(GgufType::kU32, {1})),
      with("WindowPeriodZero", "attention.sliding_window_pattern", u32(0)),
      with("AttentionScaleNegative", "attention.scale", f32(-0.5f)),
  };
  for (const BadModel& bad : cases) expect_refused(bad);
}

TEST(Model, OddHeadDimension_IsRefused) {
  TestFile file = good();
  file.set(key("attention.key_length"), u32(3));
  file.set(key("attention.value_length"), u32(3));
  const auto model = load(file.bytes());
  ASSERT_FALSE(model.ok());
  EXPECT_THAT(model.error().message(), HasSubstr("a head dimension of 3 is odd"));
}

TEST(Model, LayersThatDiffer_AreRefused) {
  TestFile file = good();
  file.set(key("block_count"), u32(2));
  file.set(key("feed_forward_length"), numbers<int32_t>(GgufType::kI32, {12, 16}));
  const auto model = load(file.bytes());
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.error().code(), MOTLEY_UNIMPLEMENTED);
  EXPECT_THAT(model.error().message(), HasSubstr("differs between layers"));
}

TEST(Model, BadFilesAndTokenizers_AreRefusedByKey) {
  const auto set = [](const char* name, const char* full_key, std::string value, Code code = MOTLEY_INVALID_ARGUMENT) {
    return BadModel{name, [=](TestFile& f) { f.set(full_key, value); }, "'" + std::string(full_key) + "'", code};
  };
  const BadModel cases[] = {
      {"NoArchitecture", [](TestFile& f) { f.erase("general.architecture"); }, "'general.architecture': is missing"},
      set("ArchitectureOfWrongType", "general.architecture", u32(1)),
      set("ArchitectureUnknown", "general.architecture", text("nobody\nknows"), MOTLEY_UNIMPLEMENTED),
      set("Split", "split.count", typed(GgufType::kU16, raw(uint16_t{3})), MOTLEY_UNIMPLEMENTED),
      set("Adapter", "general.type", text("adapter"), MOTLEY_UNIMPLEMENTED),
      set("NameOfWrongType", "general.name", u32(1)),
      set("TokensOfWrongType", "tokenizer.ggml.tokens", numbers<int32_t>(GgufType::kI32, {1, 2, 3, 4, 5})),
      set("TokensTooFew", "tokenizer.ggml.tokens", texts({"a"})),
      set("MergesOfWrongType", "tokenizer.ggml.merges", text("a b")),
      set("TokenTypesTooFew", "tokenizer.ggml.token_type", numbers<int32_t>(GgufType::kI32, {1})),
      set("TokenTypeUnknown", "tokenizer.ggml.token_type", numbers<int32_t>(GgufType::kI32, {1, 1, 7, 1, 1})),
      set("TokenTypesOfWrongType", "tokenizer.ggml.token_type", numbers<float>(GgufType::kF32, {1, 1, 1, 1, 1})),
      set("ScoresTooFew", "tokenizer.ggml.scores", numbers<float>(GgufType::kF32, {1})),
      set("ScoresOfWrongType", "tokenizer.ggml.scores", numbers<int32_t>(GgufType::kI32, {1, 1, 1, 1, 1})),
      set("BosOutOfRange", "tokenizer.ggml.bos_token_id", u32(5)),
      set("EosOfWrongType", "tokenizer.ggml.eos_token_id", text("4")),
      set("ModelOfWrongType", "tokenizer.ggml.model", u32(1)),
      set("AddBosOfWrongType", "tokenizer.ggml.add_bos_token", u32(1)),
      set("TemplateOfWrongType", "tokenizer.chat_template", u32(1)),
  };
  for (const BadModel& bad : cases) expect_refused(bad);
}

TEST(Model, MissingOrMisshapenTensors_AreRefusedByName) {
  const TestFile whole = good();
  for (const TestTensor& tensor : whole.tensors) {
    const std::string quoted = "tensor '" + tensor.name + "'";
    expect_refused({"Missing", [&](TestFile& f) { f.erase_tensor(tensor.name); }, quoted + ": is missing"});
    if (tensor.name == "token_embd.weight") continue;  // its rows are the vocabulary: below
    expect_refused({"Misshapen", [&](TestFile& f) { f.tensor(tensor.name).dims.back() -= 1; }, quoted});
  }
  expect_refused({"ExtraRank",
                  [](TestFile& f) {
                    f.tensor("blk.0.attn_q.weight").dims = {8, 4, 2};
                  },
                  "is 8 x 4 x 2, but the model's parameters ask for 8 x 8"});
  expect_refused({"Vocabulary",
                  [](TestFile& f) {
                    f.tensor("token_embd.weight").dims = {8, 4};
                  },
                  "tokenizer.ggml.tokens"});
  expect_refused({"Width",
                  [](TestFile& f) {
                    f.tensor("token_embd.weight").dims = {4, 5};
                  },
                  "tensor 'token_embd.weight'"});
}

TEST(Model, UnbuiltTensors_AreRefusedByName) {
  const BadModel cases[] = {
      {"WeightType", [](TestFile& f) { f.tensor("blk.0.attn_q.weight").type = MOTLEY_I32; }, "type I32 is not built",
       MOTLEY_UNIMPLEMENTED},
      {"NormType", [](TestFile& f) { f.tensor("output_norm.weight").type = MOTLEY_I8; }, "tensor 'output_norm.weight'",
       MOTLEY_UNIMPLEMENTED},
      {"NormBias", [](TestFile& f) { f.add("blk.0.attn_norm.bias", {8}); }, "tensor 'blk.0.attn_norm.bias'",
       MOTLEY_UNIMPLEMENTED},
      {"SinksThatNobodyReads", [](TestFile& f) { f.add("blk.0.attn_sinks.weight", {2}); },
       "tensor 'blk.0.attn_sinks.weight'", MOTLEY_UNIMPLEMENTED},
      {"OutputBias", [](TestFile& f) { f.add("output.bias", {5}); }, "tensor 'output.bias'", MOTLEY_UNIMPLEMENTED},
      {"LayerBeyond", [](TestFile& f) { f.add("blk.1.attn_norm.weight", {8}); }, "blk.1.attn_norm",
       MOTLEY_UNIMPLEMENTED},
  };
  for (const BadModel& bad : cases) expect_refused(bad);
}

// Whatever the bytes, the answer is a model or a one-line refusal.
void expect_answer(const std::vector<char>& bytes) {
  const auto model = load_model_from_bytes(std::as_bytes(std::span(bytes)), "stem");
  if (model.ok()) {
    // Every weight must lie inside the bytes.
    for (size_t i = 0; i < (*model)->graph().weights.size(); ++i) {
      const auto data = (*model)->read(i)->data;
      const auto* first = std::as_bytes(std::span(bytes)).data();
      ASSERT_TRUE(data.data() >= first && data.data() + data.size() <= first + bytes.size());
    }
    return;
  }
  ASSERT_FALSE(model.error().message().empty());
  ASSERT_EQ(model.error().message().find('\n'), std::string::npos);
}

TEST(Model, EveryPrefix_IsRefused) {
  const std::string whole = good().bytes();
  for (size_t length = 0; length < whole.size(); ++length) {
    const std::vector<char> prefix(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
    ASSERT_FALSE(load_model_from_bytes(std::as_bytes(std::span(prefix)), "stem").ok()) << length;
  }
}

TEST(Model, EveryFlippedBit_GivesAModelOrARefusal) {
  const std::string whole = good().bytes();
  std::vector<char> bytes(whole.begin(), whole.end());
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    expect_answer(bytes);
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
  }
}

TEST(Model, RandomDamage_GivesAModelOrARefusal) {
  constexpr int kRounds = 20000;
  const std::string whole = good().bytes();
  std::mt19937 random(1);
  for (int round = 0; round < kRounds; ++round) {
    std::vector<char> bytes(whole.begin(), whole.end());
    for (uint32_t i = 0; i < 1 + random() % 8; ++i) {
      const size_t at = random() % bytes.size();
      const uint64_t interesting[] = {0, 1, 0x7F, 0xFF, random() & 0xFF};
      bytes[at] = static_cast<char>(interesting[random() % 5]);
    }
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    expect_answer(bytes);
  }
}

class ModelFile : public ::testing::Test {
 protected:
  ModelFile() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::temp_directory_path() / fmt::format("motley_model_{}_{}", info->name(), getpid());
    std::filesystem::create_directories(folder_);
  }
  ~ModelFile() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path write(const std::string& bytes) const {
    const auto path = folder_ / "tiny.gguf";
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }

  std::filesystem::path folder_;
};

TEST_F(ModelFile, Weights_AreTheFilesBytesBeforeAndAfterRelease) {
  TestFile file = good();
  file.set("general.name", text("Tiny"));
  // Large enough that whole pages lie inside.
  constexpr int64_t kTokens = 1000;
  file.tensor("token_embd.weight") = {"token_embd.weight", {8, kTokens}, MOTLEY_F32, 8 * kTokens * 4};
  std::erase_if(file.keys, [](const auto& k) { return k.first.starts_with("tokenizer."); });
  const std::string bytes = file.bytes();
  const auto model = Model::load(write(bytes));
  ASSERT_TRUE(model.ok()) << model.error().to_string();
  EXPECT_EQ((*model)->config().name, "Tiny");
  const auto& weights = (*model)->graph().weights;
  const auto embedding =
      std::find_if(weights.begin(), weights.end(), [](const GraphWeight& w) { return w.name == "token_embd.weight"; });
  ASSERT_NE(embedding, weights.end());
  const auto index = static_cast<size_t>(embedding - weights.begin());
  const WeightSource& source = (*model)->weight(index);
  EXPECT_EQ(source.rows, kTokens);
  EXPECT_EQ(source.cols, 8);
  ASSERT_EQ(source.bytes, static_cast<size_t>(8 * kTokens * 4));
  const auto same = [&] {
    const auto read = (*model)->read(index);
    return read.ok() && read->data.size() == source.bytes &&
           bytes.find(std::string_view(reinterpret_cast<const char*>(read->data.data()), read->data.size())) !=
               std::string::npos;
  };
  EXPECT_TRUE(same());
  (*model)->release(index);
  EXPECT_TRUE(same());
}

TEST_F(ModelFile, NameDefaultsToTheFilesStem) {
  const auto model = Model::load(write(good().bytes()));
  ASSERT_TRUE(model.ok());
  EXPECT_EQ((*model)->config().name, "tiny");
}

TEST_F(ModelFile, Refusals_NameTheFile) {
  const auto path = write("GGUF");
  const auto model = Model::load(path);
  ASSERT_FALSE(model.ok());
  EXPECT_THAT(model.error().message(), StartsWith(path.string() + ": byte 4: "));
}

TEST_F(ModelFile, WhatIsNoFile_IsRefused) {
  EXPECT_EQ(Model::load(folder_ / "absent.gguf").error().code(), MOTLEY_NOT_FOUND);
  EXPECT_EQ(Model::load(write("") / "below").error().code(), MOTLEY_NOT_FOUND);
  EXPECT_THAT(Model::load(folder_).error().message(), HasSubstr("'config.json': is missing"));
  EXPECT_THAT(Model::load(write("")).error().message(), HasSubstr("is empty"));
  const auto pipe = folder_ / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(Model::load(pipe).error().message(), HasSubstr("not a regular file"));
  EXPECT_THAT(Model::load("/dev/null").error().message(), HasSubstr("not a regular file"));
}

TEST_F(ModelFile, UnreadableFile_IsRefused) {
  if (geteuid() == 0) GTEST_SKIP() << "root may read everything";
  const auto path = write(good().bytes());
  std::filesystem::permissions(path, std::filesystem::perms::none);
  EXPECT_EQ(Model::load(path).error().code(), MOTLEY_PERMISSION_DENIED);
}

TEST(ModelDeathTest, WeightOutOfRange_IsAProgrammersError) {
  const std::string bytes = good().bytes();
  const auto model = load(bytes);
  ASSERT_TRUE(model.ok());
  EXPECT_DEATH((void)(*model)->weight(1000), "check failed");
}

}  // namespace
}  // namespace motley
