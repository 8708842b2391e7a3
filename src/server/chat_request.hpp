// The conversation of a call: what /v1/chat/completions and /tokenize hand to the model's template.
// Thread-safe: pure functions, values.
#pragma once

#include <nlohmann/json.hpp>

#include "server/api_error.hpp"
#include "server/field_reader.hpp"

namespace motley {

inline constexpr size_t kMessagesMax = 16384;
inline constexpr size_t kToolsMax = 1024;
inline constexpr size_t kDocumentsMax = 1024;

struct ChatCall {
  nlohmann::ordered_json messages;
  nlohmann::ordered_json tools, documents;  // arrays, or null
  nlohmann::ordered_json variables;         // an object, or null
  bool add_generation_prompt = true, continue_final_message = false;
};

// Reads messages, tools, documents, chat_template_kwargs and the two flags. Errors go to `fields`.
void read_chat(FieldReader& fields, ChatCall& out);
// For calls that generate: tool calls are not parsed out of answers, so tools are taken only with "tool_choice":
// "none".
MaybeError check_tool_choice(const FieldReader& fields, const ChatCall& chat);

}  // namespace motley
