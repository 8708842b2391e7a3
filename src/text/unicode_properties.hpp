// What Hugging Face tokenizers knows of characters beside the classes of unicode_class.hpp, with its own versions of
// Unicode (tools/golden/tokenizer_unicode.py). Pure functions.
#pragma once

#include <string>

namespace motley {

bool is_mark(char32_t c);         // what StripAccents takes away
bool is_punctuation(char32_t c);  // what Punctuation cuts at
bool is_word(char32_t c);         // \w of Rust's expressions: letters, marks, digits, connectors, joiners
// Later versions of Unicode normalise it; to the reference it is a character without a decomposition or class.
bool is_newer_than_normalization(char32_t c);

// Appends the small form, which is the character itself for most.
void append_small(char32_t c, std::string& out);
void append_code_point(char32_t c, std::string& out);

}  // namespace motley
