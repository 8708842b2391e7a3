// From config.json (and generation_config.json) to hyper-parameters, checked. docs/formats/huggingface.md lists the
// keys.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/status.hpp"
#include "model/architecture.hpp"
#include "model/hf/json.hpp"
#include "model/hf/quantization.hpp"
#include "model/hyper_parameters.hpp"
#include "model/model.hpp"

namespace motley::hf {

struct ModelDescription {
  const Architecture* architecture = nullptr;
  HyperParameters parameters;
  Quantization quantization;
  // Of the rope's frequencies, rope_dims / 2 (the weight that parameters.rope.divisors names), or empty.
  std::vector<float> rope_divisors;
  std::optional<bool> tied_head;    // empty: the checkpoint tells
  std::vector<int32_t> end_tokens;  // "eos_token_id"
};

// The weight's name under which the store offers ModelDescription::rope_divisors.
inline constexpr std::string_view kRopeDivisorsName = "rope_freqs.weight";

// INVALID_ARGUMENT for keys that are missing, of a wrong type, out of range or in contradiction; UNIMPLEMENTED for
// model classes, rope scalings, quantisations and keys that ask for a computation that is not built.
Result<ModelDescription> parse_config(std::string_view text, const LoadOptions& options);

// "eos_token_id" of a configuration: none, one id or a list. INVALID_ARGUMENT for ids outside of the vocabulary.
Result<std::vector<int32_t>> read_end_tokens(const JsonValue& values, uint32_t vocab_size);

}  // namespace motley::hf
