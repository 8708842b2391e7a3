// Small text files that a user names: read whole, within a limit.
#pragma once

#include <cstddef>
#include <string>

#include "base/status.hpp"

namespace motley {

// The bytes of the file at `path` ("-": standard input). NOT_FOUND when it cannot be opened or read (a folder, say),
// INVALID_ARGUMENT when it holds more than `bytes_max`: an endless file is read no further than that.
Result<std::string> read_file(const std::string& path, size_t bytes_max);

}  // namespace motley
