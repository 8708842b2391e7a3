#include "model/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

#include "base/file_place.hpp"

namespace motley {
namespace {

Status system_error(int number) {
  switch (number) {
    case ENOENT:
    case ENOTDIR: return error(MOTLEY_NOT_FOUND, "no such file; check the path");
    case EACCES:
    case EPERM: return error(MOTLEY_PERMISSION_DENIED, "may not be read; check the file's permissions");
    case ENOMEM:
      return error(MOTLEY_RESOURCE_EXHAUSTED, "cannot be mapped: out of address space; raise the limit (ulimit -v)");
    default: return invalid_argument("cannot be opened: {}; check the path", std::generic_category().message(number));
  }
}

// Closes at the end of open(): a mapping does not need its descriptor.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  int number() const { return number_; }

 private:
  int number_;
};

}  // namespace

Result<MappedFile> MappedFile::open(const std::filesystem::path& path) {
  // O_NONBLOCK: a pipe without a writer is refused below, not waited for.
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.number() < 0) return system_error(errno);
  struct stat info {};
  if (::fstat(file.number(), &info) != 0) return system_error(errno);
  if (S_ISDIR(info.st_mode)) return invalid_argument("is a folder; name the model file in it");
  if (!S_ISREG(info.st_mode)) return invalid_argument("is not a regular file; copy the model to a file first");
  if (info.st_size == 0) return invalid_argument("is empty; get the file again");
  const auto size = static_cast<size_t>(info.st_size);
  void* start = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.number(), 0);
  if (start == MAP_FAILED) return system_error(errno);
  MappedFile mapped(std::span(static_cast<const std::byte*>(start), size));
  note_mapping(mapped.bytes_, path, file.number());
  return mapped;
}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    unmap();
    bytes_ = std::exchange(other.bytes_, {});
  }
  return *this;
}

MappedFile::~MappedFile() { unmap(); }

void MappedFile::unmap() {
  if (bytes_.data() == nullptr) return;
  forget_mapping(bytes_);
  ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());  // NOLINT: munmap's signature; the map is read-only
  bytes_ = {};
}

void drop_pages(std::span<const std::byte> range) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<uintptr_t>(range.data());
  const uintptr_t first = (start + page - 1) / page * page;
  const uintptr_t last = (start + range.size()) / page * page;
  // A refusal costs memory, not correctness.
  if (first < last) (void)::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace motley
