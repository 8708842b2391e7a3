#include "server/json_input.hpp"

#include <array>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.hpp"
#include "base/utf8.hpp"

namespace motley {
namespace {

using Json = nlohmann::ordered_json;

// Walks over the tokens of a text that need not be JSON, and measures how large its tree can become. Never under-counts
// for text that is JSON.
class SizeScan {
 public:
  MaybeError run(std::string_view text) {
    for (const char c : text) {
      if (in_string_) {
        in_string(c);
        continue;
      }
      if (MaybeError error = outside(c)) return error;
    }
    return std::nullopt;
  }

 private:
  void in_string(char c) {
    if (escaped_) {
      escaped_ = false;
    } else if (c == '\\') {
      escaped_ = true;
    } else if (c == '"') {
      in_string_ = false;
    }
  }

  MaybeError outside(char c) {
    switch (c) {
      case '"': in_string_ = true; return std::nullopt;
      case '[':
      case '{':
        if (depth_ == limits::kJsonDepthMax) {
          return bad_request("", "the JSON is nested deeper than {} levels", limits::kJsonDepthMax);
        }
        members_at_[depth_++] = 0;
        return count_value();
      case ']':
      case '}':
        if (depth_ > 0) --depth_;
        return std::nullopt;
      case ',': return count_value();
      case ':': return count_member();
      default: return std::nullopt;
    }
  }

  MaybeError count_value() {
    if (++values_ <= kJsonValuesMax) return std::nullopt;
    return bad_request("", "the JSON holds more than {} values", kJsonValuesMax);
  }

  MaybeError count_member() {
    const size_t of_object = depth_ > 0 ? ++members_at_[depth_ - 1] : 0;
    if (of_object <= kJsonObjectMembersMax && ++members_ <= kJsonMembersMax) return std::nullopt;
    return bad_request("", "the JSON holds more than {} members in one object, or {} in all", kJsonObjectMembersMax,
                       kJsonMembersMax);
  }

  bool in_string_ = false, escaped_ = false;
  size_t depth_ = 0, values_ = 0, members_ = 0;
  std::array<size_t, limits::kJsonDepthMax> members_at_{};
};

// Of bounded depth: SizeScan has seen to it.
void take_apart(Json& tree) {
  if (auto* list = tree.get_ptr<Json::array_t*>()) {
    for (; !list->empty(); list->pop_back()) take_apart(list->back());
  } else if (auto* object = tree.get_ptr<Json::object_t*>()) {
    for (; !object->empty(); object->pop_back()) take_apart(object->back().second);
  }
}

// What Json::parse() builds, but in a tree of the caller's, which can be taken apart where memory runs out on the way.
class TreeBuilder final : public nlohmann::json_sax<Json> {
 public:
  explicit TreeBuilder(Json& root) : root_(root) {}
  const MaybeError& error() const { return error_; }

  bool null() override { return put(nullptr) != nullptr; }
  bool boolean(bool value) override { return put(value) != nullptr; }
  bool number_integer(number_integer_t value) override { return put(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return put(value) != nullptr; }
  bool number_float(number_float_t value, const string_t& /*spelling*/) override { return put(value) != nullptr; }
  bool string(string_t& value) override { return put(std::move(value)) != nullptr; }
  bool binary(binary_t& /*value*/) override { return false; }  // JSON text has none
  bool key(string_t& name) override {
    key_ = std::move(name);
    return true;
  }
  bool start_object(size_t /*count*/) override { return open(Json::object()); }
  bool start_array(size_t /*count*/) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool parse_error(size_t position, const std::string& /*token*/, const Json::exception& why) override {
    if (dynamic_cast<const Json::parse_error*>(&why) != nullptr) {
      error_ = bad_request("", "the body is not valid JSON near byte {}", position);
    } else {
      error_ = bad_request("", "the body holds a number that is out of range");
    }
    return false;
  }

 private:
  // A name that comes twice counts as it does in Python: the last one.
  Json* put(Json value) {
    if (open_.empty()) return &(root_ = std::move(value));
    Json& parent = *open_.back();
    return parent.is_array() ? &parent.emplace_back(std::move(value)) : &(parent[key_] = std::move(value));
  }
  bool open(Json container) {
    open_.push_back(put(std::move(container)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  Json& root_;
  std::vector<Json*> open_;  // the containers around the next value
  std::string key_;
  MaybeError error_;
};

}  // namespace

JsonKeeper::~JsonKeeper() { take_apart(tree_); }

size_t utf8_valid_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Step step = utf8_step(text.substr(at));
    if (step.kind != Utf8Step::kCharacter) return at;
    at += step.bytes;
  }
  return at;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    out += step.kind == Utf8Step::kCharacter ? text.substr(0, step.bytes) : kReplacementCharacter;
    text.remove_prefix(step.bytes);
  }
  return out;
}

MaybeError parse_json_object(std::string_view body, nlohmann::ordered_json& out) {
  if (body.empty()) return bad_request("", "the request has no body; send a JSON object");
  if (const size_t good = utf8_valid_prefix(body); good != body.size()) {
    return bad_request("", "the body is not valid UTF-8 at byte {}", good);
  }
  if (MaybeError error = SizeScan().run(body)) return error;
  TreeBuilder builder(out);
  if (!Json::sax_parse(body, &builder)) return builder.error();
  if (!out.is_object()) return bad_request("", "the body must be a JSON object, not {}", out.type_name());
  return std::nullopt;
}

}  // namespace motley
