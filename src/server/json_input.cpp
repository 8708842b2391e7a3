#include "server/json_input.hpp"

#include <array>
#include <nlohmann/json.hpp>

#include "base/limits.hpp"
#include "text/utf8.hpp"

namespace motley {
namespace {

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

}  // namespace

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
  try {
    out = nlohmann::ordered_json::parse(body);
  } catch (const nlohmann::ordered_json::parse_error& error) {
    return bad_request("", "the body is not valid JSON near byte {}", error.byte);
  } catch (const nlohmann::ordered_json::exception&) {  // a number beyond a double
    return bad_request("", "the body holds a number that is out of range");
  }
  if (!out.is_object()) return bad_request("", "the body must be a JSON object, not {}", out.type_name());
  return std::nullopt;
}

}  // namespace motley
