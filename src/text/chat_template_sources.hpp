// The chat templates that come with one model: a default one, and others by name.
//
// Where they come from: GGUF's tokenizer.chat_template and tokenizer.chat_template.NAME; the files chat_template.jinja
// (a template's source) and additional_chat_templates/NAME.jinja; the key "chat_template" of tokenizer_config.json or
// chat_template.json. A value; sources are not looked into here.
#pragma once

#include <concepts>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.hpp"

namespace motley {

inline constexpr size_t kNamedTemplatesMax = 64;
inline constexpr size_t kTemplateFileBytesMax = size_t{64} << 20;  // of a JSON file that holds templates among others
inline constexpr std::string_view kDefaultTemplateName = "default";
inline constexpr std::string_view kToolTemplateName = "tool_use";  // takes the default's place where tools are given

class ChatTemplateSources {
 public:
  ChatTemplateSources() = default;
  // One template for everything; empty: none.
  template <std::convertible_to<std::string_view> Source>
  ChatTemplateSources(const Source& source) {  // NOLINT(google-explicit-constructor): a source is a set of one
    const std::string_view text = source;
    if (!text.empty()) named_.push_back({std::string(kDefaultTemplateName), std::string(text)});
  }

  // Takes the place of a template of the same name. INVALID_ARGUMENT: more than kNamedTemplatesMax.
  Status add(std::string_view name, std::string source);
  // Null: none of that name.
  const std::string* find(std::string_view name) const;
  bool empty() const { return named_.empty(); }
  // "default, tool_use", for messages.
  std::string names() const;

 private:
  struct Named {
    std::string name, source;
  };
  std::vector<Named> named_;
};

// Reads "chat_template" out of the JSON of tokenizer_config.json or chat_template.json: a source, or a list of
// {"name", "template"}. No such key, or null: an empty set. Nothing else of the file is kept.
// INVALID_ARGUMENT: no JSON object, another shape, deeper than limits::kJsonDepthMax, beyond the limits above.
Result<ChatTemplateSources> parse_chat_template_sources(std::string_view json);

}  // namespace motley
