#include "model/hf/settings.hpp"

#include "base/quote.hpp"

namespace motley::hf {

const JsonValue* Settings::find(std::string_view key) const {
  const JsonValue* value = values_.find(key);
  if (value == nullptr && defaults_ != nullptr) value = defaults_->find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

std::string Settings::shown(std::string_view key) const { return in_quotes(path_ + std::string(key)); }

Status Settings::invalid(std::string_view key, std::string_view what) const {
  return invalid_argument("key {}: {}; get the model again", shown(key), what);
}

Status Settings::unbuilt(std::string_view key, std::string_view what) const {
  return error(MOTLEY_UNIMPLEMENTED, "key {}: asks for {}, which is not built; use another model", shown(key), what);
}

Status Settings::mistyped(std::string_view key, std::string_view wanted) const {
  return invalid(key, fmt::format("is {}, not {}", find(key)->kind_name(), wanted));
}

Result<std::optional<uint32_t>> Settings::count(std::string_view key, uint64_t least, uint64_t most) const {
  const JsonValue* value = find(key);
  if (value == nullptr) return std::optional<uint32_t>();
  const std::optional<int64_t> number = value->integer();
  if (!number) return mistyped(key, "a whole number");
  if (*number < static_cast<int64_t>(least) || *number > static_cast<int64_t>(most)) {
    return invalid(key, fmt::format("is {}, not from {} to {}", *number, least, most));
  }
  return std::optional<uint32_t>(static_cast<uint32_t>(*number));
}

Result<uint32_t> Settings::required_count(std::string_view key, uint64_t least, uint64_t most) const {
  ASSIGN_OR_RETURN(const auto value, count(key, least, most));
  if (!value) return missing(key);
  return *value;
}

Result<std::optional<float>> Settings::positive(std::string_view key, double most) const {
  const JsonValue* value = find(key);
  if (value == nullptr) return std::optional<float>();
  const std::optional<double> number = value->number();
  if (!number) return mistyped(key, "a number");
  if (static_cast<float>(*number) <= 0 || *number > most) {
    return invalid(key, fmt::format("is {}, not above 0 and up to {}", *number, most));
  }
  return std::optional<float>(static_cast<float>(*number));
}

Result<float> Settings::required_positive(std::string_view key, double most) const {
  ASSIGN_OR_RETURN(const auto value, positive(key, most));
  if (!value) return missing(key);
  return *value;
}

Result<std::optional<bool>> Settings::flag(std::string_view key) const {
  const JsonValue* value = find(key);
  if (value == nullptr) return std::optional<bool>();
  if (value->boolean() == nullptr) return mistyped(key, "true or false");
  return std::optional<bool>(*value->boolean());
}

Result<std::optional<std::string_view>> Settings::text(std::string_view key) const {
  const JsonValue* value = find(key);
  if (value == nullptr) return std::optional<std::string_view>();
  if (value->text() == nullptr) return mistyped(key, "a text");
  return std::optional<std::string_view>(*value->text());
}

Result<std::vector<float>> Settings::positives(std::string_view key, size_t count, double most) const {
  const JsonValue* value = find(key);
  if (value == nullptr) return missing(key);
  if (value->array() == nullptr || value->array()->size() != count) {
    return invalid(key, fmt::format("is no list of {} numbers", count));
  }
  std::vector<float> numbers;
  numbers.reserve(count);
  for (const JsonValue& element : *value->array()) {
    const double number = element.number().value_or(0);
    if (static_cast<float>(number) <= 0 || number > most) {
      return invalid(key, fmt::format("element {} is not above 0 and up to {}", numbers.size(), most));
    }
    numbers.push_back(static_cast<float>(number));
  }
  return numbers;
}

}  // namespace motley::hf
