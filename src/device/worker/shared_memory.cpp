#include "device/worker/shared_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace motley::worker {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

}  // namespace

Result<SharedMemory> SharedMemory::map(Descriptor descriptor, uint64_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, descriptor.get(), 0);
  if (data == MAP_FAILED) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "{} bytes of shared memory cannot be mapped: {}", bytes,
                 std::strerror(errno));
  }
  SharedMemory memory;
  memory.descriptor_ = std::move(descriptor);
  memory.data_ = static_cast<std::byte*>(data);
  memory.bytes_ = bytes;
  return memory;
}

Result<SharedMemory> SharedMemory::create(const char* name, uint64_t bytes) {
  if (bytes == 0 || bytes > kSharedBytesMax) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "{} bytes of shared memory; 1 to {} are possible", bytes, kSharedBytesMax);
  }
  const uint64_t whole = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  Descriptor descriptor(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!descriptor || ftruncate(descriptor.get(), static_cast<off_t>(whole)) != 0 ||
      fcntl(descriptor.get(), F_ADD_SEALS, kSeals) != 0) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "{} bytes of shared memory: {}", bytes, std::strerror(errno));
  }
  return map(std::move(descriptor), whole);
}

Result<SharedMemory> SharedMemory::adopt(Descriptor descriptor, uint64_t bytes) {
  struct stat facts {};
  const int seals = fcntl(descriptor.get(), F_GET_SEALS);
  if (bytes == 0 || bytes > kSharedBytesMax || seals < 0 || (seals & F_SEAL_SHRINK) == 0 ||
      fstat(descriptor.get(), &facts) != 0 || facts.st_size < 0 || static_cast<uint64_t>(facts.st_size) < bytes) {
    return error(MOTLEY_DATA_LOSS, "what came as shared memory of {} bytes is shorter or not sealed", bytes);
  }
  return map(std::move(descriptor), static_cast<uint64_t>(facts.st_size));
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : descriptor_(std::move(other.descriptor_)),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

SharedMemory::~SharedMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

Result<FileView> FileView::map(const Descriptor& file, uint64_t offset, uint64_t bytes) {
  struct stat facts {};
  if (bytes == 0 || fstat(file.get(), &facts) != 0 || !S_ISREG(facts.st_mode) || facts.st_size < 0 ||
      offset > static_cast<uint64_t>(facts.st_size) || bytes > static_cast<uint64_t>(facts.st_size) - offset) {
    return error(MOTLEY_DATA_LOSS, "what came as {} bytes of a file from {} on is not there", bytes, offset);
  }
  const uint64_t before = offset % static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  void* data = mmap(nullptr, before + bytes, PROT_READ, MAP_PRIVATE, file.get(), static_cast<off_t>(offset - before));
  if (data == MAP_FAILED) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "{} bytes of a file cannot be mapped: {}", bytes, std::strerror(errno));
  }
  FileView view;
  view.mapped_ = static_cast<std::byte*>(data), view.before_ = before, view.bytes_ = bytes;
  return view;
}

FileView::FileView(FileView&& other) noexcept
    : mapped_(std::exchange(other.mapped_, nullptr)),
      before_(std::exchange(other.before_, 0)),
      bytes_(std::exchange(other.bytes_, 0)) {}

FileView& FileView::operator=(FileView&& other) noexcept {
  std::swap(mapped_, other.mapped_);
  std::swap(before_, other.before_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

FileView::~FileView() {
  if (mapped_ != nullptr) munmap(mapped_, before_ + bytes_);
}

}  // namespace motley::worker
