// ChatTemplate: messages to prompt tokens, through the model's own Jinja template.
//
// Text that users wrote is marked while the template runs, and the tokenizer never reads special tokens out of marked
// text: a user who types "<|im_end|>" sends those characters, not that token.
// Immutable after creation; safe from any thread.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.hpp"
#include "base/status.hpp"
#include "text/chat_template_sources.hpp"
#include "text/tokenizer.hpp"

namespace motley {

// A stretch of rendered text. `trusted`: the template's own words, in which special tokens count.
struct TextSpan {
  std::string text;
  bool trusted = true;
};

// A conversation to render. Borrows all of it for the call. JSON's null is the same as not given, and so are no tools
// and no documents.
struct ChatInput {
  // OpenAI's array: {role, content, ...}; content a string, or an array of {"type": "text", "text": ...}; tool_calls
  // with arguments as a JSON object or as its text (chat_template_messages.hpp).
  const nlohmann::ordered_json& messages;
  const nlohmann::ordered_json* tools = nullptr;      // an array of objects (JSON schemas of functions)
  const nlohmann::ordered_json* documents = nullptr;  // an array of objects
  const nlohmann::ordered_json* variables = nullptr;  // an object: further variables (chat_template_kwargs)
  bool add_generation_prompt = true;
  // The text ends with the content of the last message, for the model to go on with it. Not together with
  // add_generation_prompt.
  bool continue_final_message = false;
};

// Variables that a caller's chat_template_kwargs must not set: the conversation, the model and ChatInput's other
// members do. To be checked where the kwargs come in.
inline constexpr std::string_view kReservedVariables[] = {
    "messages",  "add_generation_prompt", "continue_final_message", "bos_token", "eos_token", "tools",
    "documents", "chat_template"};

class ChatTemplate {
 public:
  // INVALID_ARGUMENT with line and column for a template that does not parse, goes beyond the limits or names a filter
  // or test that does not exist (Jinja2's rule: inside conditions that is an error only where it is reached).
  // Of `sources`, the default is used, or, where a conversation has tools, "tool_use" if it is there.
  static Result<std::unique_ptr<ChatTemplate>> create(const ChatTemplateSources& sources, std::string bos_text,
                                                      std::string eos_text);
  ~ChatTemplate();

  // Whatever `input` holds is untrusted, well-known roles excepted: only the template's own words are trusted.
  // INVALID_ARGUMENT, the caller's fault: wrong shapes, raise_exception's text, a last message that the template does
  // not show as it is and so cannot be continued. FAILED_PRECONDITION, the template's own: an operation that its values
  // do not allow, an unknown filter reached, a limit exceeded.
  Result<std::vector<TextSpan>> render(const ChatInput& input) const;
  // A conversation without tools. `variables` may be null.
  Result<std::vector<TextSpan>> render(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                                       const nlohmann::ordered_json& variables) const {
    return render({.messages = messages, .variables = &variables, .add_generation_prompt = add_generation_prompt});
  }
  // The rendered spans as one text / as tokens. No BOS is added beyond the template's own. White space beside a token
  // that takes it (Tokenizer::takes_left, takes_right) goes with it, whoever wrote it.
  static std::string join(const std::vector<TextSpan>& spans);
  static std::vector<TokenId> encode(const std::vector<TextSpan>& spans, const Tokenizer& tokenizer);

 private:
  class Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace motley
