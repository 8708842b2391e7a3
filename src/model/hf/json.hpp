// JsonValue: the text of a JSON file as a small tree, within bounds that a hostile file cannot move.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/status.hpp"

namespace motley::hf {

// Immutable once parsed; a value that owns its parts.
class JsonValue {
 public:
  using Array = std::vector<JsonValue>;
  using Member = std::pair<std::string, JsonValue>;
  using Object = std::vector<Member>;  // ascending by name, names unique
  using Data = std::variant<std::nullptr_t, bool, int64_t, uint64_t, double, std::string, Array, Object>;

  JsonValue() = default;
  explicit JsonValue(Data data) : data_(std::move(data)) {}

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(data_); }
  const bool* boolean() const { return std::get_if<bool>(&data_); }
  const std::string* text() const { return std::get_if<std::string>(&data_); }
  const Array* array() const { return std::get_if<Array>(&data_); }
  const Object* object() const { return std::get_if<Object>(&data_); }
  // A whole number that an int64 holds; 4.0 is none.
  std::optional<int64_t> integer() const;
  // Any finite number.
  std::optional<double> number() const;
  // A member of an object: null where there is none, or where this is no object.
  const JsonValue* find(std::string_view name) const;
  // "null", "a bool", "a number", ...: for messages.
  std::string_view kind_name() const;

 private:
  friend class JsonBuilder;
  Data data_ = nullptr;
};

inline constexpr size_t kJsonDepthMax = 16;
inline constexpr size_t kJsonValuesMax = 1u << 20;

// INVALID_ARGUMENT: not JSON, deeper than kJsonDepthMax, more values than kJsonValuesMax, or a name twice in an object.
Result<JsonValue> parse_json(std::string_view text);

}  // namespace motley::hf
