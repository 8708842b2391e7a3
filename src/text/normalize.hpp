// Unicode normalisation forms, for vocabularies that were trained on them.
#pragma once

#include <string>
#include <string_view>

namespace motley {

// A quick look: true only for text that to_nfc would not change.
bool surely_nfc(std::string_view text);

// Unicode 9.0, as Hugging Face tokenizers normalise. Bytes that are no UTF-8 and newer characters stay as they are;
// what lies between them is normalised.
std::string to_nfc(std::string_view text);
// The same for any form: utf8proc's UTF8PROC_COMPOSE or _DECOMPOSE, with or without _COMPAT.
std::string to_form(std::string_view text, int options);

}  // namespace motley
