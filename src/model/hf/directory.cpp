#include "model/hf/directory.hpp"

#include <algorithm>
#include <system_error>

#include "base/quote.hpp"

namespace motley::hf {

namespace fs = std::filesystem;

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

bool is_plain_file_name(std::string_view name) {
  constexpr size_t kFileNameBytesMax = 255;
  constexpr std::string_view kForbidden("/\\\0", 3);
  return !name.empty() && name.size() <= kFileNameBytesMax && name != "." && name != ".." &&
         name.find_first_of(kForbidden) == std::string_view::npos;
}

Result<Directory> Directory::open(const fs::path& path) {
  std::error_code failure;
  fs::path canonical = fs::canonical(path, failure);
  if (failure == std::errc::permission_denied) {
    return error(MOTLEY_PERMISSION_DENIED, "may not be read; check the folder's permissions");
  }
  if (failure) return error(MOTLEY_NOT_FOUND, "no such folder; check the path");
  return Directory(std::move(canonical));
}

bool Directory::owns(const fs::path& folder) const {
  if (folder == path_) return true;
  const fs::path snapshots = path_.parent_path();
  return snapshots.filename() == "snapshots" && folder == snapshots.parent_path() / "blobs";
}

Result<std::optional<MappedFile>> Directory::map(std::string_view name, uint64_t bytes_max) const {
  const std::string shown = in_quotes(name);
  if (!is_plain_file_name(name)) {
    return invalid_argument("{}: is not the plain name of a file in the model's folder; get the model again", shown);
  }
  std::error_code failure;
  const fs::path link = path_ / name;
  if (!fs::exists(fs::symlink_status(link, failure))) return std::optional<MappedFile>();
  const fs::path target = fs::canonical(link, failure);
  if (failure) return error(MOTLEY_NOT_FOUND, "{}: leads to no file; get the model again", shown);
  if (!owns(target.parent_path())) {
    return invalid_argument("{}: is a link out of the model's folder; copy the file into the folder", shown);
  }
  auto file = MappedFile::open(target);
  if (!file.ok()) return file.error().annotate(shown);
  if (file->bytes().size() > bytes_max) {
    return invalid_argument("{}: {} bytes are more than {}; get the model again", shown, file->bytes().size(),
                            bytes_max);
  }
  return std::optional<MappedFile>(*std::move(file));
}

std::vector<std::string> Directory::names_with(std::string_view suffix) const {
  std::vector<std::string> names;
  std::error_code failure;
  for (auto at = fs::directory_iterator(path_, failure); !failure && at != fs::directory_iterator();
       at.increment(failure)) {
    std::string name = at->path().filename().string();
    if (name.ends_with(suffix) && names.size() < kDirectoryNamesMax) names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace motley::hf
