#include "model/hf/quantization.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <utility>

#include "base/quote.hpp"
#include "model/gguf.hpp"
#include "model/hf/numbers.hpp"
#include "motley/types.h"

namespace motley::hf {
namespace {

constexpr std::string_view kKey = "quantization_config";
constexpr int64_t kBlock = 32;          // elements of Motley's quantised blocks
constexpr int64_t kBlockMax = 1 << 20;  // elements of a row that share a scale

Status unbuilt(std::string_view setting, std::string_view value) {
  return error(MOTLEY_UNIMPLEMENTED, "key '{}': {} {} is not built; use the model in BF16, FP8, GPTQ, AWQ or GGUF",
               kKey, setting, value);
}

std::string shown(const JsonValue& value) {
  if (value.text() != nullptr) return in_quotes(*value.text());
  if (value.integer()) return fmt::format("{}", *value.integer());
  if (value.boolean() != nullptr) return *value.boolean() ? "true" : "false";
  return std::string(value.kind_name());
}

// A setting must have one of the values that are built; absent, it is taken to.
Status demand(const JsonValue& settings, std::string_view name, std::initializer_list<std::string_view> values) {
  const JsonValue* value = settings.find(name);
  if (value == nullptr || value->is_null()) return ok_status();
  std::string text = value->text() != nullptr ? *value->text() : shown(*value);
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  if (std::find(values.begin(), values.end(), text) != values.end()) return ok_status();
  return unbuilt(name, shown(*value));
}

bool flag(const JsonValue& settings, std::string_view name, bool silent) {
  const JsonValue* value = settings.find(name);
  return value == nullptr || value->boolean() == nullptr ? silent : *value->boolean();
}

// Columns that share a scale: "group_size", where -1 (or none) is a whole row.
Result<int64_t> read_group(const JsonValue& settings, std::string_view key = "group_size") {
  const JsonValue* value = settings.find(key);
  if (value == nullptr || value->is_null()) return int64_t{0};
  const int64_t size = value->integer().value_or(0);
  if (size == -1) return int64_t{0};
  if (size < 8 || size > kBlockMax || size % 8 != 0) {
    return invalid_argument("key '{}': '{}' is {}, neither -1 nor a multiple of 8 up to {}; get the model again", kKey,
                            key, shown(*value), kBlockMax);
  }
  return size;
}

// Where nothing else says how many columns share a scale.
Result<int64_t> require_group(const JsonValue& settings, std::string_view key) {
  if (settings.find(key) == nullptr) {
    return invalid_argument("key '{}': '{}' is missing; get the model again", kKey, key);
  }
  return read_group(settings, key);
}

Result<Quantization> read_fp8(const JsonValue& settings) {
  RETURN_IF_ERROR(demand(settings, "fmt", {"e4m3"}));
  Quantization q{.method = Quantization::Method::kFp8, .bits = 8};
  const JsonValue* block = settings.find("weight_block_size");
  if (block == nullptr || block->is_null()) return q;
  const auto size = [&](size_t i) { return (*block->array())[i].integer().value_or(0); };
  if (block->array() == nullptr || block->array()->size() != 2 || size(0) < 1 || size(1) < 1 || size(0) > kBlockMax ||
      size(1) > kBlockMax) {
    return invalid_argument("key '{}': 'weight_block_size' is not two sizes; get the model again", kKey);
  }
  q.block_rows = size(0);
  q.block_cols = size(1);
  return q;
}

// GPTQModel takes one off all zeros of a word at once, so that a zero of 0 borrows from the next; AutoGPTQ's readers
// take each number by itself. The two differ only where a zero is 0.
bool borrows(const JsonValue& settings) {
  const JsonValue* meta = settings.find("meta");
  const JsonValue* quantizer = meta == nullptr ? nullptr : meta->find("quantizer");
  if (quantizer != nullptr && quantizer->array() != nullptr && !quantizer->array()->empty()) {
    quantizer = &quantizer->array()->front();
  }
  return quantizer != nullptr && quantizer->text() != nullptr && quantizer->text()->starts_with("gptqmodel");
}

Result<Quantization> read_gptq(const JsonValue& settings) {
  RETURN_IF_ERROR(demand(settings, "bits", {"4"}));
  RETURN_IF_ERROR(demand(settings, "checkpoint_format", {"gptq", "gptq_v2"}));
  Quantization q{.method = Quantization::Method::kGptq, .bits = 4, .symmetric = flag(settings, "sym", true)};
  ASSIGN_OR_RETURN(q.block_cols, require_group(settings, "group_size"));
  const JsonValue* format = settings.find("checkpoint_format");
  if (format != nullptr && format->text() != nullptr && *format->text() == "gptq_v2") return q;
  if (borrows(settings)) {
    q.zero_word_add = 0x11111111;
  } else {
    q.zero_add = 1;
  }
  return q;
}

Result<Quantization> read_awq(const JsonValue& settings) {
  const bool own_names = settings.find("q_group_size") != nullptr;  // AutoAWQ's; the others are transformers'
  RETURN_IF_ERROR(demand(settings, own_names ? "w_bit" : "bits", {"4"}));
  RETURN_IF_ERROR(demand(settings, "version", {"gemm"}));
  RETURN_IF_ERROR(demand(settings, "zero_point", {"true"}));
  Quantization q{.method = Quantization::Method::kAwq, .bits = 4, .symmetric = false};
  ASSIGN_OR_RETURN(q.block_cols, require_group(settings, own_names ? "q_group_size" : "group_size"));
  return q;
}

Result<Quantization> read_compressed(const JsonValue& settings) {
  RETURN_IF_ERROR(
      demand(settings, "format", {"pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "dense"}));
  if (const JsonValue* sparsity = settings.find("sparsity_config"); sparsity != nullptr) {
    RETURN_IF_ERROR(demand(*sparsity, "format", {"dense"}));
  }
  Quantization q{.method = Quantization::Method::kCompressedTensors};
  const JsonValue* groups = settings.find("config_groups");
  if (groups == nullptr || groups->object() == nullptr || groups->object()->empty()) return q;
  if (groups->object()->size() != 1) return unbuilt("'config_groups' of", "several kinds");
  const JsonValue* weights = groups->object()->front().second.find("weights");
  if (weights == nullptr || weights->object() == nullptr) return unbuilt("'config_groups'", "without 'weights'");
  RETURN_IF_ERROR(demand(*weights, "num_bits", {"4", "8"}));
  RETURN_IF_ERROR(demand(*weights, "type", {"int", "float"}));
  RETURN_IF_ERROR(demand(*weights, "strategy", {"tensor", "channel", "group", "block"}));
  RETURN_IF_ERROR(demand(*weights, "dynamic", {"false"}));
  const JsonValue* bits = weights->find("num_bits");
  q.bits = bits == nullptr ? 8 : static_cast<int>(bits->integer().value_or(8));
  q.symmetric = flag(*weights, "symmetric", true);
  ASSIGN_OR_RETURN(q.block_cols, read_group(*weights));
  const JsonValue* block = weights->find("block_structure");
  if (block != nullptr && !block->is_null()) {
    const auto size = [&](size_t i) { return (*block->array())[i].integer().value_or(0); };
    if (block->array() == nullptr || block->array()->size() != 2 || size(0) < 1 || size(1) < 1) {
      return invalid_argument("key '{}': 'block_structure' is not two sizes; get the model again", kKey);
    }
    q.block_rows = std::min(size(0), kBlockMax);
    q.block_cols = std::min(size(1), kBlockMax);
  }
  return q;
}

Result<Quantization> read_mxfp4(const JsonValue& /*settings*/) {
  return Quantization{.method = Quantization::Method::kMxfp4, .bits = 4};
}

struct MethodReader {
  std::string_view name;
  Result<Quantization> (*read)(const JsonValue& settings);
};
constexpr std::array kMethods = {
    MethodReader{"fp8", read_fp8},     MethodReader{"fbgemm_fp8", read_fp8},
    MethodReader{"gptq", read_gptq},   MethodReader{"awq", read_awq},
    MethodReader{"mxfp4", read_mxfp4}, MethodReader{"compressed-tensors", read_compressed}};

bool has_shape(const SafetensorsTensor& tensor, std::initializer_list<int64_t> shape) {
  return std::equal(tensor.shape.begin(), tensor.shape.end(), shape.begin(), shape.end());
}

int64_t parts(int64_t whole, int64_t part) { return whole / part + (whole % part != 0 ? 1 : 0); }

bool is_real(Element element) {
  return element == Element::kF32 || element == Element::kF16 || element == Element::kBF16;
}

Result<const SafetensorsTensor*> need(const Module& module, std::string_view part) {
  const SafetensorsTensor* tensor = module.find(part);
  if (tensor != nullptr) return tensor;
  return invalid_argument("tensor {}: has no {} beside it; {}", in_quotes(module.shown()), in_quotes(part),
                          kGetFileAgain);
}

Status contradicts(const SafetensorsTensor& tensor, int64_t rows, int64_t cols) {
  return tensor_error(MOTLEY_INVALID_ARGUMENT, tensor,
                      fmt::format("does not fit a matrix of {} x {}; {}", rows, cols, kGetFileAgain));
}

// The scales of a matrix: one for all, one a row, or one a block of the configured size.
Result<BlockScales> describe_scales(const SafetensorsTensor& tensor, int64_t rows, int64_t cols,
                                    const Quantization& q) {
  if (!is_real(tensor.element())) {
    return tensor_error(MOTLEY_UNIMPLEMENTED, tensor, "is not F32, F16 or BF16; use another model");
  }
  BlockScales scales{.values = tensor.data, .element = tensor.element(), .block_rows = rows, .block_cols = cols};
  if (tensor.shape.size() <= 2 && tensor.data.size() == element_bytes(tensor.element())) return scales;
  if (has_shape(tensor, {rows}) || has_shape(tensor, {rows, 1})) {
    scales.block_rows = 1;
    scales.row_step = 1;
    return scales;
  }
  if (q.block_cols == 0) return contradicts(tensor, rows, cols);
  scales.block_rows = q.block_rows;
  scales.block_cols = q.block_cols;
  scales.row_step = parts(cols, q.block_cols);
  scales.col_step = 1;
  if (!has_shape(tensor, {parts(rows, q.block_rows), scales.row_step})) return contradicts(tensor, rows, cols);
  return scales;
}

// Motley's eight- and four-bit blocks have one scale for 32 columns, those of FP8 one for 64.
bool fits_blocks(int64_t cols, const BlockScales& scales, int64_t block = kBlock) {
  return cols % block == 0 && (scales.block_cols % block == 0 || scales.block_cols == cols);
}

int32_t int8_dtype(int64_t cols, const BlockScales& scales) {
  return fits_blocks(cols, scales) ? MOTLEY_Q8_0 : MOTLEY_F16;
}

Result<DescribedMatrix> describe_scaled(const Module& module, const SafetensorsTensor& weight, const Quantization& q) {
  if (weight.shape.size() != 2) {
    return tensor_error(MOTLEY_UNIMPLEMENTED, weight, "is quantised but no matrix; use another model");
  }
  const int64_t rows = weight.shape[0];
  const int64_t cols = weight.shape[1];
  const bool inverse = module.find("weight_scale_inv") != nullptr;
  ASSIGN_OR_RETURN(const SafetensorsTensor* scale, need(module, inverse ? "weight_scale_inv" : "weight_scale"));
  ASSIGN_OR_RETURN(const BlockScales scales, describe_scales(*scale, rows, cols, q));
  ScaledMatrix matrix{.values = weight.data,
                      .element = weight.element(),
                      .offset_128 = false,
                      .rows = rows,
                      .cols = cols,
                      .row_bytes = cols,
                      .scales = scales};
  if (weight.element() == Element::kF8E4M3)
    return DescribedMatrix{matrix, fits_blocks(cols, scales, kF8Block) ? MOTLEY_F8_E4M3_S64 : MOTLEY_BF16};
  return DescribedMatrix{matrix, int8_dtype(cols, scales)};
}

// Whether column c belongs to group c / size for all columns; act-order mixes them.
Result<bool> is_ordered(const SafetensorsTensor& index, int64_t cols, int64_t groups, int64_t size) {
  if (index.element() != Element::kI32 || !has_shape(index, {cols})) {
    return tensor_error(MOTLEY_INVALID_ARGUMENT, index, fmt::format("is not I32 [{}]; {}", cols, kGetFileAgain));
  }
  bool ordered = true;
  for (int64_t col = 0; col < cols; ++col) {
    const auto group = load_as<int32_t>(index.data.data() + col * 4);
    if (group < 0 || group >= groups) {
      return tensor_error(MOTLEY_INVALID_ARGUMENT, index,
                          fmt::format("names group {} of {}; {}", group, groups, kGetFileAgain));
    }
    ordered = ordered && group == col / size;
  }
  return ordered;
}

// The format that holds a four-bit matrix: Q4_0 with all zeros at 8, Q4_1 with others, F16 where 32 neighbours have
// several scales.
Result<DescribedMatrix> finish_int4(const Module& module, Int4Matrix matrix, const SafetensorsTensor* index,
                                    const Quantization& q) {
  if (index != nullptr) {
    ASSIGN_OR_RETURN(const bool ordered, is_ordered(*index, matrix.cols, matrix.groups, matrix.scales.block_cols));
    if (!ordered) matrix.column_group = index->data;
  }
  if (!matrix.column_group.empty() || !fits_blocks(matrix.cols, matrix.scales)) {
    return DescribedMatrix{matrix, MOTLEY_F16};
  }
  if (!q.symmetric) return DescribedMatrix{matrix, MOTLEY_Q4_1};
  if (!zeros_are_eight(matrix)) {
    return invalid_argument("tensor {}: has zero points, but '{}' says that it is symmetric; get the model again",
                            in_quotes(module.shown()), kKey);
  }
  return DescribedMatrix{matrix, MOTLEY_Q4_0};
}

// GPTQ and AWQ: qweight, qzeros [groups, rows / 8], scales [groups, rows], g_idx [cols].
Result<DescribedMatrix> describe_qweight(const Module& module, const SafetensorsTensor& weight, const Quantization& q) {
  const bool gptq = q.method == Quantization::Method::kGptq;
  if (!gptq && q.method != Quantization::Method::kAwq) {
    return tensor_error(MOTLEY_INVALID_ARGUMENT, weight,
                        fmt::format("is quantised, but '{}' is neither gptq nor awq; get the model again", kKey));
  }
  ASSIGN_OR_RETURN(const SafetensorsTensor* scale, need(module, "scales"));
  ASSIGN_OR_RETURN(const SafetensorsTensor* zeros, need(module, "qzeros"));
  if (weight.element() != Element::kI32 || weight.shape.size() != 2 || zeros->element() != Element::kI32 ||
      !is_real(scale->element()) || weight.shape[0] > kBlockMax || weight.shape[1] > kBlockMax) {
    return tensor_error(MOTLEY_INVALID_ARGUMENT, weight,
                        fmt::format("is no matrix of I32 with zeros of I32 and scales of F16; {}", kGetFileAgain));
  }
  Int4Matrix matrix;
  matrix.rows = gptq ? weight.shape[1] : weight.shape[1] * 8;
  matrix.cols = gptq ? weight.shape[0] * 8 : weight.shape[0];
  const int64_t group = q.block_cols == 0 ? std::max<int64_t>(matrix.cols, 1) : q.block_cols;
  matrix.groups = parts(matrix.cols, group);
  if (matrix.rows % 8 != 0 || !has_shape(*scale, {matrix.groups, matrix.rows}) ||
      !has_shape(*zeros, {matrix.groups, matrix.rows / 8})) {
    return contradicts(*scale, matrix.rows, matrix.cols);
  }
  matrix.codes = weight.data;
  matrix.zeros = zeros->data;
  matrix.zero_add = q.zero_add;
  matrix.zero_word_add = q.zero_word_add;
  matrix.zero_layout = {.along_rows = true, .row_step = 1, .col_step = matrix.rows / 8};
  matrix.code_layout = gptq ? Int4Layout{.along_rows = false, .row_step = 1, .col_step = matrix.rows}
                            : Int4Layout{.along_rows = true, .row_step = 1, .col_step = matrix.rows / 8};
  if (!gptq) {
    constexpr std::array<uint8_t, 8> kAwqOrder = {0, 4, 1, 5, 2, 6, 3, 7};
    matrix.code_layout.order = matrix.zero_layout.order = kAwqOrder;
  }
  matrix.scales = {.values = scale->data,
                   .element = scale->element(),
                   .block_rows = 1,
                   .block_cols = group,
                   .row_step = 1,
                   .col_step = matrix.rows};
  return finish_int4(module, matrix, module.find("g_idx"), q);
}

// compressed-tensors, pack-quantized: weight_packed I32 [rows, cols * bits / 32], weight_scale, weight_shape.
Result<DescribedMatrix> describe_packed(const Module& module, const SafetensorsTensor& weight, const Quantization& q) {
  if (weight.element() != Element::kI32 || weight.shape.size() != 2 || q.bits > 8 || weight.shape[1] > kBlockMax) {
    return tensor_error(MOTLEY_INVALID_ARGUMENT, weight,
                        fmt::format("is no matrix of I32 whose bits '{}' tells; {}", kKey, kGetFileAgain));
  }
  const int64_t rows = weight.shape[0];
  const int64_t per_word = 32 / q.bits;
  const int64_t cols = weight.shape[1] * per_word;
  ASSIGN_OR_RETURN(const SafetensorsTensor* shape, need(module, "weight_shape"));
  if (shape->element() != Element::kI64 || !has_shape(*shape, {2}) || load_as<int64_t>(shape->data.data()) != rows ||
      load_as<int64_t>(shape->data.data() + 8) != cols) {
    return contradicts(*shape, rows, cols);
  }
  ASSIGN_OR_RETURN(const SafetensorsTensor* scale, need(module, "weight_scale"));
  ASSIGN_OR_RETURN(const BlockScales scales, describe_scales(*scale, rows, cols, q));
  const SafetensorsTensor* zeros = module.find("weight_zero_point");
  const SafetensorsTensor* index = module.find("weight_g_idx");
  if (q.bits == 8) {
    if (zeros != nullptr || index != nullptr) {
      return tensor_error(MOTLEY_UNIMPLEMENTED, weight, "int8 with zero points or act-order is not built");
    }
    const ScaledMatrix matrix{.values = weight.data,
                              .element = Element::kI8,
                              .offset_128 = true,
                              .rows = rows,
                              .cols = cols,
                              .row_bytes = cols,
                              .scales = scales};
    return DescribedMatrix{matrix, int8_dtype(cols, scales)};
  }
  Int4Matrix matrix;
  matrix.codes = weight.data;
  matrix.rows = rows;
  matrix.cols = cols;
  matrix.scales = scales;
  matrix.groups = parts(cols, scales.block_cols);
  matrix.code_layout = {.along_rows = false, .row_step = weight.shape[1], .col_step = 1};
  if (zeros != nullptr) {
    if (zeros->element() != Element::kI32 || !has_shape(*zeros, {parts(rows, 8), matrix.groups})) {
      return contradicts(*zeros, rows, cols);
    }
    matrix.zeros = zeros->data;
    matrix.zero_layout = {.along_rows = true, .row_step = matrix.groups, .col_step = 1};
  } else if (!q.symmetric) {
    return need(module, "weight_zero_point").error();
  }
  return finish_int4(module, matrix, index, q);
}

// A part that nobody reads may change what the module computes.
Status check_parts(const Module& module, std::initializer_list<std::string_view> read) {
  for (const auto& [part, tensor] : module.tensors) {
    if (std::find(read.begin(), read.end(), part) != read.end()) continue;
    return tensor_error(MOTLEY_UNIMPLEMENTED, *tensor, "is not part of a module as it is built; use another model");
  }
  return ok_status();
}

}  // namespace

Status tensor_error(Code code, const SafetensorsTensor& tensor, std::string_view what) {
  return error(code, "tensor {} ({}): {}", in_quotes(tensor.name), tensor.describe(), what);
}

int32_t dtype_of(Element element) {
  switch (element) {
    case Element::kF16: return MOTLEY_F16;
    case Element::kBF16: return MOTLEY_BF16;
    default: CHECK(element == Element::kF32); return MOTLEY_F32;
  }
}

const SafetensorsTensor* Module::find(std::string_view part) const {
  const auto at = std::find_if(tensors.begin(), tensors.end(), [&](const auto& entry) { return entry.first == part; });
  return at == tensors.end() ? nullptr : at->second;
}

std::string_view Module::shown() const {
  return tensors.empty() ? std::string_view(name) : tensors.front().second->name;
}

Result<Quantization> read_quantization(const JsonValue& config) {
  const JsonValue* settings = config.find(kKey);
  if (settings == nullptr) settings = config.find("compression_config");
  if (settings == nullptr || settings->is_null()) return Quantization();
  const JsonValue* method = settings->find("quant_method");
  if (method == nullptr || method->text() == nullptr) {
    return invalid_argument("key '{}': has no 'quant_method'; get the model again", kKey);
  }
  const auto reader = std::find_if(kMethods.begin(), kMethods.end(),
                                   [&](const MethodReader& entry) { return entry.name == *method->text(); });
  if (reader == kMethods.end()) return unbuilt("quant_method", in_quotes(*method->text()));
  return reader->read(*settings);
}

Result<DescribedMatrix> describe_plain(const SafetensorsTensor& tensor) {
  if (!is_real(tensor.element())) {
    return tensor_error(MOTLEY_UNIMPLEMENTED, tensor, "this type is not built; use a model in F32, F16 or BF16");
  }
  const int64_t cols = tensor.shape.empty() ? 1 : tensor.shape.back();
  if (tensor.data.empty()) return tensor_error(MOTLEY_INVALID_ARGUMENT, tensor, "is empty; get the model again");
  const auto elements = static_cast<int64_t>(tensor.data.size() / element_bytes(tensor.element()));
  return DescribedMatrix{
      PlainMatrix{
          .values = tensor.data, .element = tensor.element(), .rows = elements / cols, .cols = cols, .row_step = cols},
      dtype_of(tensor.element())};
}

Result<DescribedMatrix> describe_matrix(const Module& module, const Quantization& quantization) {
  for (const auto& [part, tensor] : module.tensors) {
    if (tensor->data.empty()) return tensor_error(MOTLEY_INVALID_ARGUMENT, *tensor, "is empty; get the model again");
  }
  if (const SafetensorsTensor* weight = module.find("weight"); weight != nullptr) {
    if (weight->element() != Element::kF8E4M3 && weight->element() != Element::kI8) {
      RETURN_IF_ERROR(check_parts(module, {"weight", "bias"}));
      return describe_plain(*weight);
    }
    RETURN_IF_ERROR(check_parts(module, {"weight", "bias", "weight_scale", "weight_scale_inv"}));
    return describe_scaled(module, *weight, quantization);
  }
  if (const SafetensorsTensor* weight = module.find("qweight"); weight != nullptr) {
    RETURN_IF_ERROR(check_parts(module, {"qweight", "qzeros", "scales", "g_idx", "bias"}));
    return describe_qweight(module, *weight, quantization);
  }
  if (const SafetensorsTensor* weight = module.find("weight_packed"); weight != nullptr) {
    RETURN_IF_ERROR(check_parts(
        module, {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", "bias"}));
    return describe_packed(module, *weight, quantization);
  }
  return invalid_argument("tensor {}: its module has no weight; {}", in_quotes(module.shown()), kGetFileAgain);
}

}  // namespace motley::hf
