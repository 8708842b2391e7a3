// Which file lies at an address: so that who hands memory to another process can name a mapped file's place instead of
// copying its bytes. Holds no descriptors. Safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>

namespace motley {

struct FilePlace {
  int fd = -1;  // opened to read, close-on-exec; the caller's to close
  uint64_t offset = 0;
};

// `bytes` are those of the open file `fd`, which `path` names, from its beginning on, until they are forgotten.
void note_mapping(std::span<const std::byte> bytes, const std::filesystem::path& path, int fd);
void forget_mapping(std::span<const std::byte> bytes);

// Of bytes inside one noted mapping; at least one byte. None where the path names another file by now.
std::optional<FilePlace> find_file_place(const void* data, uint64_t bytes);

}  // namespace motley
