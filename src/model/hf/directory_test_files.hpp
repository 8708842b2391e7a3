// Hugging Face directories for tests, put together freely, right or wrong.
#pragma once

#include <stdlib.h>  // NOLINT(modernize-deprecated-headers): mkdtemp

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.hpp"

namespace motley::hf::testing_files {

struct TestTensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

inline std::string f32_bytes(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// Counts up from `first` in steps of 1/64.
inline TestTensor f32_tensor(std::string name, std::vector<int64_t> shape, float first = 0) {
  size_t count = 1;
  for (const int64_t dim : shape) count *= static_cast<size_t>(dim);
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = first + static_cast<float>(i) / 64;
  return {std::move(name), "F32", std::move(shape), f32_bytes(values)};
}

// A header as given, then the data.
inline std::string raw_safetensors(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + data;
}

inline std::string safetensors(const std::vector<TestTensor>& tensors) {
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const TestTensor& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return raw_safetensors(text, data);
}

// A folder that goes with the object.
class TestFolder {
 public:
  TestFolder() {
    std::string path = (std::filesystem::temp_directory_path() / "motley-hf-XXXXXX").string();
    CHECK(mkdtemp(path.data()) != nullptr);
    path_ = path;
  }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  ~TestFolder() { std::filesystem::remove_all(path_); }

  const std::filesystem::path& path() const { return path_; }
  void write(const std::string& name, const std::string& bytes) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << bytes;
  }
  void erase(const std::string& name) const { std::filesystem::remove(path_ / name); }

 private:
  std::filesystem::path path_;
};

// A complete model of one layer: width 8, 2 heads of 4 over 1 KV head, FFN 12, 5 tokens, tied head.
inline nlohmann::json small_config() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"hidden_act", "silu"},
          {"hidden_size", 8},
          {"intermediate_size", 12},
          {"max_position_embeddings", 64},
          {"num_attention_heads", 2},
          {"num_hidden_layers", 1},
          {"num_key_value_heads", 1},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"tie_word_embeddings", true},
          {"eos_token_id", 4},
          {"vocab_size", 5}};
}

inline std::vector<TestTensor> small_tensors() {
  const std::string layer = "model.layers.0.";
  return {f32_tensor("model.embed_tokens.weight", {5, 8}),
          f32_tensor(layer + "input_layernorm.weight", {8}, 1),
          f32_tensor(layer + "self_attn.q_proj.weight", {8, 8}, 2),
          f32_tensor(layer + "self_attn.k_proj.weight", {4, 8}, 3),
          f32_tensor(layer + "self_attn.v_proj.weight", {4, 8}, 4),
          f32_tensor(layer + "self_attn.o_proj.weight", {8, 8}, 5),
          f32_tensor(layer + "post_attention_layernorm.weight", {8}, 6),
          f32_tensor(layer + "mlp.gate_proj.weight", {12, 8}, 7),
          f32_tensor(layer + "mlp.up_proj.weight", {12, 8}, 8),
          f32_tensor(layer + "mlp.down_proj.weight", {8, 12}, 9),
          f32_tensor("model.norm.weight", {8}, 10)};
}

inline TestTensor& find_tensor(std::vector<TestTensor>& tensors, std::string_view name) {
  for (TestTensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  CHECK(false, "no tensor {}", name);
  return tensors.front();
}

}  // namespace motley::hf::testing_files
