#include "base/file_place.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <iterator>
#include <map>
#include <mutex>

namespace motley {
namespace {

struct Mapping {
  uint64_t bytes = 0;
  int fd = -1;
};
struct Mappings {
  std::mutex mutex;
  std::map<uintptr_t, Mapping> by_address;
};
Mappings& mappings() {
  static Mappings all;
  return all;
}
int duplicate(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 0); }

}  // namespace

void note_mapping(std::span<const std::byte> bytes, int fd) {
  const int own = duplicate(fd);
  if (own < 0) return;
  Mappings& all = mappings();
  std::lock_guard lock(all.mutex);
  const auto [at, fresh] = all.by_address.insert({reinterpret_cast<uintptr_t>(bytes.data()), {bytes.size(), own}});
  if (!fresh) close(own);
}

void forget_mapping(std::span<const std::byte> bytes) {
  Mappings& all = mappings();
  std::lock_guard lock(all.mutex);
  const auto at = all.by_address.find(reinterpret_cast<uintptr_t>(bytes.data()));
  if (at == all.by_address.end()) return;
  close(at->second.fd);
  all.by_address.erase(at);
}

std::optional<FilePlace> find_file_place(const void* data, uint64_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  Mappings& all = mappings();
  std::lock_guard lock(all.mutex);
  const auto behind = all.by_address.upper_bound(address);
  if (bytes == 0 || behind == all.by_address.begin()) return std::nullopt;
  const auto& [begin, mapping] = *std::prev(behind);
  const uint64_t offset = address - begin;
  if (offset > mapping.bytes || bytes > mapping.bytes - offset) return std::nullopt;
  const int fd = duplicate(mapping.fd);
  if (fd < 0) return std::nullopt;
  return FilePlace{fd, offset};
}

}  // namespace motley
