// What comes from the surroundings of the process: environment variables and standard directories. The only getenv.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace motley {

// The variable's value, or nullopt when unset or empty.
std::optional<std::string> environment(const char* name);

// MOTLEY_CACHE_DIR, or XDG_CACHE_HOME/motley, or HOME/.cache/motley, or a folder in the temporary directory.
std::filesystem::path cache_directory();

// Where plugins lie: MOTLEY_PLUGIN_DIR, or ../lib/motley from the folder of the file that this code was loaded from
// (the running program, or libmotley.so inside somebody else's).
std::filesystem::path plugin_directory();

}  // namespace motley
