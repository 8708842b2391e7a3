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
#include "text/tokenizer.hpp"

namespace motley {

// A stretch of rendered text. `trusted`: the template's own words, in which special tokens count.
struct TextSpan {
  std::string text;
  bool trusted = true;
};

class ChatTemplate {
 public:
  // INVALID_ARGUMENT with line and column for a template that does not parse, goes beyond the limits or names a filter
  // or test that does not exist (Jinja2's rule: inside conditions that is an error only where it is reached).
  static Result<std::unique_ptr<ChatTemplate>> create(std::string_view source, std::string bos_text,
                                                      std::string eos_text);
  ~ChatTemplate();

  // `messages` is OpenAI's array ({role, content, ...}; content a string, or an array of {"type":"text","text":...});
  // `extra` an object of further variables (chat_template_kwargs), or null.
  // INVALID_ARGUMENT, the caller's fault: wrong shapes, raise_exception's text. FAILED_PRECONDITION, the template's
  // own: an operation that its values do not allow, an unknown filter reached, a limit exceeded.
  Result<std::vector<TextSpan>> render(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                                       const nlohmann::ordered_json& extra) const;
  // The rendered spans as one text / as tokens. No BOS is added beyond the template's own.
  static std::string join(const std::vector<TextSpan>& spans);
  static std::vector<TokenId> encode(const std::vector<TextSpan>& spans, const Tokenizer& tokenizer);

 private:
  class Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace motley
