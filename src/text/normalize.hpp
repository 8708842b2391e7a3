// Unicode normalisation form C, for vocabularies that were trained on it.
#pragma once

#include <string>
#include <string_view>

namespace motley {

// A quick look: true only for text that to_nfc would not change.
bool surely_nfc(std::string_view text);

// Bytes that are no UTF-8 stay as they are; what lies between them is normalised.
std::string to_nfc(std::string_view text);

}  // namespace motley
