// Prompts of a call as tokens, checked against the context. Thread-safe: a PromptEncoder is immutable.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.hpp"
#include "server/api_error.hpp"
#include "server/generation_request.hpp"
#include "text/chat_template.hpp"
#include "text/tokenizer.hpp"

namespace motley {

class PromptEncoder {
 public:
  // Borrows both; `chat_template` may be null.
  // `chat_unavailable`: where chat_template is null, why and what to do; told to clients.
  // `max_tokens`: of one answer, whatever its call asks for; 0 = what the context holds.
  PromptEncoder(const Tokenizer& tokenizer, const ChatTemplate* chat_template, std::string chat_unavailable,
                uint32_t max_tokens);

  // One list of ids per prompt (chat: one), within a context of so many tokens. Also settles call.params.max_tokens:
  // where the call gave none, and where it asks for more than the server's own limit.
  MaybeError encode(GenerationCall& call, uint32_t max_model_len, std::vector<std::vector<TokenId>>& out) const;
  // Without regard to the context, but within limits of their own.
  MaybeError encode(const TokenizeCall& call, std::vector<TokenId>& out) const;
  MaybeError decode(const std::vector<TokenId>& tokens, std::string& out) const;

  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  MaybeError render(const ChatCall& chat, std::vector<TextSpan>& out) const;
  MaybeError check_bytes(const std::string& field, size_t bytes, uint32_t max_model_len) const;

  const Tokenizer& tokenizer_;
  const ChatTemplate* chat_template_;
  const std::string chat_unavailable_;
  uint32_t max_tokens_;     // 0 = what the context holds
  size_t token_bytes_max_;  // no token stands for more
};

}  // namespace motley
