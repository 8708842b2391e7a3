// Which file lies at an address: who hands memory to another process can name a mapped file's place instead of copying
// its bytes. Safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace motley {

struct FilePlace {
  int fd = -1;  // a duplicate, close-on-exec; the caller's to close
  uint64_t offset = 0;
};

// `bytes` are those of the file `fd` from its beginning on, until they are forgotten. The caller keeps fd. Where no
// duplicate is to be had, nothing is noted: that costs copies.
void note_mapping(std::span<const std::byte> bytes, int fd);
void forget_mapping(std::span<const std::byte> bytes);

// Of bytes inside one noted mapping; at least one byte.
std::optional<FilePlace> find_file_place(const void* data, uint64_t bytes);

}  // namespace motley
