// Any bytes, read as a safetensors file: tensors inside the bytes that do not overlap, and matrices of them that can be
// made, or a refusal of one line.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/check.hpp"
#include "fuzz/refusal_check.hpp"
#include "model/dtype.hpp"
#include "model/hf/matrices.hpp"
#include "model/hf/quantization.hpp"
#include "model/hf/safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using motley::fuzz::check_refusal;
using motley::hf::Quantization;

// The file's tensors as the parts of one module.
void make_matrix(const motley::hf::SafetensorsFile& file, const Quantization& quantization) {
  motley::hf::Module module;
  for (const auto& tensor : file.tensors()) module.tensors.emplace_back(tensor.name, &tensor);
  if (module.tensors.empty()) return;
  const auto matrix = describe_matrix(module, quantization);
  if (!matrix.ok()) return check_refusal(matrix.error());
  const int64_t rows = rows_of(matrix->source), cols = cols_of(matrix->source);
  const motley::DtypeInfo& info = *motley::find_dtype(matrix->dtype);
  CHECK(cols % info.block_elements == 0, "{} of {}", cols, info.name);
  std::vector<std::byte> made(static_cast<size_t>(rows * (cols / info.block_elements * info.block_bytes)));
  make_rows(matrix->source, matrix->dtype, 0, rows, made.data());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  const auto file = motley::hf::SafetensorsFile::parse(bytes);
  if (!file.ok()) {
    check_refusal(file.error());
    return 0;
  }
  for (const auto& tensor : file->tensors()) {
    CHECK(tensor.data.data() >= bytes.data() && tensor.data.data() + tensor.data.size() <= bytes.data() + size);
    CHECK(file->find(tensor.name) == &tensor, "{}", tensor.name);
  }
  using Method = Quantization::Method;
  make_matrix(*file, {});
  make_matrix(*file, {.method = Method::kFp8, .bits = 8, .block_rows = 2, .block_cols = 4});
  make_matrix(*file, {.method = Method::kGptq, .bits = 4, .symmetric = false, .block_cols = 32, .zero_add = 1});
  make_matrix(*file, {.method = Method::kGptq, .bits = 4, .symmetric = true, .block_cols = 8, .zero_add = 1});
  make_matrix(*file, {.method = Method::kAwq, .bits = 4, .symmetric = false, .block_cols = 32});
  make_matrix(*file, {.method = Method::kCompressedTensors, .bits = 4, .symmetric = false, .block_cols = 32});
  make_matrix(*file, {.method = Method::kCompressedTensors, .bits = 8, .block_cols = 32});
  return 0;
}
