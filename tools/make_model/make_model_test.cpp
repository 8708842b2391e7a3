#include "make_model/make_model.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <unordered_set>

#include "make_model/random_weights.hpp"
#include "model/architecture.hpp"
#include "model/dtype.hpp"
#include "model/model.hpp"

namespace motley::make_model {
namespace {

using ::testing::HasSubstr;

// A folder of this test's own, removed at the end.
class MakeModel : public ::testing::Test {
 protected:
  MakeModel() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::temp_directory_path() / fmt::format("make_model_{}_{}", info->name(), getpid());
    std::filesystem::create_directories(folder_);
  }
  ~MakeModel() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path path(const std::string& name) const { return folder_ / name; }
  static std::string bytes(const std::filesystem::path& file) {
    std::ifstream stream(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  std::filesystem::path folder_;
};

float half(const std::byte* at) {
  uint16_t bits = 0;
  std::memcpy(&bits, at, 2);
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  const float value = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                    : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  return (bits & 0x8000) != 0 ? -value : value;
}

int byte_at(const std::byte* at) { return std::to_integer<int>(*at); }
int nibble(const std::byte* at, int high) { return high != 0 ? byte_at(at) >> 4 : byte_at(at) & 15; }

// Element e of 32: the word of fifth bits, then the nibbles.
int five_bits(const std::byte* at, int e) {
  return nibble(at + 4 + e % 16, e / 16) + 16 * ((byte_at(at + e / 8) >> (e % 8)) & 1);
}
constexpr float kIq4Values[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr float kFp4Values[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Element e of a block, after the formulas of docs/formats/gguf.md.
float element(int32_t dtype, const std::byte* block, int e) {
  switch (dtype) {
    case MOTLEY_F32: {
      float value = 0;
      std::memcpy(&value, block, 4);
      return value;
    }
    case MOTLEY_F16: return half(block);
    case MOTLEY_BF16: {
      const uint32_t bits = static_cast<uint32_t>(byte_at(block) | byte_at(block + 1) << 8) << 16;
      float value = 0;
      std::memcpy(&value, &bits, 4);
      return value;
    }
    case MOTLEY_Q8_0: return half(block) * static_cast<float>(static_cast<int8_t>(byte_at(block + 2 + e)));
    case MOTLEY_Q4_0: return half(block) * static_cast<float>(nibble(block + 2 + e % 16, e / 16) - 8);
    case MOTLEY_Q5_0: return half(block) * static_cast<float>(five_bits(block + 2, e) - 16);
    case MOTLEY_Q5_1: return half(block) * static_cast<float>(five_bits(block + 4, e)) + half(block + 2);
    case MOTLEY_IQ4_NL: return half(block) * kIq4Values[nibble(block + 2 + e % 16, e / 16)];
    case MOTLEY_IQ4_XS: {
      const int j = e / 32;
      const int high = byte_at(block + 2 + j / 4) >> (2 * (j % 4)) & 3;
      const int scale = nibble(block + 4 + j / 2, j % 2) + 16 * high - 32;
      return half(block) * static_cast<float>(scale) * kIq4Values[nibble(block + 8 + 16 * j + e % 16, e % 32 / 16)];
    }
    case MOTLEY_MXFP4: return std::ldexp(kFp4Values[nibble(block + 1 + e % 16, e / 16)], byte_at(block) - 128);
    case MOTLEY_Q2_K: {
      const int q = (byte_at(block + 16 + e / 128 * 32 + e % 32) >> (e % 128 / 32 * 2)) & 3;
      const std::byte* scale = block + e / 16;
      return half(block + 80) * static_cast<float>(nibble(scale, 0) * q) -
             half(block + 82) * static_cast<float>(nibble(scale, 1));
    }
    case MOTLEY_Q3_K: {
      const int low = (byte_at(block + 32 + e / 128 * 32 + e % 32) >> (e % 128 / 32 * 2)) & 3;
      const int high = (byte_at(block + e % 32) >> (e / 32)) & 1;
      const int k = e / 16;
      const int scale = nibble(block + 96 + k % 8, k / 8) + 16 * ((byte_at(block + 104 + k % 4) >> (k / 4 * 2)) & 3);
      return half(block + 108) * static_cast<float>((scale - 32) * (low + 4 * high - 4));
    }
    case MOTLEY_Q4_1: return half(block) * static_cast<float>(nibble(block + 4 + e % 16, e / 16)) + half(block + 2);
    case MOTLEY_Q4_K:
    case MOTLEY_Q5_K: {
      const std::byte* s = block + 4;
      const bool five = dtype == MOTLEY_Q5_K;
      const int j = e / 32;
      const int scale = j < 4 ? byte_at(s + j) & 63 : (byte_at(s + j + 4) & 15) | (byte_at(s + j - 4) >> 6) << 4;
      const int minimum = j < 4 ? byte_at(s + j + 4) & 63 : (byte_at(s + j + 4) >> 4) | (byte_at(s + j) >> 6) << 4;
      const int fifth = five ? (byte_at(block + 16 + e % 32) >> j) & 1 : 0;
      const int q = nibble(block + (five ? 48 : 16) + 32 * (j / 2) + e % 32, j % 2) + 16 * fifth;
      return half(block) * static_cast<float>(scale * q) - half(block + 2) * static_cast<float>(minimum);
    }
    case MOTLEY_Q6_K: {
      const int n = e / 128;
      const int g = e % 128 / 32;
      const int l = e % 32;
      const int low = nibble(block + 64 * n + 32 * (g % 2) + l, g / 2);
      const int high = (byte_at(block + 128 + 32 * n + l) >> (2 * g)) & 3;
      const int scale = static_cast<int8_t>(byte_at(block + 192 + e / 16));
      return half(block + 208) * static_cast<float>(scale * ((low | high << 4) - 32));
    }
    default: ADD_FAILURE() << "dtype " << dtype; return 0;
  }
}

struct Moments {
  double mean = 0, deviation = 0;
};
Moments moments(const Model& model, size_t index) {
  const WeightSource& weight = model.weight(index);
  const auto bytes = model.read(index);
  CHECK(bytes.ok());
  const DtypeInfo& info = *find_dtype(weight.dtype);
  double sum = 0;
  double squares = 0;
  double count = 0;
  for (size_t at = 0; at < bytes->data.size(); at += info.block_bytes) {
    for (int e = 0; e < static_cast<int>(info.block_elements); ++e) {
      const double value = element(weight.dtype, bytes->data.data() + at, e);
      sum += value;
      squares += value * value;
      ++count;
    }
  }
  EXPECT_EQ(count, static_cast<double>(weight.experts * weight.rows * weight.cols));
  return {sum / count, std::sqrt(squares / count - sum / count * (sum / count))};
}

// The mean and deviation that a weight is drawn with.
Moments drawn_with(const GraphWeight& weight) {
  const std::string& name = weight.name;
  if (name.ends_with(".bias")) return {0, 0.1};
  if (name.ends_with("attn_sinks.weight")) return {0, 1};
  if (weight.rows == 1 && name.find("shexp") == std::string::npos) return {1, 0.1};
  return {0, 1 / std::sqrt(static_cast<double>(weight.cols))};
}

TEST_F(MakeModel, EveryTypeAndArchitecture_LoadsWithValuesOfTheRightSize) {
  for (const Architecture* architecture : architectures()) {
    for (const char* type : {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K",
                             "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"}) {
      SCOPED_TRACE(fmt::format("{} {}", architecture->name, type));
      const ModelSpec spec{
          .architecture = std::string(architecture->name), .layers = 1, .type = type, .seed = 5, .vocabulary = false};
      ASSERT_EQ(make_model(spec, path("m.gguf")).to_string(), "OK");
      const auto model = Model::load(path("m.gguf"));
      ASSERT_TRUE(model.ok()) << model.error().to_string();
      EXPECT_TRUE((*model)->tokenizer().tokens.empty());
      const Graph& graph = (*model)->graph();
      for (size_t i = 0; i < graph.weights.size(); ++i) {
        const Moments found = moments(**model, i);
        const Moments wanted = drawn_with(graph.weights[i]);
        // Three standard errors of the deviation, and of the mean, of so many elements.
        const WeightSource& weight = (*model)->weight(i);
        const double count = static_cast<double>(weight.experts * weight.rows * weight.cols);
        const double slack = 0.08 + 3 / std::sqrt(2 * count);
        EXPECT_NEAR(found.deviation, wanted.deviation, wanted.deviation * slack) << graph.weights[i].name;
        EXPECT_NEAR(found.mean, wanted.mean, wanted.deviation * (0.1 + 3 / std::sqrt(count))) << graph.weights[i].name;
      }
    }
  }
}

TEST_F(MakeModel, EveryOptionOfAnArchitecture_ShowsInTheGraph) {
  ASSERT_EQ(
      make_model({.architecture = "phi3", .context = 64, .window = 20, .rope_scaling = "longrope"}, path("m.gguf"))
          .to_string(),
      "OK");
  const auto model = Model::load(path("m.gguf"));
  ASSERT_TRUE(model.ok()) << model.error().to_string();
  EXPECT_EQ((*model)->kv_layers()[0].window, 20u);
  bool divided = false;
  for (const GraphWeight& weight : (*model)->graph().weights) {
    divided = divided || weight.name == "rope_factors_long.weight";
  }
  EXPECT_TRUE(divided);
  ASSERT_EQ(make_model({.experts = 8, .experts_used = 4, .expert_ffn = 64}, path("m.gguf")).to_string(), "OK");
  const auto experts = Model::load(path("m.gguf"));
  ASSERT_TRUE(experts.ok()) << experts.error().to_string();
  for (const GraphNode& node : (*experts)->graph().nodes) {
    if (node.op.kind != MOTLEY_OP_TOPK_ROUTER) continue;
    EXPECT_EQ(node.op.attr.router.experts, 8);
    EXPECT_EQ(node.op.attr.router.top_k, 4);
  }
}

TEST_F(MakeModel, Shapes_AreTakenAndUnknownOnesRefused) {
  ModelSpec spec{.architecture = "qwen3moe"};
  ASSERT_TRUE(apply_shape("8b", &spec).ok());
  EXPECT_EQ(spec.hidden, 4096u);
  EXPECT_EQ(spec.experts, 64u);
  spec.architecture = "llama";
  spec.experts = 0;
  ASSERT_TRUE(apply_shape("70b", &spec).ok());
  EXPECT_EQ(spec.layers, 80u);
  EXPECT_EQ(spec.experts, 0u);
  EXPECT_THAT(apply_shape("9b", &spec).message(), HasSubstr("--shape: 9b is not one of tiny, 1b, 8b, 70b"));
}

// 3,000,000 blocks of F32 are more than are drawn.
TEST_F(MakeModel, LargeMatrices_RepeatButNotRowByRow) {
  const ModelSpec spec{.layers = 1, .hidden = 1024, .vocab = 3000, .type = "F32", .vocabulary = false};
  ASSERT_EQ(make_model(spec, path("m.gguf")).to_string(), "OK");
  const auto model = Model::load(path("m.gguf"));
  ASSERT_TRUE(model.ok()) << model.error().to_string();
  const auto embedding = (*model)->read(0);
  ASSERT_TRUE(embedding.ok());
  ASSERT_EQ((*model)->weight(0).rows, 3000);
  std::unordered_set<std::string_view> rows;
  for (size_t row = 0; row < 3000; ++row) {
    rows.insert({reinterpret_cast<const char*>(embedding->data.data()) + row * 4096, 4096});
  }
  EXPECT_EQ(rows.size(), 3000u);
}

TEST_F(MakeModel, SameSeed_GivesTheSameBytes) {
  ModelSpec spec{.architecture = "qwen3", .type = "mix", .seed = 9};
  ASSERT_TRUE(make_model(spec, path("a")).ok());
  ASSERT_TRUE(make_model(spec, path("b")).ok());
  spec.seed = 10;
  ASSERT_TRUE(make_model(spec, path("c")).ok());
  EXPECT_EQ(bytes(path("a")), bytes(path("b")));
  EXPECT_NE(bytes(path("a")), bytes(path("c")));
}

TEST_F(MakeModel, TinyShapes_Load) {
  ModelSpec spec{.layers = 2,
                 .hidden = 64,
                 .heads = 4,
                 .kv_heads = 2,
                 .ffn = 96,
                 .context = 64,
                 .vocab = 259,
                 .type = "Q4_1",
                 .tied = true,
                 .rope_freqs = true};
  ASSERT_EQ(make_model(spec, path("m.gguf")).to_string(), "OK");
  const auto model = Model::load(path("m.gguf"));
  ASSERT_TRUE(model.ok()) << model.error().to_string();
  EXPECT_TRUE((*model)->config().tied_head);
  EXPECT_EQ((*model)->config().vocab_size, 259u);
}

TEST_F(MakeModel, Mix_HoldsSeveralTypes) {
  ModelSpec spec{.type = "mix"};
  ASSERT_TRUE(make_model(spec, path("m.gguf")).ok());
  const auto model = Model::load(path("m.gguf"));
  ASSERT_TRUE(model.ok()) << model.error().to_string();
  std::unordered_set<int32_t> types;
  for (size_t i = 0; i < (*model)->graph().weights.size(); ++i) types.insert((*model)->weight(i).dtype);
  EXPECT_EQ(types.size(), 16u);
}

TEST_F(MakeModel, BuiltInVocabulary_IsConsistent) {
  ASSERT_TRUE(make_model({.vocab = 400, .type = "F16"}, path("m.gguf")).ok());
  const auto model = Model::load(path("m.gguf"));
  ASSERT_TRUE(model.ok());
  const TokenizerData& data = (*model)->tokenizer();
  std::unordered_set<std::string_view> known(data.tokens.begin(), data.tokens.end());
  EXPECT_EQ(known.size(), 400u) << "tokens must differ";
  EXPECT_EQ(data.tokens[*data.eos], "<|im_end|>");
  EXPECT_FALSE(data.merges.empty());
  for (const std::string_view merge : data.merges) {
    const size_t gap = merge.find(' ', 1);
    const std::string joined = std::string(merge.substr(0, gap)) + std::string(merge.substr(gap + 1));
    EXPECT_TRUE(known.contains(merge.substr(0, gap))) << merge;
    EXPECT_TRUE(known.contains(merge.substr(gap + 1))) << merge;
    EXPECT_TRUE(known.contains(joined)) << merge;
  }
  EXPECT_EQ(data.types[0], 3);
  EXPECT_EQ(data.types[3], 1);
  EXPECT_EQ(data.types[399], 1);
}

TEST_F(MakeModel, VocabularyOfAnotherFile_IsCopied) {
  ASSERT_TRUE(make_model({.vocab = 300, .type = "F16"}, path("source.gguf")).ok());
  ASSERT_TRUE(make_model({.type = "F32", .vocab_from = path("source.gguf")}, path("m.gguf")).ok());
  const auto source = Model::load(path("source.gguf"));
  const auto model = Model::load(path("m.gguf"));
  ASSERT_TRUE(source.ok() && model.ok());
  EXPECT_EQ((*model)->config().vocab_size, 300u);
  EXPECT_EQ((*model)->tokenizer().tokens, (*source)->tokenizer().tokens);
  EXPECT_EQ((*model)->tokenizer().merges, (*source)->tokenizer().merges);
  EXPECT_EQ((*model)->tokenizer().chat_template, (*source)->tokenizer().chat_template);
}

TEST_F(MakeModel, ImpossibleOptions_AreRefusedByName) {
  const std::pair<ModelSpec, const char*> cases[] = {
      {{.architecture = "gpt9"}, "--arch"},
      {{.hidden = 64, .type = "Q4_K"}, "--hidden: 64 is not a multiple of 256"},
      {{.ffn = 100, .type = "Q8_0"}, "--ffn: 100 is not a multiple of 32"},
      {{.type = "IQ2_XS"}, "--type"},
      {{.type = "q"}, "--type"},
      {{.layers = 0}, "--layers"},
      {{.heads = 3}, "--heads: 3 does not divide"},
      {{.heads = 0}, "--heads"},
      {{.kv_heads = 3}, "--kv-heads"},
      {{.kv_heads = 0}, "--kv-heads"},
      {{.head_dim = 33}, "--head-dim"},
      {{.vocab = 100}, "--vocab"},
      {{.vocab_from = "/nonexistent/file"}, "no such file"},
  };
  for (const auto& [spec, text] : cases) {
    const Status status = make_model(spec, path("m.gguf"));
    EXPECT_FALSE(status.ok()) << text;
    EXPECT_THAT(status.message(), HasSubstr(text));
    EXPECT_FALSE(std::filesystem::exists(path("m.gguf")));
  }
  EXPECT_FALSE(make_model({}, path("no/such/folder/m.gguf")).ok());
  std::filesystem::create_directory(path("folder"));
  EXPECT_THAT(make_model({}, path("folder")).message(), HasSubstr("is there and no file"));
}

TEST(RandomWeights, Halves_RoundToNearestEven) {
  EXPECT_EQ(to_f16(0.0f), 0x0000);
  EXPECT_EQ(to_f16(-2.0f), 0xC000);
  EXPECT_EQ(to_f16(1.0f + 0x1p-11f), 0x3C00);      // tie, to even
  EXPECT_EQ(to_f16(1.0f + 3 * 0x1p-11f), 0x3C02);  // tie, to even
  EXPECT_EQ(to_f16(65504.0f), 0x7BFF);
  EXPECT_EQ(to_f16(65520.0f), 0x7C00);
  EXPECT_EQ(to_f16(0x1p-24f), 0x0001);
  EXPECT_EQ(to_f16(0x1p-14f), 0x0400);
  EXPECT_EQ(to_f16(0x1p-14f - 0x1p-26f), 0x0400);  // rounds up into the normal numbers
  EXPECT_EQ(to_bf16(1.0f + 0x1p-8f), 0x3F80);
  EXPECT_EQ(to_bf16(1.0f + 3 * 0x1p-8f), 0x3F82);
}

}  // namespace
}  // namespace motley::make_model
