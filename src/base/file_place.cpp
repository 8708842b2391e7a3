#include "base/file_place.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <iterator>
#include <map>
#include <mutex>
#include <system_error>
#include <utility>

namespace motley {
namespace {

struct Mapping {
  uint64_t bytes = 0;
  std::filesystem::path path;
  dev_t device = 0;
  ino_t inode = 0;
};
struct Mappings {
  std::mutex mutex;
  std::map<uintptr_t, Mapping> by_address;
};
Mappings& mappings() {
  static Mappings all;
  return all;
}

// The mapping that has these bytes, and where in it.
std::optional<std::pair<Mapping, uint64_t>> find(uintptr_t address, uint64_t bytes) {
  Mappings& all = mappings();
  std::lock_guard lock(all.mutex);
  const auto behind = all.by_address.upper_bound(address);
  if (bytes == 0 || behind == all.by_address.begin()) return std::nullopt;
  const auto& [begin, mapping] = *std::prev(behind);
  const uint64_t offset = address - begin;
  if (offset > mapping.bytes || bytes > mapping.bytes - offset) return std::nullopt;
  return std::pair(mapping, offset);
}

}  // namespace

void note_mapping(std::span<const std::byte> bytes, const std::filesystem::path& path, int fd) {
  struct stat facts {};
  std::error_code failed;
  Mapping mapping{bytes.size(), std::filesystem::absolute(path, failed), 0, 0};
  if (failed || fstat(fd, &facts) != 0) return;
  mapping.device = facts.st_dev, mapping.inode = facts.st_ino;
  Mappings& all = mappings();
  std::lock_guard lock(all.mutex);
  all.by_address.insert_or_assign(reinterpret_cast<uintptr_t>(bytes.data()), std::move(mapping));
}

void forget_mapping(std::span<const std::byte> bytes) {
  Mappings& all = mappings();
  std::lock_guard lock(all.mutex);
  all.by_address.erase(reinterpret_cast<uintptr_t>(bytes.data()));
}

std::optional<FilePlace> find_file_place(const void* data, uint64_t bytes) {
  const auto found = find(reinterpret_cast<uintptr_t>(data), bytes);
  if (!found) return std::nullopt;
  const auto& [mapping, offset] = *found;
  const int fd = open(mapping.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return std::nullopt;
  struct stat facts {};
  if (fstat(fd, &facts) == 0 && facts.st_dev == mapping.device && facts.st_ino == mapping.inode) {
    return FilePlace{fd, offset};
  }
  close(fd);
  return std::nullopt;
}

}  // namespace motley
