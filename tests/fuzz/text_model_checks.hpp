// From a model's files to its text tools.
#pragma once

#include "fuzz/refusal_check.hpp"
#include "fuzz/tokenizer_checks.hpp"
#include "llm/text_model.hpp"

namespace motley::fuzz {

// Makes the tokenizer, which must keep its promises, and the chat template, or sees them refused in one line.
inline void check_text(const Model& model) {
  const auto tokenizer = make_tokenizer(model);
  if (!tokenizer.ok()) return check_refusal(tokenizer.error());
  check_tokenizer(**tokenizer);
  const auto sources = template_sources(model.tokenizer());
  if (!sources.ok()) return check_refusal(sources.error());
  const auto chat = make_chat_template(*sources, **tokenizer);
  if (!chat.ok()) check_refusal(chat.error());
}

}  // namespace motley::fuzz
