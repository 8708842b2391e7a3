#include "text/chat_template_messages.hpp"

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "base/limits.hpp"

namespace motley {
namespace {

using Json = nlohmann::ordered_json;

// Names that what an assistant thought comes under; templates read the first two.
constexpr const char* kReasoning[] = {"reasoning_content", "thinking", "reasoning"};

Status check_content(const Json& content, size_t index) {
  if (content.is_null() || content.is_string()) return ok_status();
  if (!content.is_array()) return invalid_argument("messages[{}].content must be a string or an array of parts", index);
  for (const Json& part : content) {
    const bool is_text = part.is_object() && part.contains("type") && part["type"] == "text";
    if (!is_text || !part.contains("text") || !part["text"].is_string()) {
      return invalid_argument("messages[{}].content: every part must be {{\"type\": \"text\", \"text\": \"...\"}}",
                              index);
    }
  }
  return ok_status();
}

Status check_tool_calls(const Json& calls, size_t index) {
  if (calls.is_null()) return ok_status();
  if (!calls.is_array()) return invalid_argument("messages[{}].tool_calls must be an array", index);
  for (size_t i = 0; i < calls.size(); ++i) {
    const Json& call = calls[i];
    const bool named = call.is_object() && call.contains("function") && call["function"].is_object() &&
                       call["function"].contains("name") && call["function"]["name"].is_string();
    if (!named) {
      return invalid_argument(
          "messages[{}].tool_calls[{}] must be {{\"type\": \"function\", \"function\": {{\"name\", \"arguments\"}}}}",
          index, i);
    }
  }
  return ok_status();
}

Status check_message(const Json& message, size_t index) {
  if (!message.is_object()) return invalid_argument("messages[{}] must be an object", index);
  if (!message.contains("role") || !message["role"].is_string()) {
    return invalid_argument("messages[{}].role must be a string", index);
  }
  if (message.contains("content")) RETURN_IF_ERROR(check_content(message["content"], index));
  return message.contains("tool_calls") ? check_tool_calls(message["tool_calls"], index) : ok_status();
}

// Whether the text's brackets and commas allow no more than `values` values and limits::kJsonDepthMax levels. Never
// under-counts for text that is JSON.
bool is_small(std::string_view text, size_t& values_left) {
  bool in_string = false;
  size_t depth = 0, values = 1;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
      continue;
    }
    in_string = c == '"';
    values += c == ',' || c == '[' || c == '{' ? 1 : 0;
    if ((c == '[' || c == '{') && ++depth > limits::kJsonDepthMax) return false;
    if ((c == ']' || c == '}') && depth > 0) --depth;
  }
  if (values > values_left) return false;
  values_left -= values;
  return true;
}

Status parse_arguments(Json& function, size_t message, size_t call, size_t& values_left) {
  const auto it = function.find("arguments");
  if (it == function.end() || !it->is_string()) return ok_status();
  const std::string text = it->get<std::string>();
  if (!is_small(text, values_left)) {
    return invalid_argument(
        "messages[{}].tool_calls[{}].function.arguments is nested deeper than {} levels or too large", message, call,
        limits::kJsonDepthMax);
  }
  Json parsed = text.empty() ? Json::object() : Json::parse(text, nullptr, false);
  if (!parsed.is_object()) {
    return invalid_argument("messages[{}].tool_calls[{}].function.arguments must be a JSON object", message, call);
  }
  *it = std::move(parsed);
  return ok_status();
}

// One string of all text parts, a line each, for templates that know strings only.
std::string joined_parts(const Json& parts) {
  std::string text;
  for (const Json& part : parts) {
    if (!text.empty()) text += '\n';
    text += part["text"].get_ref<const std::string&>();
  }
  return text;
}

bool is_dropped(const std::string& name, const Json& value) {
  return (value.is_null() && name != "content") || (name == "tool_calls" && value.is_array() && value.empty());
}

bool is_fit(const Json& message, bool takes_parts) {
  for (const auto& [name, value] : message.items()) {
    if (is_dropped(name, value) || name == "tool_calls") return false;
    if (name == "content" && value.is_array() && !takes_parts) return false;
    for (const char* reasoning : kReasoning) {
      if (name == reasoning) return false;
    }
  }
  return true;
}

Result<Json> adapted(const Json& message, size_t index, bool takes_parts, size_t& values_left) {
  Json out = Json::object();
  const Json* reasoning = nullptr;
  for (const char* name : kReasoning) {
    const auto it = message.find(name);
    if (reasoning == nullptr && it != message.end() && !it->is_null()) reasoning = &*it;
  }
  for (const auto& [name, value] : message.items()) {
    if (is_dropped(name, value)) continue;
    out[name] = name == "content" && value.is_array() && !takes_parts ? Json(joined_parts(value)) : value;
  }
  if (reasoning != nullptr) {
    out["reasoning_content"] = *reasoning;
    if (!out.contains("thinking")) out["thinking"] = *reasoning;
  }
  const auto calls = out.find("tool_calls");
  for (size_t i = 0; calls != out.end() && i < calls->size(); ++i) {
    RETURN_IF_ERROR(parse_arguments((*calls)[i]["function"], index, i, values_left));
  }
  return out;
}

}  // namespace

Result<std::optional<Json>> adapt_messages(const Json& messages, bool takes_parts) {
  if (!messages.is_array()) return invalid_argument("messages must be an array");
  bool fit = true;
  for (size_t i = 0; i < messages.size(); ++i) {
    RETURN_IF_ERROR(check_message(messages[i], i));
    fit = fit && is_fit(messages[i], takes_parts);
  }
  if (fit) return std::optional<Json>();
  Json out = Json::array();
  size_t values_left = kArgumentValuesMax;
  for (size_t i = 0; i < messages.size(); ++i) {
    ASSIGN_OR_RETURN(Json message, adapted(messages[i], i, takes_parts, values_left));
    out.push_back(std::move(message));
  }
  return std::make_optional(std::move(out));
}

}  // namespace motley
