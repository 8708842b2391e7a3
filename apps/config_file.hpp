// A TOML file of options: the keys are the long option names without dashes.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/status.hpp"

namespace motley::apps {

// Each key with its values as texts, in the file's order; arrays give several. INVALID_ARGUMENT with line for a file
// that does not parse or holds tables. '_' in keys reads as '-'.
Result<std::vector<std::pair<std::string, std::vector<std::string>>>> read_config_file(const std::string& path);

}  // namespace motley::apps
