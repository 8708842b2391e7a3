// MappedFile: a whole regular file, mapped read-only for the object's lifetime.
//
// Immutable; safe from any thread. A file that another program shortens while it is mapped is not guarded against.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <utility>

#include "base/status.hpp"

namespace motley {

class MappedFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED, or INVALID_ARGUMENT for what is not a regular file with at least one byte. Never
  // blocks on pipes or devices. Texts do not name the file: the caller does.
  static Result<MappedFile> open(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}
  void unmap();

  std::span<const std::byte> bytes_;
};

// Lets the kernel drop the whole pages inside `range`, a part of a mapping; they are read again on the next access.
// Pages shared with neighbouring data stay.
void drop_pages(std::span<const std::byte> range);

}  // namespace motley
