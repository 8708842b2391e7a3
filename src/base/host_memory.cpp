#include "base/host_memory.hpp"

#include <algorithm>
#include <fstream>
#include <optional>

namespace motley {
namespace {

std::optional<uint64_t> read_number(const std::string& path) {  // none for "max", too
  std::ifstream file(path);
  uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

// The number behind a word of a file of lines "word number".
uint64_t read_field(const std::string& path, const std::string& word) {
  std::ifstream file(path);
  for (std::string name; file >> name;) {
    uint64_t value = 0;
    if (name == word && file >> value) return value;
    file.ignore(1 << 20, '\n');
  }
  return 0;
}

// Of the unified hierarchy: "0::/path".
std::string cgroup_of_process(const std::string& root) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("0::", 0) == 0 && line.find("..") == std::string::npos) return line.substr(3);
  return "/";
}

}  // namespace

uint64_t host_memory_available(const std::string& root) {
  uint64_t available = read_field(root + "/proc/meminfo", "MemAvailable:") * 1024;
  for (std::string path = cgroup_of_process(root);; path.erase(path.rfind('/'))) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    const std::string folder = root + "/sys/fs/cgroup" + path;
    if (const auto limit = read_number(folder + "/memory.max")) {
      const uint64_t used = read_number(folder + "/memory.current").value_or(0);
      const uint64_t cache = std::min(used, read_field(folder + "/memory.stat", "inactive_file"));
      available = std::min(available, *limit - std::min(*limit, used - cache));
    }
    if (path.empty()) return available;
  }
}

}  // namespace motley
