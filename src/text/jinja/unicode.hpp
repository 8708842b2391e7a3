// The few things Python's str knows of Unicode that templates can see: code points, case, white space, printability.
// All functions are pure. Strings are valid UTF-8 (the borders check); a stray byte counts as one code point.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace motley::jinja {

bool is_valid_utf8(std::string_view text);
// Length in bytes of the character that starts at `pos` (pos < text.size()).
size_t char_length(std::string_view text, size_t pos);
char32_t code_point_at(std::string_view text, size_t pos);
size_t count_chars(std::string_view text);
// Appends the UTF-8 form; false for surrogates and values above U+10FFFF.
bool append_utf8(std::string& out, char32_t c);

bool is_space(char32_t c);    // str.isspace
bool is_alpha(char32_t c);    // str.isalpha
bool is_digit(char32_t c);    // str.isdigit
bool is_decimal(char32_t c);  // str.isdecimal
bool is_numeric(char32_t c);  // str.isnumeric, without the ideographs that name numbers
bool is_upper(char32_t c);
bool is_lower(char32_t c);
bool is_printable(char32_t c);  // what repr() shows as it is

// The one or more characters of the other case (sharp s is "SS" in upper case).
void append_upper(std::string& out, char32_t c);
void append_lower(std::string& out, char32_t c);
void append_title(std::string& out, char32_t c);
void append_folded(std::string& out, char32_t c);  // str.casefold

}  // namespace motley::jinja
