#include "text/jinja/lexer.hpp"

#include <algorithm>
#include <array>

#include "text/jinja/unicode.hpp"
#include "text/jinja/value.hpp"

namespace motley::jinja {
namespace {

bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_name_part(char c) { return is_name_start(c) || is_ascii_digit(c) || static_cast<unsigned char>(c) >= 0x80; }

std::string normalized(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : text_(normalized(source)) {}

  std::vector<Token> run() {
    while (pos_ < text_.size()) lex_data();
    push(TokenKind::kEnd, "", pos_);
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail_at(size_t pos, std::string message) {
    locate(pos);
    throw Error{std::move(message), line_, static_cast<uint32_t>(pos - line_start_ + 1)};
  }

  // Positions are asked for in rising order, so counting goes on from the last one.
  void locate(size_t pos) {
    for (; counted_ < pos && counted_ < text_.size(); ++counted_) {
      if (text_[counted_] == '\n') {
        ++line_;
        line_start_ = counted_ + 1;
      }
    }
  }

  void push(TokenKind kind, std::string text, size_t at) {
    locate(at);
    tokens_.push_back({kind, std::move(text), line_, static_cast<uint32_t>(at - line_start_ + 1)});
  }

  bool at(std::string_view what) const { return std::string_view(text_).substr(pos_, what.size()) == what; }

  void skip_space() {
    while (pos_ < text_.size() && is_space(code_point_at(text_, pos_))) pos_ += char_length(text_, pos_);
  }

  static size_t trimmed_end(std::string_view data) {
    size_t end = data.size();
    while (end > 0) {
      size_t start = end - 1;
      while (start > 0 && (static_cast<unsigned char>(data[start]) & 0xC0) == 0x80) --start;
      if (!is_space(code_point_at(data, start))) break;
      end = start;
    }
    return end;
  }

  // The data before a tag, shortened as the tag's sign ('-', '+' or none) and lstrip_blocks ask.
  std::string_view strip_before(std::string_view data, char sign, bool variable) const {
    if (sign == '-') return data.substr(0, trimmed_end(data));
    if (sign == '+' || variable) return data;
    size_t newline = data.rfind('\n');
    size_t line = newline == std::string_view::npos ? 0 : newline + 1;
    if (line == 0 && !line_starting_) return data;
    return trimmed_end(data.substr(line)) == 0 ? data.substr(0, line) : data;
  }

  // After "{%", "{{" or "{#": takes a sign, if there is one.
  char take_sign() {
    if (pos_ < text_.size() && (text_[pos_] == '-' || text_[pos_] == '+')) return text_[pos_++];
    return 0;
  }

  void note_line_start(size_t end) { line_starting_ = end > 0 && text_[end - 1] == '\n'; }

  // Takes "%}", "-%}" or "+%}" (or the same with `close` = "#}") with the white space that belongs to it.
  bool take_block_close(std::string_view close) {
    std::string_view rest = std::string_view(text_).substr(pos_);
    char sign = !rest.empty() && (rest[0] == '-' || rest[0] == '+') ? rest[0] : '\0';
    if (rest.substr(sign ? 1 : 0, 2) != close) return false;
    pos_ += sign ? 3 : 2;
    if (sign == '-')
      skip_space();
    else if (sign == 0 && pos_ < text_.size() && text_[pos_] == '\n')
      ++pos_;
    note_line_start(pos_);
    return true;
  }

  size_t find_tag(size_t from) const {
    for (size_t i = text_.find('{', from); i != std::string::npos; i = text_.find('{', i + 1)) {
      if (i + 1 < text_.size() && (text_[i + 1] == '%' || text_[i + 1] == '{' || text_[i + 1] == '#')) return i;
    }
    return text_.size();
  }

  void push_data(std::string_view data, size_t at) {
    if (!data.empty()) push(TokenKind::kData, std::string(data), at);
  }

  void lex_data() {
    size_t begin = pos_;
    size_t tag = find_tag(pos_);
    std::string_view data = std::string_view(text_).substr(begin, tag - begin);
    if (tag == text_.size()) {
      push_data(data, begin);
      pos_ = tag;
      return;
    }
    char kind = text_[tag + 1];
    pos_ = tag + 2;
    char sign = take_sign();
    push_data(strip_before(data, sign, kind == '{'), begin);
    line_starting_ = false;
    if (kind == '#') {
      lex_comment(tag);
    } else if (kind == '{') {
      push(TokenKind::kVariableBegin, "", tag);
      lex_code(false);
    } else if (!lex_raw(tag)) {
      push(TokenKind::kBlockBegin, "", tag);
      lex_code(true);
    }
  }

  void lex_comment(size_t tag) {
    size_t close = text_.find("#}", pos_);
    if (close == std::string::npos) fail_at(tag, "missing end of comment tag");
    pos_ = close > pos_ && (text_[close - 1] == '-' || text_[close - 1] == '+') ? close - 1 : close;
    take_block_close("#}");
  }

  // After "{%": takes a whole raw block if this is one.
  bool lex_raw(size_t tag) {
    const size_t after_tag = pos_;
    skip_space();
    if (!at("raw")) return pos_ = after_tag, false;
    pos_ += 3;
    skip_space();
    bool strip = at("-%}");
    if (!strip && !at("%}")) return pos_ = after_tag, false;
    pos_ += strip ? 3 : 2;
    if (strip) skip_space();
    note_line_start(pos_);
    const size_t begin = pos_;
    for (size_t i = text_.find("{%", begin); i != std::string::npos; i = text_.find("{%", i + 2)) {
      pos_ = i + 2;
      char sign = take_sign();
      skip_space();
      if (!at("endraw")) continue;
      pos_ += 6;
      skip_space();
      std::string_view data = std::string_view(text_).substr(begin, i - begin);
      std::string_view kept = strip_before(data, sign, false);
      if (!take_block_close("%}")) continue;
      push_data(kept, begin);
      return true;
    }
    fail_at(tag, "missing end of raw directive");
  }

  void lex_code(bool block) {
    const size_t opened = pos_;
    std::string brackets;
    for (;;) {
      skip_space();
      if (pos_ >= text_.size()) fail_at(opened, block ? "unclosed block tag" : "unclosed expression");
      const size_t start = pos_;
      if (brackets.empty()) {
        if (block && take_block_close("%}")) return push(TokenKind::kBlockEnd, "", start);
        if (!block && take_variable_close()) return push(TokenKind::kVariableEnd, "", start);
      }
      const char c = text_[pos_];
      if (is_ascii_digit(c))
        lex_number();
      else if (is_name_part(c))
        lex_name();
      else if (c == '"' || c == '\'')
        lex_string(c);
      else
        lex_operator(brackets);
    }
  }

  bool take_variable_close() {
    if (at("-}}")) {
      pos_ += 3;
      skip_space();
    } else if (at("}}")) {
      pos_ += 2;
    } else {
      return false;
    }
    note_line_start(pos_);
    return true;
  }

  void lex_name() {
    size_t start = pos_;
    if (!is_name_start(text_[pos_]) && !is_alpha(code_point_at(text_, pos_))) fail_at(pos_, "unexpected character");
    while (pos_ < text_.size() && is_name_part(text_[pos_])) ++pos_;
    push(TokenKind::kName, text_.substr(start, pos_ - start), start);
  }

  // Takes digits of `base` with single underscores between them; `out` receives the digits.
  void take_digits(std::string& out, int base) {
    auto is_base_digit = [base](char c) {
      if (base == 16 && ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))) return true;
      return c >= '0' && c < '0' + std::min(base, 10);
    };
    while (pos_ < text_.size()) {
      if (text_[pos_] == '_' && pos_ + 1 < text_.size() && is_base_digit(text_[pos_ + 1])) ++pos_;
      if (!is_base_digit(text_[pos_])) return;
      out += text_[pos_++];
    }
  }

  void lex_number() {
    const size_t start = pos_;
    const char marker = pos_ + 1 < text_.size() ? static_cast<char>(text_[pos_ + 1] | 0x20) : '\0';
    std::string digits;
    if (text_[pos_] == '0' && (marker == 'x' || marker == 'o' || marker == 'b')) {
      pos_ += 2;
      take_digits(digits, marker == 'x' ? 16 : marker == 'o' ? 8 : 2);
      if (digits.empty()) fail_at(start, "malformed number");
      return push(TokenKind::kInteger, std::string("0") + marker + digits, start);
    }
    take_digits(digits, 10);
    bool is_float = false;
    const bool after_dot = start > 0 && text_[start - 1] == '.';
    if (!after_dot && pos_ + 1 < text_.size() && text_[pos_] == '.' && is_ascii_digit(text_[pos_ + 1])) {
      ++pos_;
      digits += '.';
      take_digits(digits, 10);
      is_float = true;
    }
    if (!after_dot && pos_ < text_.size() && (text_[pos_] | 0x20) == 'e') {
      size_t exponent = pos_ + 1;
      if (exponent < text_.size() && (text_[exponent] == '+' || text_[exponent] == '-')) ++exponent;
      if (exponent < text_.size() && is_ascii_digit(text_[exponent])) {
        digits += text_.substr(pos_, exponent - pos_);
        pos_ = exponent;
        take_digits(digits, 10);
        is_float = true;
      }
    }
    if (!is_float && digits.size() > 1 && digits[0] == '0' && digits.find_first_not_of('0') != std::string::npos) {
      fail_at(start, "a number must not begin with 0");
    }
    push(is_float ? TokenKind::kFloat : TokenKind::kInteger, std::move(digits), start);
  }

  void lex_string(char quote) {
    const size_t start = pos_++;
    std::string value;
    while (pos_ < text_.size() && text_[pos_] != quote) {
      if (text_[pos_] == '\\')
        take_escape(start, value);
      else
        value += text_[pos_++];
    }
    if (pos_ >= text_.size()) fail_at(start, "unterminated string");
    ++pos_;
    push(TokenKind::kString, std::move(value), start);
  }

  // Python's escapes in string literals.
  void take_escape(size_t string_start, std::string& value) {
    if (++pos_ >= text_.size()) fail_at(string_start, "unterminated string");
    const char c = text_[pos_];
    static constexpr std::string_view kFrom = "\\'\"abfnrtv", kTo = "\\'\"\a\b\f\n\r\t\v";
    if (size_t i = kFrom.find(c); i != std::string_view::npos) {
      value += kTo[i];
      ++pos_;
    } else if (c == '\n') {
      ++pos_;
    } else if (c == 'x' || c == 'u' || c == 'U') {
      ++pos_;
      append_code(string_start, take_code(string_start, c == 'x' ? 2 : c == 'u' ? 4 : 8, 16, true), value);
    } else if (c >= '0' && c <= '7') {
      append_code(string_start, take_code(string_start, 3, 8, false), value);
    } else if (c == 'N') {
      fail_at(string_start, "\\N{...} in a string is not supported; write \\u and four digits");
    } else {
      value += '\\';
    }
  }

  char32_t take_code(size_t string_start, int digits, uint32_t base, bool all) {
    char32_t code = 0;
    for (int i = 0; i < digits; ++i, ++pos_) {
      const char c = pos_ < text_.size() ? text_[pos_] : '\0';
      const char low = static_cast<char>(c | 0x20);
      uint32_t digit = is_ascii_digit(c)          ? static_cast<uint32_t>(c - '0')
                       : low >= 'a' && low <= 'f' ? static_cast<uint32_t>(low - 'a' + 10)
                                                  : 99;
      if (digit >= base) {
        if (all) fail_at(string_start, "malformed escape in a string");
        break;
      }
      code = code * base + digit;
      if (code > 0x10FFFF) fail_at(string_start, "escape in a string beyond U+10FFFF");
    }
    return code;
  }

  void append_code(size_t string_start, char32_t code, std::string& value) {
    if (!append_utf8(value, code)) fail_at(string_start, "escape in a string names half a surrogate pair");
  }

  void lex_operator(std::string& brackets) {
    static constexpr std::array<std::string_view, 28> kOperators = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                                    "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                                    ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    for (std::string_view op : kOperators) {
      if (op.empty() || !at(op)) continue;
      static constexpr std::string_view kOpen = "([{", kClose = ")]}";
      if (size_t i = kOpen.find(op[0]); i != std::string_view::npos) brackets += kClose[i];
      if (kClose.find(op[0]) != std::string_view::npos) {
        if (brackets.empty() || brackets.back() != op[0]) fail_at(pos_, "unexpected '" + std::string(op) + "'");
        brackets.pop_back();
      }
      push(TokenKind::kOperator, std::string(op), pos_);
      pos_ += op.size();
      return;
    }
    fail_at(pos_, "unexpected character");
  }

  const std::string text_;
  size_t pos_ = 0;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
  size_t counted_ = 0, line_start_ = 0;
  uint32_t line_ = 1;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace motley::jinja
