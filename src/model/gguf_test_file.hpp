// TestFile: a GGUF file for tests, put together freely, right or wrong. Every part can be replaced by raw bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/gguf.hpp"
#include "motley/types.h"

namespace motley::testing_files {

template <typename T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(T)};
}
inline std::string raw_text(std::string_view text) { return raw(uint64_t{text.size()}) + std::string(text); }

// A value with its type before it.
inline std::string typed(GgufType type, const std::string& bytes) { return raw(static_cast<int32_t>(type)) + bytes; }
inline std::string u32(uint32_t value) { return typed(GgufType::kU32, raw(value)); }
inline std::string i32(int32_t value) { return typed(GgufType::kI32, raw(value)); }
inline std::string f32(float value) { return typed(GgufType::kF32, raw(value)); }
inline std::string boolean(uint8_t value) { return typed(GgufType::kBool, raw(value)); }
inline std::string text(std::string_view value) { return typed(GgufType::kString, raw_text(value)); }
inline std::string array(GgufType element, uint64_t count, const std::string& elements) {
  return typed(GgufType::kArray, raw(static_cast<int32_t>(element)) + raw(count) + elements);
}
inline std::string texts(const std::vector<std::string>& values) {
  std::string elements;
  for (const std::string& value : values) elements += raw_text(value);
  return array(GgufType::kString, values.size(), elements);
}
template <typename T>
std::string numbers(GgufType element, const std::vector<T>& values) {
  std::string elements;
  for (const T value : values) elements += raw(value);
  return array(element, values.size(), elements);
}

struct TestTensor {
  std::string name;
  std::vector<int64_t> dims;
  int32_t type = MOTLEY_F32;
  uint64_t bytes = 0;
  std::optional<uint64_t> offset = std::nullopt;  // else after the tensor before
};

struct TestFile {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::optional<int64_t> tensor_count = std::nullopt, key_count = std::nullopt;  // else as many as there are
  std::vector<std::pair<std::string, std::string>> keys;                         // name, typed value
  std::vector<TestTensor> tensors;
  uint64_t alignment = 32;  // in use; the key is the test's business

  void set(const std::string& key, std::string value) {
    for (auto& [name, old] : keys) {
      if (name != key) continue;
      old = std::move(value);
      return;
    }
    keys.emplace_back(key, std::move(value));
  }
  void erase(const std::string& key) {
    std::erase_if(keys, [&](const auto& entry) { return entry.first == key; });
  }
  TestTensor& tensor(std::string_view name) {
    return *std::find_if(tensors.begin(), tensors.end(), [&](const TestTensor& t) { return t.name == name; });
  }
  void erase_tensor(std::string_view name) {
    std::erase_if(tensors, [&](const TestTensor& t) { return t.name == name; });
  }
  void add(std::string name, std::vector<int64_t> dims) {
    uint64_t bytes = sizeof(float);
    for (const int64_t dim : dims) bytes *= static_cast<uint64_t>(dim);
    tensors.push_back({std::move(name), std::move(dims), MOTLEY_F32, bytes});
  }

  // Tensor data counts up from 1, byte by byte, from tensor to tensor.
  std::string bytes() const {
    std::string out = magic + raw(version);
    out += raw(tensor_count.value_or(static_cast<int64_t>(tensors.size())));
    out += raw(key_count.value_or(static_cast<int64_t>(keys.size())));
    for (const auto& [key, value] : keys) out += raw_text(key) + value;
    std::string data;
    for (const TestTensor& t : tensors) {
      data.resize((data.size() + alignment - 1) / alignment * alignment, '\0');
      out += raw_text(t.name) + raw(static_cast<uint32_t>(t.dims.size()));
      for (const int64_t dim : t.dims) out += raw(dim);
      out += raw(t.type) + raw(t.offset.value_or(data.size()));
      for (uint64_t i = 0; i < t.bytes; ++i) data += static_cast<char>(data.size() % 251 + 1);
    }
    out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
    return out + data;
  }
};

// A complete model of one layer: width 8, 2 heads of 4 over 1 KV head, FFN 12, 5 tokens, tied head.
inline TestFile small_model(std::string_view architecture, bool head_norms = false) {
  const auto key = [&](std::string_view suffix) { return std::string(architecture) + "." + std::string(suffix); };
  TestFile file;
  file.set("general.architecture", text(architecture));
  file.set(key("block_count"), u32(1));
  file.set(key("context_length"), u32(64));
  file.set(key("embedding_length"), u32(8));
  file.set(key("feed_forward_length"), u32(12));
  file.set(key("attention.head_count"), u32(2));
  file.set(key("attention.head_count_kv"), u32(1));
  file.set(key("attention.layer_norm_rms_epsilon"), f32(1e-5f));
  file.set("tokenizer.ggml.model", text("gpt2"));
  file.set("tokenizer.ggml.tokens", texts({"a", "b", "ab", "<s>", "</s>"}));
  file.set("tokenizer.ggml.token_type", numbers<int32_t>(GgufType::kI32, {1, 1, 1, 3, 3}));
  file.set("tokenizer.ggml.merges", texts({"a b"}));
  file.set("tokenizer.ggml.bos_token_id", u32(3));
  file.set("tokenizer.ggml.eos_token_id", u32(4));
  file.set("tokenizer.ggml.add_bos_token", boolean(1));
  file.add("token_embd.weight", {8, 5});
  file.add("blk.0.attn_norm.weight", {8});
  file.add("blk.0.attn_q.weight", {8, 8});
  file.add("blk.0.attn_k.weight", {8, 4});
  file.add("blk.0.attn_v.weight", {8, 4});
  if (head_norms) {
    file.add("blk.0.attn_q_norm.weight", {4});
    file.add("blk.0.attn_k_norm.weight", {4});
  }
  file.add("blk.0.attn_output.weight", {8, 8});
  file.add("blk.0.ffn_norm.weight", {8});
  file.add("blk.0.ffn_gate.weight", {8, 12});
  file.add("blk.0.ffn_up.weight", {8, 12});
  file.add("blk.0.ffn_down.weight", {12, 8});
  file.add("output_norm.weight", {8});
  return file;
}

inline void add_qkv_biases(TestFile* file) {
  file->add("blk.0.attn_q.bias", {8});
  file->add("blk.0.attn_k.bias", {4});
  file->add("blk.0.attn_v.bias", {4});
}

// Four experts of width 6 in place of the dense FFN; two are used.
inline void use_experts(TestFile* file, const std::string& architecture) {
  for (const char* name : {"ffn_gate", "ffn_up", "ffn_down"}) {
    file->erase_tensor("blk.0." + std::string(name) + ".weight");
  }
  file->set(architecture + ".expert_count", u32(4));
  file->set(architecture + ".expert_used_count", u32(2));
  file->set(architecture + ".expert_feed_forward_length", u32(6));
  file->add("blk.0.ffn_gate_inp.weight", {8, 4});
  file->add("blk.0.ffn_gate_exps.weight", {8, 6, 4});
  file->add("blk.0.ffn_up_exps.weight", {8, 6, 4});
  file->add("blk.0.ffn_down_exps.weight", {6, 8, 4});
}

// Copies layer 0 until there are `layers` of them.
inline void repeat_layer(TestFile* file, const std::string& architecture, uint32_t layers) {
  file->set(architecture + ".block_count", u32(layers));
  const std::vector<TestTensor> tensors = file->tensors;
  for (uint32_t layer = 1; layer < layers; ++layer) {
    for (TestTensor tensor : tensors) {
      if (!tensor.name.starts_with("blk.0.")) continue;
      tensor.name = "blk." + std::to_string(layer) + tensor.name.substr(5);
      file->tensors.push_back(std::move(tensor));
    }
  }
}

}  // namespace motley::testing_files
