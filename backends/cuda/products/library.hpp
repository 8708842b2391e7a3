// NVIDIA's matrix products (cuBLASLt) for many rows in bf16, opened when a GPU is: the plugin loads without them, and
// its own kernels then serve all rows. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "cuda/memory.hpp"

namespace motley::cuda {

// out[rows][width] = x w^T (+ bias) (+ add). w: [width][cols] and x: [rows][stride], bf16; out and add f32.
struct LibraryCall {
  const void *w, *x;
  const float *bias, *add;  // null: none
  float* out;
  int64_t width, cols, rows, stride;
  int64_t out_stride;  // of out and add
};

class Library {
 public:
  static constexpr uint64_t kWorkspace = uint64_t{8} << 20;
  // Null where the library is missing; *why says what was tried.
  static std::shared_ptr<const Library> open(std::string* why);
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library();

  // Whether it may be asked for a product of this shape at all.
  static bool takes(int64_t width, int64_t cols) { return width % 8 == 0 && cols % 8 == 0 && width >= 64; }
  // Whether the library has an algorithm for the call's shape.
  bool knows(const LibraryCall& call) const;
  // It knows the shape. A row has the same bits among any others: of one shape all rows go one way, but for algorithms
  // for fewer rows whose results were seen to be those of the first to the bit.
  void multiply(const LibraryCall& call, std::byte* workspace, cudaStream_t stream) const;
  uint64_t version() const;

 private:
  struct Entries;
  struct Way;   // an algorithm
  struct Ways;  // of a shape
  Library(std::unique_ptr<Entries> entries, void* handle);
  Ways& ways_for(const LibraryCall& call) const;
  const Way& way_for(const LibraryCall& call, std::byte* workspace, cudaStream_t stream) const;
  std::unique_ptr<Way> find(const LibraryCall& call, int64_t rows) const;
  void run(const LibraryCall& call, const Way& way, std::byte* workspace, cudaStream_t stream) const;
  bool agree(const LibraryCall& call, const Way& a, const Way& b, std::byte* workspace, cudaStream_t stream) const;
  std::unique_ptr<Entries> entries_;
  void* handle_;
  mutable std::mutex mutex_;
  mutable std::map<std::array<int64_t, 4>, std::unique_ptr<Ways>> ways_;
};

}  // namespace motley::cuda
