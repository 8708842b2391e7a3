// GgufFile: the directory of a GGUF file (docs/formats/gguf.md): its keys and its tensors, checked, still in place.
//
// parse() trusts no byte: every length, count, offset and product is checked against what the file holds, and memory is
// bounded by a small multiple of the bytes read. Views and spans point into the bytes given. Immutable after parse().
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.hpp"

namespace motley {

enum class GgufType : int32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};
// "u32", "string", ...
std::string_view gguf_type_name(GgufType type);

struct GgufEntry {
  std::string_view key;
  uint64_t offset = 0;  // of the value, in the file
  GgufType type{};
  GgufType element{};  // of an array, else = type
  uint64_t count = 1;  // elements
  // The value's bytes. A string's text without its length; an array's elements back to back (strings with lengths).
  std::span<const std::byte> payload;
};

inline constexpr size_t kGgufRankMax = 4;

struct GgufTensor {
  std::string_view name;
  uint64_t offset = 0;                               // of the description, in the file
  int32_t dtype = 0;                                 // known to find_dtype
  std::array<int64_t, kGgufRankMax> ne{1, 1, 1, 1};  // ne[0] fastest
  std::span<const std::byte> data;
};

class GgufFile {
 public:
  // INVALID_ARGUMENT for malformed bytes, UNIMPLEMENTED for a version, byte order or tensor type that is not read.
  // Texts name the key, tensor or byte and the remedy, not the file.
  static Result<GgufFile> parse(std::span<const std::byte> bytes);

  const GgufEntry* find(std::string_view key) const;
  const GgufTensor* find_tensor(std::string_view name) const;
  const std::vector<GgufEntry>& entries() const { return entries_; }  // in the file's order
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  uint32_t version() const { return version_; }

  // Typed reads of a key: nullopt where it is absent, INVALID_ARGUMENT where its type or range is wrong.
  // A whole number >= 0 of any integer type.
  Result<std::optional<uint64_t>> read_count(std::string_view key) const;
  // A finite number of any numeric type.
  Result<std::optional<double>> read_number(std::string_view key) const;
  Result<std::optional<bool>> read_bool(std::string_view key) const;
  Result<std::optional<std::string_view>> read_string(std::string_view key) const;
  // Empty where the key is absent.
  Result<std::vector<std::string_view>> read_strings(std::string_view key) const;
  Result<std::vector<int32_t>> read_i32s(std::string_view key) const;
  Result<std::vector<float>> read_f32s(std::string_view key) const;
  // An array of u8 or i8, in the file's memory.
  Result<std::string_view> read_bytes(std::string_view key) const;

 private:
  friend class GgufParser;
  uint32_t version_ = 0;
  std::vector<GgufEntry> entries_;
  std::vector<GgufTensor> tensors_;
  std::vector<uint32_t> entry_order_, tensor_order_;  // indices, ascending by name
};

// A whole number held by element `index` of an entry, if the entry's elements are integers.
std::optional<int64_t> gguf_integer(const GgufEntry& entry, uint64_t index);

// INVALID_ARGUMENT about a key: "key 'k' (byte 123): what; remedy".
Status gguf_key_error(const GgufEntry& entry, std::string_view what);

inline constexpr std::string_view kGetFileAgain = "the file is truncated or corrupt: get it again";
inline constexpr std::string_view kConvertAgain = "convert the model again";

}  // namespace motley
