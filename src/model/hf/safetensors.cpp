#include "model/hf/safetensors.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "base/quote.hpp"
#include "model/gguf.hpp"
#include "model/hf/json.hpp"

namespace motley::hf {
namespace {

constexpr size_t kRankMax = 8;
constexpr size_t kNameBytesMax = 1024;
constexpr std::string_view kMetadata = "__metadata__";

constexpr std::array kElements = {
    ElementInfo{"F32", Element::kF32, 32},   ElementInfo{"F16", Element::kF16, 16},
    ElementInfo{"BF16", Element::kBF16, 16}, ElementInfo{"F8_E4M3", Element::kF8E4M3, 8},
    ElementInfo{"I8", Element::kI8, 8},      ElementInfo{"U8", Element::kU8, 8},
    ElementInfo{"I32", Element::kI32, 32},   ElementInfo{"I64", Element::kI64, 64},
    ElementInfo{"BOOL", Element::kOther, 8}, ElementInfo{"I16", Element::kOther, 16},
    ElementInfo{"U16", Element::kOther, 16}, ElementInfo{"U32", Element::kOther, 32},
    ElementInfo{"U64", Element::kOther, 64}, ElementInfo{"F64", Element::kOther, 64},
    ElementInfo{"C64", Element::kOther, 64}, ElementInfo{"F8_E5M2", Element::kOther, 8},
    ElementInfo{"F4", Element::kOther, 4},   ElementInfo{"F8_E8M0", Element::kOther, 8},
};

const ElementInfo* find_element(std::string_view name) {
  const auto at = std::find_if(kElements.begin(), kElements.end(), [&](const auto& info) { return info.name == name; });
  return at == kElements.end() ? nullptr : &*at;
}

Status tensor_error(std::string_view name, std::string_view what) {
  return invalid_argument("tensor {}: {}; {}", in_quotes(name), what, kGetFileAgain);
}

// Where a tensor's bytes lie in the data part.
struct Range {
  uint64_t begin = 0, end = 0;
};

Result<Range> read_range(std::string_view name, const JsonValue& entry, uint64_t data_bytes) {
  const JsonValue* offsets = entry.find("data_offsets");
  const JsonValue::Array* pair = offsets == nullptr ? nullptr : offsets->array();
  const auto bound = [&](size_t i) { return (*pair)[i].integer().value_or(-1); };
  if (pair == nullptr || pair->size() != 2 || bound(0) < 0 || bound(1) < 0) {
    return tensor_error(name, "has no 'data_offsets' of two whole numbers");
  }
  const Range range{static_cast<uint64_t>(bound(0)), static_cast<uint64_t>(bound(1))};
  if (range.begin > range.end || range.end > data_bytes) {
    return tensor_error(name, fmt::format("its data offsets {} to {} do not lie in the {} data bytes of the file",
                                          range.begin, range.end, data_bytes));
  }
  return range;
}

// Reads "shape"; `elements` becomes their product.
Status read_shape(const JsonValue& entry, SafetensorsTensor* tensor, uint64_t* elements) {
  const JsonValue* shape = entry.find("shape");
  if (shape == nullptr || shape->array() == nullptr || shape->array()->size() > kRankMax) {
    return tensor_error(tensor->name, fmt::format("has no 'shape' of at most {} whole numbers", kRankMax));
  }
  *elements = 1;
  for (const JsonValue& value : *shape->array()) {
    const int64_t dim = value.integer().value_or(-1);
    if (dim < 0 || __builtin_mul_overflow(*elements, static_cast<uint64_t>(dim), elements)) {
      return tensor_error(tensor->name, "has a dimension that is not a whole number >= 0, or too many elements");
    }
    tensor->shape.push_back(dim);
  }
  return ok_status();
}

Result<SafetensorsTensor> read_tensor(const JsonValue::Member& member, std::span<const std::byte> data) {
  const auto& [name, entry] = member;
  if (name.empty() || name.size() > kNameBytesMax || name.find('\0') != std::string::npos) {
    return tensor_error(name,
                        fmt::format("its name is empty, longer than {} bytes or contains a zero byte", kNameBytesMax));
  }
  SafetensorsTensor tensor;
  tensor.name = name;
  const JsonValue* type = entry.find("dtype");
  if (type == nullptr || type->text() == nullptr) return tensor_error(name, "has no 'dtype'");
  tensor.type = find_element(*type->text());
  if (tensor.type == nullptr) {
    return error(MOTLEY_UNIMPLEMENTED, "tensor {}: type {} is not known; use a model with weights in F32, F16 or BF16",
                 in_quotes(name), in_quotes(*type->text()));
  }
  uint64_t elements = 0;
  RETURN_IF_ERROR(read_shape(entry, &tensor, &elements));
  ASSIGN_OR_RETURN(const Range range, read_range(name, entry, data.size()));
  uint64_t bits = 0;
  if (__builtin_mul_overflow(elements, uint64_t{tensor.type->bits}, &bits) || bits % 8 != 0 ||
      bits / 8 != range.end - range.begin) {
    return tensor_error(name, fmt::format("{} bytes of data do not hold its {} elements of {}", range.end - range.begin,
                                          elements, tensor.type->name));
  }
  tensor.data = data.subspan(range.begin, range.end - range.begin);
  return tensor;
}

// The format demands that every byte of the data part belongs to one tensor.
Status check_cover(const std::vector<SafetensorsTensor>& tensors, std::span<const std::byte> data) {
  std::vector<const SafetensorsTensor*> order;
  order.reserve(tensors.size());
  for (const SafetensorsTensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const SafetensorsTensor* a, const SafetensorsTensor* b) {
    return std::pair(a->data.data(), a->data.size()) < std::pair(b->data.data(), b->data.size());
  });
  const std::byte* covered = data.data();
  for (const SafetensorsTensor* tensor : order) {
    if (tensor->data.data() < covered) return tensor_error(tensor->name, "its data overlaps that of another tensor");
    if (tensor->data.data() > covered) return tensor_error(tensor->name, "its data follows bytes of no tensor");
    covered += tensor->data.size();
  }
  if (covered != data.data() + data.size()) {
    return invalid_argument("the last {} bytes belong to no tensor; {}", data.data() + data.size() - covered,
                            kGetFileAgain);
  }
  return ok_status();
}

}  // namespace

std::string SafetensorsTensor::describe() const {
  std::string dims;
  for (const int64_t dim : shape) dims += fmt::format("{}{}", dims.empty() ? "" : ", ", dim);
  return fmt::format("{} [{}]", type->name, dims);
}

Result<SafetensorsFile> SafetensorsFile::parse(std::span<const std::byte> bytes) {
  uint64_t header_bytes = 0;
  if (bytes.size() < sizeof(header_bytes)) {
    return invalid_argument("byte 0: {} bytes are no safetensors file; {}", bytes.size(), kGetFileAgain);
  }
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  bytes = bytes.subspan(sizeof(header_bytes));
  if (header_bytes > kSafetensorsHeaderBytesMax || header_bytes > bytes.size()) {
    return invalid_argument(
        "byte 0: a header of {} bytes is above {} or reaches beyond the end of the file; not a safetensors file, or {}",
        header_bytes, kSafetensorsHeaderBytesMax, kGetFileAgain);
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()), header_bytes);
  auto root = parse_json(header);
  if (!root.ok()) return root.error().annotate("header");
  if (root->object() == nullptr) return invalid_argument("header: is no JSON object; {}", kGetFileAgain);
  const std::span<const std::byte> data = bytes.subspan(header_bytes);
  SafetensorsFile file;
  for (const JsonValue::Member& member : *root->object()) {
    if (member.first == kMetadata) continue;
    ASSIGN_OR_RETURN(SafetensorsTensor tensor, read_tensor(member, data));
    file.tensors_.push_back(std::move(tensor));
  }
  RETURN_IF_ERROR(check_cover(file.tensors_, data));
  return file;
}

const SafetensorsTensor* SafetensorsFile::find(std::string_view name) const {
  const auto at =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const SafetensorsTensor& tensor, std::string_view wanted) { return tensor.name < wanted; });
  return at != tensors_.end() && at->name == name ? &*at : nullptr;
}

}  // namespace motley::hf
