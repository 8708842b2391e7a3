#include "base/config.hpp"

#include <unistd.h>

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <fstream>

namespace motley {
namespace {

// The file that holds this function: /proc/self/maps names it for a program and for a library alike, whole and with
// symbolic links resolved. Empty if it is not there.
std::filesystem::path own_file() {
  const auto here = reinterpret_cast<uintptr_t>(&own_file);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {  // "begin-end flags offset device inode      path"
    const char* const last = line.data() + line.size();
    uintptr_t begin = 0, end = 0;
    const auto [dash, failed] = std::from_chars(line.data(), last, begin, 16);
    if (failed != std::errc() || dash == last || std::from_chars(dash + 1, last, end, 16).ec != std::errc()) continue;
    if (here < begin || here >= end) continue;
    const size_t path = line.find('/');
    return path == std::string::npos ? std::string() : line.substr(path);
  }
  return {};
}

}  // namespace

std::optional<std::string> environment(const char* name) {
  const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): nothing here ever sets a variable
  if (value == nullptr || *value == '\0') return std::nullopt;
  return std::string(value);
}

std::filesystem::path cache_directory() {
  if (auto dir = environment("MOTLEY_CACHE_DIR")) return *dir;
  if (auto dir = environment("XDG_CACHE_HOME")) return std::filesystem::path(*dir) / "motley";
  if (auto home = environment("HOME")) return std::filesystem::path(*home) / ".cache" / "motley";
  std::error_code ignored;
  return std::filesystem::temp_directory_path(ignored) / ("motley-" + std::to_string(getuid()));
}

std::filesystem::path plugin_directory() {
  if (auto dir = environment("MOTLEY_PLUGIN_DIR")) return *dir;
  return own_file().parent_path().parent_path() / "lib" / "motley";
}

}  // namespace motley
