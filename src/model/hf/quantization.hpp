// From the tensors of one module of a checkpoint, with what config.json says of their quantisation, to a matrix.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.hpp"
#include "model/hf/json.hpp"
#include "model/hf/matrices.hpp"
#include "model/hf/safetensors.hpp"

namespace motley::hf {

// quantization_config of config.json. Which tensors a module has decides how it is read; these numbers say what shapes
// and codes mean.
struct Quantization {
  enum class Method { kNone, kFp8, kGptq, kAwq, kCompressedTensors, kMxfp4 };
  Method method = Method::kNone;
  int bits = 16;
  bool symmetric = true;
  int64_t block_rows = 1;  // elements that share a scale, where it is not one for a row or for all;
  int64_t block_cols = 0;  // 0 = a whole row
  // GPTQ's first format stores its zeros less one: of each number, or of each word as a whole.
  uint8_t zero_add = 0;
  uint32_t zero_word_add = 0;
};

// UNIMPLEMENTED for a method or setting that is not built, INVALID_ARGUMENT for wrong types. `config` is config.json.
Result<Quantization> read_quantization(const JsonValue& config);

// The tensors that share a name up to its last part: "weight", "bias", "weight_scale", ...
struct Module {
  std::string name;  // without the last part
  std::vector<std::pair<std::string_view, const SafetensorsTensor*>> tensors;

  const SafetensorsTensor* find(std::string_view part) const;
  // The tensor that messages name.
  std::string_view shown() const;
};

struct DescribedMatrix {
  MatrixSource source;
  int32_t dtype = 0;  // motley_dtype that make_rows() is asked for
};

// The module's matrix (or vector, as one row), not its bias. INVALID_ARGUMENT where shapes contradict each other,
// UNIMPLEMENTED for types and parts that are not built; texts name the tensor.
Result<DescribedMatrix> describe_matrix(const Module& module, const Quantization& quantization);

// A tensor of F32, F16 or BF16 with its axes joined but for the last: [rows, cols].
Result<DescribedMatrix> describe_plain(const SafetensorsTensor& tensor);

// motley_dtype of F32, F16 and BF16.
int32_t dtype_of(Element element);

Status tensor_error(Code code, const SafetensorsTensor& tensor, std::string_view what);

}  // namespace motley::hf
