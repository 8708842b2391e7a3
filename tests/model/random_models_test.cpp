// Tiny random models of every architecture and weight type: each backend against the reference, and the promise that a
// row's logits do not depend on chunks and threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "model/dtype.hpp"
#include "model/forward.hpp"
#include "model/random_model.hpp"

namespace motley {
namespace {

using testing::Forward;
using testing::ForwardOptions;
using testing::RandomModel;

constexpr const char* kTypes[] = {"F32",  "F16",  "BF16", "Q8_0", "Q4_0",   "Q4_1",   "Q5_0",  "Q5_1", "Q2_K",
                                  "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "mix"};
constexpr const char* kArchitectures[] = {"llama", "qwen3"};  // with every type
// The others once; with experts in F32, since a router that sees rounded activations may choose another expert.
constexpr std::pair<const char*, const char*> kOthers[] = {{"mistral3", "Q8_0"}, {"qwen2", "Q4_1"}, {"gemma2", "Q8_0"},
                                                           {"gemma3", "Q4_0"},   {"phi3", "Q8_0"},  {"qwen2moe", "F32"},
                                                           {"qwen3moe", "F32"},  {"gpt-oss", "F32"}};
constexpr uint32_t kRows = 37;

make_model::ModelSpec spec_of(const std::string& architecture, const std::string& type) {
  make_model::ModelSpec spec;
  spec.architecture = architecture;
  spec.type = type;
  spec.seed = 11;
  spec.tied = architecture == "llama";
  spec.window = architecture.starts_with("gemma") || architecture == "gpt-oss" ? 9 : 0;
  spec.heads = 6;
  spec.kv_heads = 3;
  spec.head_dim = 48;
  spec.hidden = 256;
  spec.ffn = 512;
  const DtypeInfo* dtype = find_dtype(type);
  spec.heads = dtype == nullptr || dtype->block_elements == 256 ? 8 : 6;  // heads x dim is a row length too
  spec.kv_heads = spec.heads / 2;
  spec.head_dim = spec.heads == 8 ? 32 : 48;
  return spec;
}

std::vector<int32_t> random_ids(uint32_t vocab) {
  std::mt19937 random(5);
  std::vector<int32_t> ids(kRows);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % vocab);
  return ids;
}

std::vector<float> logits(const Model& model, const ForwardOptions& options, uint32_t chunk) {
  auto forward = Forward::create(model, options);
  CHECK(forward.ok(), "{}", forward.error().message());
  auto out = (*forward)->logits(random_ids(model.config().vocab_size), chunk);
  CHECK(out.ok(), "{}", out.error().message());
  return *std::move(out);
}

// Root of the mean squared difference over that of the reference.
double relative_error(const std::vector<float>& got, const std::vector<float>& want) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(double{got[i]} - double{want[i]}, 2);
    size += std::pow(double{want[i]}, 2);
  }
  return std::sqrt(difference / size);
}

class RandomModels : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {};

std::string name_of(const ::testing::TestParamInfo<RandomModels::ParamType>& info) {
  std::string name = std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

TEST_P(RandomModels, CpuBackend_AgreesWithTheReferenceAndDoesNotDependOnChunksOrThreads) {
  const auto [architecture, type] = GetParam();
  const RandomModel random(spec_of(architecture, type));
  ForwardOptions reference;
  reference.device = "REF:0";
  const auto want = logits(random.model(), reference, 0);
  EXPECT_EQ(want, logits(random.model(), reference, 5));
  ForwardOptions cpu;
  cpu.threads = 1;
  const auto whole = logits(random.model(), cpu, 0);
  EXPECT_LT(relative_error(whole, want), 0.03);  // int8 activations and float16 KV
  for (const uint32_t chunk : {1u, 7u, 16u}) EXPECT_EQ(whole, logits(random.model(), cpu, chunk)) << "chunk " << chunk;
  cpu.threads = 2;
  EXPECT_EQ(whole, logits(random.model(), cpu, 0));
  EXPECT_EQ(whole, logits(random.model(), cpu, 3));
}

INSTANTIATE_TEST_SUITE_P(All, RandomModels,
                         ::testing::Combine(::testing::ValuesIn(kArchitectures), ::testing::ValuesIn(kTypes)), name_of);
INSTANTIATE_TEST_SUITE_P(Others, RandomModels, ::testing::ValuesIn([] {
                           return std::vector<RandomModels::ParamType>(std::begin(kOthers), std::end(kOthers));
                         }()),
                         name_of);

}  // namespace
}  // namespace motley
