#include "model/hf/json.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/quote.hpp"

namespace motley::hf {

std::optional<int64_t> JsonValue::integer() const {
  if (const auto* value = std::get_if<int64_t>(&data_)) return *value;
  const auto* value = std::get_if<uint64_t>(&data_);
  if (value == nullptr || *value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return static_cast<int64_t>(*value);
}

std::optional<double> JsonValue::number() const {
  if (const auto* value = std::get_if<int64_t>(&data_)) return static_cast<double>(*value);
  if (const auto* value = std::get_if<uint64_t>(&data_)) return static_cast<double>(*value);
  const auto* value = std::get_if<double>(&data_);
  if (value == nullptr || !std::isfinite(*value)) return std::nullopt;
  return *value;
}

const JsonValue* JsonValue::find(std::string_view name) const {
  const Object* members = object();
  if (members == nullptr) return nullptr;
  const auto at = std::lower_bound(members->begin(), members->end(), name,
                                   [](const Member& member, std::string_view wanted) { return member.first < wanted; });
  return at != members->end() && at->first == name ? &at->second : nullptr;
}

std::string_view JsonValue::kind_name() const {
  constexpr std::array<std::string_view, std::variant_size_v<Data>> kNames = {
      "null", "a bool", "a whole number", "a whole number", "a number", "a text", "a list", "an object"};
  return kNames[data_.index()];
}

// Receives nlohmann's events, which come without recursion however deep the text is.
class JsonBuilder : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return add(JsonValue()); }
  bool boolean(bool value) override { return add(JsonValue(value)); }
  bool number_integer(number_integer_t value) override { return add(JsonValue(int64_t{value})); }
  bool number_unsigned(number_unsigned_t value) override { return add(JsonValue(uint64_t{value})); }
  bool number_float(number_float_t value, const string_t& /*spelling*/) override { return add(JsonValue(value)); }
  bool string(string_t& value) override { return add(JsonValue(std::move(value))); }
  bool binary(binary_t& /*value*/) override { return fail("is not JSON text"); }
  bool start_object(size_t /*count*/) override { return open(JsonValue(JsonValue::Object())); }
  bool start_array(size_t /*count*/) override { return open(JsonValue(JsonValue::Array())); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    names_.back() = std::move(name);
    return true;
  }

  bool end_object() override {
    auto& members = std::get<JsonValue::Object>(open_.back().data_);
    std::sort(members.begin(), members.end(),
              [](const JsonValue::Member& a, const JsonValue::Member& b) { return a.first < b.first; });
    const auto twice =
        std::adjacent_find(members.begin(), members.end(),
                           [](const JsonValue::Member& a, const JsonValue::Member& b) { return a.first == b.first; });
    if (twice != members.end()) {
      return fail(fmt::format("name {} stands twice in an object", in_quotes(twice->first)));
    }
    return close();
  }

  bool parse_error(size_t position, const std::string& /*token*/, const nlohmann::json::exception& /*why*/) override {
    return fail(fmt::format("byte {}: is not JSON", position));
  }

  Result<JsonValue> take(bool ok) {
    if (!ok || !error_.empty()) return invalid_argument("{}; get the file again", error_.empty() ? "not JSON" : error_);
    return std::move(root_);
  }

 private:
  bool fail(std::string what) {
    if (error_.empty()) error_ = std::move(what);
    return false;
  }

  bool count() { return ++values_ <= kJsonValuesMax || fail(fmt::format("holds more than {} values", kJsonValuesMax)); }

  bool add(JsonValue value) { return count() && place(std::move(value)); }

  bool place(JsonValue value) {
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (auto* list = std::get_if<JsonValue::Array>(&open_.back().data_)) {
      list->push_back(std::move(value));
    } else {
      std::get<JsonValue::Object>(open_.back().data_).emplace_back(std::move(names_.back()), std::move(value));
    }
    return true;
  }

  bool open(JsonValue value) {
    if (open_.size() >= kJsonDepthMax) return fail(fmt::format("is nested deeper than {} levels", kJsonDepthMax));
    if (!count()) return false;
    open_.push_back(std::move(value));
    names_.emplace_back();
    return true;
  }

  bool close() {
    JsonValue value = std::move(open_.back());
    open_.pop_back();
    names_.pop_back();
    return place(std::move(value));
  }

  JsonValue root_;
  std::vector<JsonValue> open_;     // the arrays and objects around the next value
  std::vector<std::string> names_;  // of the member that comes next, one for each of open_
  size_t values_ = 0;
  std::string error_;
};

Result<JsonValue> parse_json(std::string_view text) {
  JsonBuilder builder;
  const bool ok = nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take(ok);
}

}  // namespace motley::hf
