// Typed reads of a GGUF file's keys.
#include <cmath>
#include <cstring>
#include <limits>

#include "model/gguf.hpp"

namespace motley {
namespace {

template <typename T>
T load(const GgufEntry& entry, uint64_t index) {
  T value;
  std::memcpy(&value, entry.payload.data() + index * sizeof(T), sizeof(T));
  return value;
}

std::string describe_type(const GgufEntry& entry) {
  return entry.type == GgufType::kArray ? fmt::format("an array of {}", gguf_type_name(entry.element))
                                        : std::string(gguf_type_name(entry.type));
}

Status wrong_type(const GgufEntry& entry, std::string_view wanted) {
  return gguf_key_error(entry, fmt::format("is {}, not {}; {}", describe_type(entry), wanted, kConvertAgain));
}

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

std::optional<int64_t> gguf_integer(const GgufEntry& entry, uint64_t index) {
  if (index >= entry.count) return std::nullopt;
  switch (entry.element) {
    case GgufType::kU8: return load<uint8_t>(entry, index);
    case GgufType::kI8: return load<int8_t>(entry, index);
    case GgufType::kU16: return load<uint16_t>(entry, index);
    case GgufType::kI16: return load<int16_t>(entry, index);
    case GgufType::kU32: return load<uint32_t>(entry, index);
    case GgufType::kI32: return load<int32_t>(entry, index);
    case GgufType::kI64: return load<int64_t>(entry, index);
    case GgufType::kU64: {
      const auto value = load<uint64_t>(entry, index);
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default: return std::nullopt;
  }
}

Result<std::optional<uint64_t>> GgufFile::read_count(std::string_view key) const {
  const GgufEntry* entry = find(key);
  if (entry == nullptr) return std::optional<uint64_t>();
  const std::optional<int64_t> value = gguf_integer(*entry, 0);
  if (entry->type == GgufType::kArray || !value) return wrong_type(*entry, "a whole number");
  if (*value < 0) return gguf_key_error(*entry, fmt::format("is {}, less than 0; {}", *value, kConvertAgain));
  return std::optional<uint64_t>(static_cast<uint64_t>(*value));
}

Result<std::optional<double>> GgufFile::read_number(std::string_view key) const {
  const GgufEntry* entry = find(key);
  if (entry == nullptr) return std::optional<double>();
  double value = 0;
  if (entry->type == GgufType::kF32) {
    value = static_cast<double>(load<float>(*entry, 0));
  } else if (entry->type == GgufType::kF64) {
    value = load<double>(*entry, 0);
  } else if (const auto whole = gguf_integer(*entry, 0); entry->type != GgufType::kArray && whole) {
    value = static_cast<double>(*whole);
  } else {
    return wrong_type(*entry, "a number");
  }
  if (!std::isfinite(value)) return gguf_key_error(*entry, fmt::format("is not finite; {}", kConvertAgain));
  return std::optional<double>(value);
}

Result<std::optional<bool>> GgufFile::read_bool(std::string_view key) const {
  const GgufEntry* entry = find(key);
  if (entry == nullptr) return std::optional<bool>();
  if (entry->type != GgufType::kBool) return wrong_type(*entry, "a bool");
  return std::optional<bool>(load<uint8_t>(*entry, 0) != 0);
}

Result<std::optional<std::string_view>> GgufFile::read_string(std::string_view key) const {
  const GgufEntry* entry = find(key);
  if (entry == nullptr) return std::optional<std::string_view>();
  if (entry->type != GgufType::kString) return wrong_type(*entry, "a string");
  return std::optional<std::string_view>(as_text(entry->payload));
}

Result<std::vector<std::string_view>> GgufFile::read_strings(std::string_view key) const {
  std::vector<std::string_view> strings;
  const GgufEntry* entry = find(key);
  if (entry == nullptr) return strings;
  if (entry->type != GgufType::kArray || entry->element != GgufType::kString) {
    return wrong_type(*entry, "an array of strings");
  }
  strings.reserve(entry->count);  // parse() has walked them all: the file holds this many
  const std::byte* at = entry->payload.data();
  for (uint64_t i = 0; i < entry->count; ++i) {
    uint64_t length = 0;
    std::memcpy(&length, at, sizeof(length));
    at += sizeof(length);
    strings.emplace_back(reinterpret_cast<const char*>(at), length);
    at += length;
  }
  return strings;
}

Result<std::vector<int32_t>> GgufFile::read_i32s(std::string_view key) const {
  std::vector<int32_t> values;
  const GgufEntry* entry = find(key);
  if (entry == nullptr) return values;
  if (entry->type != GgufType::kArray || (entry->element != GgufType::kI32 && entry->element != GgufType::kU32)) {
    return wrong_type(*entry, "an array of i32");
  }
  values.resize(entry->count);
  if (entry->count > 0) std::memcpy(values.data(), entry->payload.data(), entry->payload.size());
  return values;
}

Result<std::vector<float>> GgufFile::read_f32s(std::string_view key) const {
  std::vector<float> values;
  const GgufEntry* entry = find(key);
  if (entry == nullptr) return values;
  if (entry->type != GgufType::kArray || entry->element != GgufType::kF32) return wrong_type(*entry, "an array of f32");
  values.resize(entry->count);
  if (entry->count > 0) std::memcpy(values.data(), entry->payload.data(), entry->payload.size());
  return values;
}

Result<std::string_view> GgufFile::read_bytes(std::string_view key) const {
  const GgufEntry* entry = find(key);
  if (entry == nullptr) return std::string_view();
  if (entry->type != GgufType::kArray || (entry->element != GgufType::kU8 && entry->element != GgufType::kI8)) {
    return wrong_type(*entry, "an array of u8");
  }
  return std::string_view(reinterpret_cast<const char*>(entry->payload.data()), entry->payload.size());
}

}  // namespace motley
