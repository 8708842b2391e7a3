// SafetensorsFile: the directory of a safetensors file (docs/formats/safetensors.md), checked, the data still in place.
//
// parse() trusts no byte: header length, offsets, shapes and their products are checked against the file; tensors cover
// the data part without overlap or hole. Spans point into the bytes given. Immutable after parse().
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.hpp"

namespace motley::hf {

// The element types that weights are made of; the format's other types are known by size and name alone.
enum class Element { kF32, kF16, kBF16, kF8E4M3, kI8, kU8, kI32, kI64, kOther };

struct ElementInfo {
  std::string_view name;  // as the file spells it
  Element element = Element::kOther;
  uint32_t bits = 0;
};

struct SafetensorsTensor {
  std::string name;
  const ElementInfo* type = nullptr;  // into the table of types; never null
  std::vector<int64_t> shape;         // slowest axis first; empty for a scalar
  std::span<const std::byte> data;    // of any alignment

  Element element() const { return type->element; }
  // "F16 [5, 8]", for messages.
  std::string describe() const;
};

class SafetensorsFile {
 public:
  // INVALID_ARGUMENT for malformed bytes, UNIMPLEMENTED for a type that the format does not define. Texts name the
  // tensor or byte and the remedy, not the file.
  static Result<SafetensorsFile> parse(std::span<const std::byte> bytes);

  const SafetensorsTensor* find(std::string_view name) const;
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }  // ascending by name

 private:
  std::vector<SafetensorsTensor> tensors_;
};

inline constexpr uint64_t kSafetensorsHeaderBytesMax = 100'000'000;  // the format's own limit

}  // namespace motley::hf
