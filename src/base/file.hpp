// Files that are read and written whole.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/status.hpp"

namespace motley {

// The bytes of the file at `path` ("-": standard input). NOT_FOUND when it cannot be opened or read (a folder, say),
// INVALID_ARGUMENT when it holds more than `bytes_max`: an endless file is read no further than that.
Result<std::string> read_file(const std::string& path, size_t bytes_max);

// Replaces the file, or makes it and its folders; whoever reads meanwhile sees the old one or the new, never a part.
// UNAVAILABLE where that cannot be done.
Status write_file(const std::filesystem::path& path, std::string_view bytes);

}  // namespace motley
