// A TOML file of options: the keys are the long option names without dashes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.hpp"

namespace motley::apps {

// What a file of options may hold. The parser descends once for every dot of a key, and so does what frees its tables:
// the length of a line bounds how deep.
inline constexpr size_t kConfigBytesMax = 64u << 10;
inline constexpr size_t kConfigLineBytesMax = 4u << 10;

struct ConfigEntry {
  std::string name;  // '_' of the key reads as '-'
  uint32_t line = 0;
  std::vector<std::string> values;  // at least one; arrays give several
};

// The entries, by name. INVALID_ARGUMENT with file and line for what is beyond the limits, does not parse, holds a
// table or names an option twice.
Result<std::vector<ConfigEntry>> read_config_file(const std::string& path);
// The same of a text; `path` is for messages.
Result<std::vector<ConfigEntry>> parse_config(std::string_view text, const std::string& path);

}  // namespace motley::apps
