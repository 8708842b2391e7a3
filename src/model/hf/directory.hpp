// Directory: the folder of a model. Only its own files are read: names with separators and links that lead out of it
// are refused, but for the links of a download cache (snapshots/REVISION/FILE -> blobs/HASH beside snapshots).
//
// Immutable; safe from any thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.hpp"
#include "model/mapped_file.hpp"

namespace motley::hf {

class Directory {
 public:
  static Result<Directory> open(const std::filesystem::path& path);

  // Nullopt where there is no such file. INVALID_ARGUMENT for a name that leads elsewhere, an empty file, or one above
  // `bytes_max`. Texts begin with the file's name.
  Result<std::optional<MappedFile>> map(std::string_view name, uint64_t bytes_max) const;
  // The names of the files that end in `suffix`, ascending; at most kDirectoryNamesMax.
  std::vector<std::string> names_with(std::string_view suffix) const;

 private:
  explicit Directory(std::filesystem::path path) : path_(std::move(path)) {}
  bool owns(const std::filesystem::path& folder) const;

  std::filesystem::path path_;  // canonical
};

inline constexpr size_t kDirectoryNamesMax = 1u << 16;

// A file's bytes as text.
std::string_view text_of(const MappedFile& file);

// A file name alone: no separator, no "..", no zero byte.
bool is_plain_file_name(std::string_view name);

}  // namespace motley::hf
