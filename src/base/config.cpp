#include "base/config.hpp"

#include <unistd.h>

#include <cstdlib>

namespace motley {

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
  std::error_code failed;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", failed);
  if (failed) return "lib/motley";
  return program.parent_path().parent_path() / "lib" / "motley";
}

}  // namespace motley
