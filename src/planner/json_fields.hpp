// JsonFields: the fields of one object of a file that nobody vouches for, each read once, with a message that names it.
#pragma once

#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/quote.hpp"
#include "base/route.hpp"
#include "base/status.hpp"
#include "model/hf/json.hpp"

namespace motley::planner {

// `where` names the object in messages; the value outlives this.
class JsonFields {
 public:
  JsonFields(const hf::JsonValue& value, std::string where) : value_(value), where_(std::move(where)) {}

  const std::string& where() const { return where_; }
  Status wrong(std::string_view name, std::string_view what) const {
    if (where_.empty() && name.empty()) return invalid_argument("the file {}", what);
    return invalid_argument("{}{}{} {}", where_, where_.empty() || name.empty() ? "" : ".", name, what);
  }

  // An object whose names are all among these.
  Status check_names(std::initializer_list<std::string_view> known) const {
    if (value_.object() == nullptr) return wrong("", fmt::format("is {}, not an object", value_.kind_name()));
    for (const auto& [name, unused] : *value_.object()) {
      bool found = false;
      for (const std::string_view one : known) found = found || one == name;
      if (!found)
        return invalid_argument("{}: {} is no field of it", where_.empty() ? "the file" : where_, in_quotes(name));
    }
    return ok_status();
  }

  // Null where it is absent.
  const hf::JsonValue* find(std::string_view name) const { return value_.find(name); }

  Status text(std::string_view name, std::string* out, bool required = true) const {
    const hf::JsonValue* field = find(name);
    if (field == nullptr) return required ? wrong(name, "is missing") : ok_status();
    if (field->text() == nullptr) return wrong(name, fmt::format("is {}, not a text", field->kind_name()));
    *out = *field->text();
    return ok_status();
  }
  // Shared memory where it is absent.
  Status route(std::string_view name, Route* out) const {
    const hf::JsonValue* field = find(name);
    if (field == nullptr) return ok_status();
    const auto known = field->text() == nullptr ? std::nullopt : find_route(*field->text());
    if (!known) {
      return wrong(name, fmt::format("must be \"{}\" or \"{}\"; leave it out for shared memory",
                                     route_name(Route::kSharedMemory), route_name(Route::kGloo)));
    }
    *out = *known;
    return ok_status();
  }
  // Left alone where it is absent.
  Status flag(std::string_view name, bool* out) const {
    const hf::JsonValue* field = find(name);
    if (field == nullptr) return ok_status();
    if (field->boolean() == nullptr) return wrong(name, "must be true or false");
    *out = *field->boolean();
    return ok_status();
  }
  // A finite number within [low, high].
  Status number(std::string_view name, double* out, double low, double high, bool required = true) const {
    const hf::JsonValue* field = find(name);
    if (field == nullptr) return required ? wrong(name, "is missing") : ok_status();
    const auto value = field->number();
    if (!value || *value < low || *value > high)
      return wrong(name, fmt::format("must be a number, {} to {}", low, high));
    *out = *value;
    return ok_status();
  }
  template <typename T>
  Status whole(std::string_view name, T* out, int64_t low, int64_t high, bool required = true) const {
    const hf::JsonValue* field = find(name);
    if (field == nullptr) return required ? wrong(name, "is missing") : ok_status();
    const auto value = field->integer();
    if (!value || *value < low || *value > high) {
      return wrong(name, fmt::format("must be a whole number, {} to {}", low, high));
    }
    *out = static_cast<T>(*value);
    return ok_status();
  }
  // Of at most `most` values; null (and OK) where it is absent and not required.
  Status list(std::string_view name, const hf::JsonValue::Array** out, size_t most, bool required = true) const {
    *out = nullptr;
    const hf::JsonValue* field = find(name);
    if (field == nullptr) return required ? wrong(name, "is missing") : ok_status();
    if (field->array() == nullptr) return wrong(name, fmt::format("is {}, not a list", field->kind_name()));
    if (field->array()->size() > most) {
      return wrong(name, fmt::format("has {} entries; at most {}", field->array()->size(), most));
    }
    *out = field->array();
    return ok_status();
  }
  Status whole_numbers(std::string_view name, std::vector<int64_t>* out, size_t most, bool required = true) const {
    const hf::JsonValue::Array* values = nullptr;
    RETURN_IF_ERROR(list(name, &values, most, required));
    if (values == nullptr) return ok_status();
    for (const hf::JsonValue& value : *values) {
      if (!value.integer()) return wrong(name, "must be a list of whole numbers");
      out->push_back(*value.integer());
    }
    return ok_status();
  }
  Status numbers(std::string_view name, std::vector<double>* out, size_t most) const {
    const hf::JsonValue::Array* values = nullptr;
    RETURN_IF_ERROR(list(name, &values, most));
    for (const hf::JsonValue& value : *values) {
      if (!value.number()) return wrong(name, "must be a list of numbers");
      out->push_back(*value.number());
    }
    return ok_status();
  }

 private:
  const hf::JsonValue& value_;
  const std::string where_;
};

}  // namespace motley::planner
