// Lexer: template source to tokens, with Jinja's rules for white space (trim_blocks and lstrip_blocks on, one final
// newline dropped, every newline read as \n).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace motley::jinja {

enum class TokenKind {
  kData,
  kBlockBegin,
  kBlockEnd,
  kVariableBegin,
  kVariableEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

// `text`: data, name, the string's value, the number's digits without underscores, or the operator.
struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;
  uint32_t line = 0, column = 0;

  bool is(TokenKind k, std::string_view t) const { return kind == k && text == t; }
  bool is_name(std::string_view t) const { return is(TokenKind::kName, t); }
  bool is_operator(std::string_view t) const { return is(TokenKind::kOperator, t); }
};

// `source` is valid UTF-8. The last token is kEnd. Throws Error with line and column.
std::vector<Token> tokenize(std::string_view source);

}  // namespace motley::jinja
