// JsonFields: the fields of one object of a tokenizer.json, each read with a message that names it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/quote.hpp"
#include "base/status.hpp"

namespace motley {

class JsonFields {
 public:
  struct Pattern {
    std::string text;
    bool is_regex = false;
  };
  // `where` names the object in messages ("pre_tokenizer"). Both outlive this.
  JsonFields(const nlohmann::json& node, std::string_view where) : node_(node), where_(where) {}

  bool has(const char* key) const { return node_.is_object() && node_.contains(key) && !node_[key].is_null(); }
  const nlohmann::json& operator[](const char* key) const { return node_[key]; }  // after has()

  Result<std::string> string(const char* key) const {
    if (!has(key)) return wrong(key, "is missing");
    if (!node_[key].is_string()) return wrong(key, "is not a string");
    return node_[key].get<std::string>();
  }
  Result<std::string> string(const char* key, std::string_view absent) const {
    return has(key) ? string(key) : Result<std::string>(std::string(absent));
  }
  Result<bool> boolean(const char* key, bool absent) const {
    if (!has(key)) return absent;
    if (!node_[key].is_boolean()) return wrong(key, "is neither true nor false");
    return node_[key].get<bool>();
  }
  // Of a Sequence at `depth`.
  Result<const nlohmann::json*> list(const char* key, int depth = 0) const {
    if (!has(key) || !node_[key].is_array()) return wrong(key, "is not a list");
    if (depth > 3) return wrong(key, "is nested too deeply");
    return &node_[key];
  }
  // {"String": ...} or {"Regex": ...} under "pattern".
  Result<Pattern> pattern() const {
    if (has("pattern")) {
      const nlohmann::json& node = node_["pattern"];
      for (const char* kind : {"String", "Regex"}) {
        if (node.is_object() && node.contains(kind) && node[kind].is_string()) {
          return Pattern{node[kind].get<std::string>(), std::string_view(kind) == "Regex"};
        }
      }
    }
    return wrong("pattern", R"(is neither {"String": ...} nor {"Regex": ...})");
  }

  Status wrong(std::string_view key, std::string_view what) const {
    return invalid_argument("{}.{} {}", where_, key, what);
  }
  Status unsupported(std::string_view key, std::string_view what) const {
    return error(MOTLEY_UNIMPLEMENTED, "{}.{} {}; take the model as GGUF instead", where_, key, what);
  }
  Status unknown_type(std::string_view type, std::string_view known) const {
    return error(MOTLEY_UNIMPLEMENTED, "{}.type {} is not supported (known: {}); take the model as GGUF instead",
                 where_, in_quotes(type), known);
  }

 private:
  const nlohmann::json& node_;
  const std::string_view where_;
};

}  // namespace motley
