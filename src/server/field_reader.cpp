#include "server/field_reader.hpp"

#include <cmath>

namespace motley {

using Json = nlohmann::ordered_json;

namespace {

ApiError wrong_type(const std::string& name, std::string_view wanted, const Json& value) {
  return bad_request(name, "{} must be {}, not {}", name, wanted, value.type_name());
}

}  // namespace

const Json* FieldReader::find(std::string_view name) const {
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

bool FieldReader::boolean(std::string_view name, bool& out) {
  const Json* value = find(name);
  if (!value) return false;
  if (!value->is_boolean()) {
    fail(wrong_type(path(name), "true or false", *value));
    return false;
  }
  out = value->get<bool>();
  return true;
}

bool FieldReader::string(std::string_view name, std::string& out) {
  const Json* value = find(name);
  if (!value) return false;
  if (!value->is_string()) {
    fail(wrong_type(path(name), "a string", *value));
    return false;
  }
  out = value->get_ref<const std::string&>();
  return true;
}

bool FieldReader::integer(std::string_view name, int64_t min, int64_t max, int64_t& out) {
  const Json* value = find(name);
  if (!value) return false;
  if (!value->is_number_integer()) {
    fail(wrong_type(path(name), "an integer", *value));
    return false;
  }
  const bool beyond_int64 = value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  const int64_t number = beyond_int64 ? INT64_MAX : value->get<int64_t>();
  if (beyond_int64 || number < min || number > max) {
    fail(bad_request(path(name), "{} must be within [{}, {}], not {}", path(name), min, max, value->dump()));
    return false;
  }
  out = number;
  return true;
}

bool FieldReader::number(std::string_view name, double min, double max, bool open_min, float& out) {
  const Json* value = find(name);
  if (!value) return false;
  if (!value->is_number()) {
    fail(wrong_type(path(name), "a number", *value));
    return false;
  }
  const double number = value->get<double>();
  // A positive value may round to zero on its way to float; that would be outside an interval open at zero.
  const float narrowed = number >= min && number <= max ? static_cast<float>(number) : 0.0f;
  const bool inside = number <= max && (open_min ? number > min && narrowed > static_cast<float>(min) : number >= min);
  if (!std::isfinite(number) || !inside) {
    fail(bad_request(path(name), "{} must be within {}{}, {}], not {}", path(name), open_min ? '(' : '[', min, max,
                     value->dump()));
    return false;
  }
  out = narrowed;
  return true;
}

bool FieldReader::token_ids(std::string_view name, size_t count_max, uint32_t vocab_size, std::vector<TokenId>& out) {
  const Json* value = find(name);
  if (!value) return false;
  if (!value->is_array()) {
    fail(wrong_type(path(name), "an array of token ids", *value));
    return false;
  }
  if (value->size() > count_max) {
    fail(bad_request(path(name), "{} must hold at most {} ids, not {}", path(name), count_max, value->size()));
    return false;
  }
  if (MaybeError error = read_token_ids(*value, path(name), vocab_size, out)) {
    fail(*std::move(error));
    return false;
  }
  return true;
}

MaybeError read_token_ids(const Json& array, const std::string& name, uint32_t vocab_size, std::vector<TokenId>& out) {
  out.clear();
  out.reserve(array.size());
  for (const Json& value : array) {
    if (!value.is_number_integer()) return wrong_type(name, "an array of integers (token ids)", value);
    const bool negative = !value.is_number_unsigned() && value.get<int64_t>() < 0;
    if (negative || value.get<uint64_t>() >= vocab_size) {
      return bad_request(name, "{}: token id {} is out of range [0, {})", name, value.dump(), vocab_size);
    }
    out.push_back(static_cast<TokenId>(value.get<uint64_t>()));
  }
  return std::nullopt;
}

}  // namespace motley
