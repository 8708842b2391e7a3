// Any text, read as a config.json and as an index of safetensors files: hyper-parameters in their ranges, plain file
// names, or a refusal of one line.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.hpp"
#include "fuzz/refusal_check.hpp"
#include "model/hf/checkpoint.hpp"
#include "model/hf/config.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using motley::fuzz::check_refusal;

void check_model(const motley::hf::ModelDescription& model) {
  const motley::HyperParameters& parameters = model.parameters;
  const motley::ModelConfig& config = parameters.config;
  CHECK(config.layers > 0 && config.hidden > 0 && config.vocab_size > 0 && config.context_length > 0);
  CHECK(config.kv_heads > 0 && config.heads % config.kv_heads == 0);
  CHECK(config.head_dim % 2 == 0 && config.rope_dims % 2 == 0 && config.rope_dims <= config.head_dim);
  CHECK(parameters.experts.used <= parameters.experts.count);
  CHECK(model.rope_divisors.empty() || model.rope_divisors.size() == config.rope_dims / 2);
  for (const float divisor : model.rope_divisors) CHECK(std::isfinite(divisor) && divisor > 0, "{}", divisor);
  CHECK(std::isfinite(parameters.rope.magnitude) && parameters.rope.magnitude > 0, "{}", parameters.rope.magnitude);
  for (uint32_t layer = 0; layer < config.layers; ++layer) (void)window_of_layer(parameters, layer);
  for (const int32_t id : model.end_tokens) CHECK(id >= 0 && static_cast<uint32_t>(id) < config.vocab_size);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto model = motley::hf::parse_config(text, {}); model.ok()) {
    check_model(*model);
  } else {
    check_refusal(model.error());
  }
  const auto index = motley::hf::parse_index(text);
  if (!index.ok()) {
    check_refusal(index.error());
    return 0;
  }
  for (const auto& [tensor, file] : *index) CHECK(motley::hf::is_plain_file_name(file), "{}", file);
  return 0;
}
