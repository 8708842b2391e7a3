// Tiny models in Hugging Face layout, one of each class: every logit against transformers' (tools/golden/hf_models.py).
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/forward.hpp"
#include "model/hf/directory_test_files.hpp"

namespace motley {
namespace {

using hf::testing_files::TestFolder;
using hf::testing_files::TestTensor;

const nlohmann::json& golden() {
  static const nlohmann::json json =
      nlohmann::json::parse(std::ifstream(MOTLEY_SOURCE_DIR "/tests/golden/hf_models.json"));
  return json;
}

// As `weights` in tools/golden/hf_models.py: (-1/4, 1/4) evenly, 1 added to norms.
TestTensor weights(const std::string& name, std::vector<int64_t> shape) {
  uint64_t seed = 0xCBF29CE484222325u;
  for (const char byte : name) seed = (seed ^ static_cast<uint8_t>(byte)) * 0x100000001B3u;
  size_t count = 1;
  for (const int64_t dim : shape) count *= static_cast<size_t>(dim);
  const bool norm = name.find("norm") != std::string::npos;
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    uint64_t x = seed + (i + 1) * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    const float even = (static_cast<float>(x >> 40) - 0x1p23f) * 0x1p-25f;
    values[i] = norm ? 1.0f + even : even;
  }
  return {name, "F32", std::move(shape), hf::testing_files::f32_bytes(values)};
}

class HfModels : public ::testing::TestWithParam<size_t> {};

TEST_P(HfModels, Logits_AreTransformers) {
  const nlohmann::json& entry = golden().at("models").at(GetParam());
  SCOPED_TRACE(entry.at("name").get<std::string>());
  const TestFolder folder;
  folder.write("config.json", entry.at("config").dump());
  std::vector<TestTensor> tensors;
  for (const nlohmann::json& tensor : entry.at("tensors")) tensors.push_back(weights(tensor.at(0), tensor.at(1)));
  folder.write("model.safetensors", hf::testing_files::safetensors(tensors));
  const auto model = Model::load(folder.path());
  ASSERT_TRUE(model.ok()) << model.error().to_string();

  testing::ForwardOptions options;
  options.device = "REF:0";
  options.kv_dtype = MOTLEY_F32;
  auto forward = testing::Forward::create(**model, options);
  ASSERT_TRUE(forward.ok()) << forward.error().to_string();
  const std::vector<int32_t> ids = golden().at("ids");
  const auto logits = (*forward)->logits(ids);
  ASSERT_TRUE(logits.ok()) << logits.error().to_string();

  const size_t vocab = (*model)->config().vocab_size;
  double error = 0, size = 0;
  for (size_t i = 0; i < golden().at("positions").size(); ++i) {
    const size_t row = golden().at("positions").at(i);
    for (size_t id = 0; id < vocab; ++id) {
      const double wanted = entry.at("logits").at(i).at(id);
      error += std::pow((*logits)[row * vocab + id] - wanted, 2);
      size += wanted * wanted;
    }
  }
  EXPECT_LT(std::sqrt(error / size), 1e-5) << "both compute in float32";
}

INSTANTIATE_TEST_SUITE_P(All, HfModels, ::testing::Range(size_t{0}, golden().at("models").size()));

}  // namespace
}  // namespace motley
