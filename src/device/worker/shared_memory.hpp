// SharedMemory: memory that host and worker both map, handed over as a descriptor. FileView: a part of a file that both
// map to read.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.hpp"
#include "device/worker/descriptor.hpp"

namespace motley::worker {

inline constexpr uint64_t kSharedBytesMax = uint64_t{1} << 46;

// Movable; the mapping ends with the object. Its bytes may change at any time by the other side's hand.
class SharedMemory {
 public:
  SharedMemory() = default;
  // New zeroed memory of whole pages, sealed so that nobody can resize it. Owns the descriptor until drop_descriptor().
  static Result<SharedMemory> create(const char* name, uint64_t bytes);
  // Maps what a peer handed over; refused unless it is sealed against shrinking and holds `bytes`, so that no access
  // can fall behind its end.
  static Result<SharedMemory> adopt(Descriptor descriptor, uint64_t bytes);
  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  ~SharedMemory();

  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  int fd() const { return descriptor_.get(); }
  void drop_descriptor() { descriptor_.reset(); }
  // Whether [offset, offset + length) lies inside.
  bool holds(uint64_t offset, uint64_t length) const { return offset <= bytes_ && length <= bytes_ - offset; }

 private:
  static Result<SharedMemory> map(Descriptor descriptor, uint64_t bytes);
  Descriptor descriptor_;
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
};

// Movable; the mapping ends with the object. What shortens the file makes the lost pages' readers end (SIGBUS).
class FileView {
 public:
  FileView() = default;
  // `bytes` of the regular file from `offset` on; refused unless it has them.
  static Result<FileView> map(const Descriptor& file, uint64_t offset, uint64_t bytes);
  FileView(FileView&& other) noexcept;
  FileView& operator=(FileView&& other) noexcept;
  ~FileView();

  const std::byte* data() const { return mapped_ + before_; }
  uint64_t bytes() const { return bytes_; }

 private:
  std::byte* mapped_ = nullptr;
  uint64_t before_ = 0;  // of the first page, what lies before the bytes
  uint64_t bytes_ = 0;
};

}  // namespace motley::worker
