#include "base/file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

namespace motley {
namespace {

constexpr size_t kReadBytes = 64u << 10;

// Closes what it opened; standard input stays open.
class OpenFile {
 public:
  explicit OpenFile(const std::string& path)
      : fd_(path == "-" ? STDIN_FILENO : open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~OpenFile() {
    if (fd_ > STDERR_FILENO) close(fd_);
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

Result<std::string> read_file(const std::string& path, size_t bytes_max) {
  const OpenFile file(path);
  if (file.fd() < 0) return error(MOTLEY_NOT_FOUND, "{}: cannot be opened: {}", path, std::strerror(errno));
  std::string text;
  for (;;) {
    const size_t size = text.size();
    text.resize(size + kReadBytes);
    const ssize_t got = read(file.fd(), text.data() + size, kReadBytes);
    if (got < 0 && errno != EINTR) return error(MOTLEY_NOT_FOUND, "{}: cannot be read: {}", path, std::strerror(errno));
    text.resize(size + static_cast<size_t>(std::max<ssize_t>(got, 0)));
    if (text.size() > bytes_max) return invalid_argument("{}: holds more than {} bytes", path, bytes_max);
    if (got == 0) return text;
  }
}

Status write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::filesystem::path part = path;
  part += fmt::format(".{}.part", getpid());
  std::error_code failed;
  std::filesystem::create_directories(path.parent_path(), failed);
  std::ofstream out(part, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (out.good()) std::filesystem::rename(part, path, failed);
  if (out.good() && !failed) return ok_status();
  std::filesystem::remove(part, failed);
  return error(MOTLEY_UNAVAILABLE, "{} cannot be written", path.string());
}

}  // namespace motley
