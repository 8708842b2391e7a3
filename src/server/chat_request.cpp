#include "server/chat_request.hpp"

#include <algorithm>
#include <string>
#include <string_view>

#include "text/chat_template.hpp"

namespace motley {
namespace {

using Json = nlohmann::ordered_json;

// Text, or an array of text parts; an assistant's message may have none.
MaybeError check_content(Json& message, const std::string& where) {
  const auto content = message.find("content");
  if (content == message.end() || content->is_null()) {
    if (message["role"] != "assistant") return bad_request("messages", "{}.content is missing", where);
    // Templates tell a message that only calls tools by its content being none; elsewhere they take it to be a string.
    const auto calls = message.find("tool_calls");
    const bool only_calls = calls != message.end() && calls->is_array() && !calls->empty();
    message["content"] = only_calls ? Json() : Json("");
    return std::nullopt;
  }
  if (content->is_string()) return std::nullopt;
  if (!content->is_array()) return bad_request("messages", "{}.content must be a string or an array of parts", where);
  for (const Json& part : *content) {
    const bool is_text = part.is_object() && part.contains("type") && part["type"] == "text" && part.contains("text") &&
                         part["text"].is_string();
    if (!is_text) {
      return bad_request("messages",
                         "{}.content: parts other than {{\"type\": \"text\", \"text\": ...}} are not supported", where);
    }
  }
  return std::nullopt;
}

bool is_function(const Json& item) {
  if (!item.is_object()) return false;
  const auto type = item.find("type");
  const auto function = item.find("function");
  if (type == item.end() || *type != "function" || function == item.end() || !function->is_object()) return false;
  const auto name = function->find("name");
  return name != function->end() && name->is_string();
}

// What a tool call's arguments spell is the template's business (ChatTemplate::render).
MaybeError check_tool_calls(const Json& message, const std::string& where) {
  const auto calls = message.find("tool_calls");
  if (calls == message.end() || calls->is_null()) return std::nullopt;
  if (message["role"] != "assistant") {
    return bad_request("messages", "{}.tool_calls: only an assistant's message may have them", where);
  }
  const bool fit = calls->is_array() && std::all_of(calls->begin(), calls->end(), [](const Json& call) {
                     if (!is_function(call)) return false;
                     const auto arguments = call["function"].find("arguments");
                     return arguments == call["function"].end() || arguments->is_string() || arguments->is_object();
                   });
  if (fit) return std::nullopt;
  return bad_request("messages",
                     "{}.tool_calls must be an array of {{\"id\", \"type\": \"function\", \"function\": {{\"name\", "
                     "\"arguments\"}}}}",
                     where);
}

MaybeError read_messages(const Json* value, Json& out) {
  if (!value) return bad_request("messages", "messages is missing");
  if (!value->is_array() || value->empty() || value->size() > kMessagesMax) {
    return bad_request("messages", "messages must be an array of 1 to {} messages", kMessagesMax);
  }
  out = *value;
  for (size_t i = 0; i < out.size(); ++i) {
    const std::string where = fmt::format("messages[{}]", i);
    Json& message = out[i];
    if (!message.is_object()) return bad_request("messages", "{} must be an object", where);
    const auto role = message.find("role");
    if (role == message.end() || !role->is_string()) return bad_request("messages", "{}.role must be a string", where);
    for (const char* field : {"function_call", "audio"}) {
      const auto it = message.find(field);
      if (it != message.end() && !it->is_null()) {
        return bad_request("messages", "{}.{} is not supported", where, field);
      }
    }
    if (MaybeError error = check_tool_calls(message, where)) return error;
    if (MaybeError error = check_content(message, where)) return error;
  }
  return std::nullopt;
}

// Variables that are set by other fields, or by the model.
void read_variables(FieldReader& fields, Json& out) {
  const Json* value = fields.find("chat_template_kwargs");
  if (!value) return;
  if (!value->is_object())
    return fields.fail(bad_request("chat_template_kwargs", "chat_template_kwargs must be an object"));
  for (const std::string_view reserved : kReservedVariables) {
    if (value->contains(reserved)) {
      return fields.fail(bad_request("chat_template_kwargs", "chat_template_kwargs must not set {}", reserved));
    }
  }
  out = *value;
}

void read_tools(FieldReader& fields, Json& out) {
  const Json* value = fields.find("tools");
  if (!value) return;
  if (!value->is_array() || value->size() > kToolsMax || !std::all_of(value->begin(), value->end(), is_function)) {
    return fields.fail(bad_request(
        "tools", "tools must be an array of at most {} {{\"type\": \"function\", \"function\": {{\"name\", ...}}}}",
        kToolsMax));
  }
  if (!value->empty()) out = *value;
}

void read_documents(FieldReader& fields, Json& out) {
  const Json* value = fields.find("documents");
  if (!value) return;
  const auto is_object = [](const Json& item) { return item.is_object(); };
  if (!value->is_array() || value->size() > kDocumentsMax || !std::all_of(value->begin(), value->end(), is_object)) {
    return fields.fail(
        bad_request("documents", "documents must be an array of at most {} objects of strings", kDocumentsMax));
  }
  if (!value->empty()) out = *value;
}

}  // namespace

void read_chat(FieldReader& fields, ChatCall& out) {
  if (MaybeError error = read_messages(fields.find("messages"), out.messages)) fields.fail(*std::move(error));
  if (fields.find("chat_template")) {
    fields.fail(bad_request("chat_template",
                            "chat_template is not taken from requests: a template decides what counts as a special "
                            "token; start the server with --chat-template FILE"));
  }
  read_tools(fields, out.tools);
  read_documents(fields, out.documents);
  read_variables(fields, out.variables);
  fields.boolean("add_generation_prompt", out.add_generation_prompt);
  fields.boolean("continue_final_message", out.continue_final_message);
  if (out.continue_final_message && out.add_generation_prompt) {
    fields.fail(
        bad_request("continue_final_message",
                    "continue_final_message needs \"add_generation_prompt\": false: the answer goes on with the "
                    "last message instead of beginning a new one"));
  }
}

MaybeError check_tool_choice(const FieldReader& fields, const ChatCall& chat) {
  const Json* choice = fields.find("tool_choice");
  const bool none = choice && *choice == "none";
  if (chat.tools.is_null()) {
    if (!choice || none || *choice == "auto") return std::nullopt;
    return bad_request("tool_choice", "tool_choice names tools, but no tools are given");
  }
  if (none) return std::nullopt;
  return bad_request(
      "tool_choice",
      "tool_choice other than \"none\" is not supported: tool calls are not parsed out of the answer. "
      "With \"tool_choice\": \"none\" the tools reach the prompt, and what the model writes comes back as "
      "text");
}

}  // namespace motley
