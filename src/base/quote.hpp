// Foreign text in messages.
#pragma once

#include <string>
#include <string_view>

namespace motley {

// In quotes and fit for one line: control characters and broken UTF-8 as \xNN, cut (with "...") after 64 bytes.
std::string in_quotes(std::string_view text);

}  // namespace motley
