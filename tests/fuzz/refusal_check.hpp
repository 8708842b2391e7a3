// What every parser of files keeps.
#pragma once

#include <string>

#include "base/check.hpp"
#include "base/status.hpp"

namespace motley::fuzz {

// A refusal is one line of text.
inline void check_refusal(const Status& status) {
  CHECK(!status.message().empty());
  CHECK(status.message().find('\n') == std::string::npos, "{}", status.message());
}

}  // namespace motley::fuzz
