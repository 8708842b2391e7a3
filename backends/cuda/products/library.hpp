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
  // Of one shape all rows go one way, so a row has the same bits among any others.
  void multiply(const LibraryCall& call, std::byte* workspace, cudaStream_t stream) const;
  uint64_t version() const;

 private:
  struct Entries;
  struct Way;  // an algorithm
  explicit Library(std::unique_ptr<Entries> entries);
  const Way& way_for(const LibraryCall& call) const;
  std::unique_ptr<Entries> entries_;
  void* handle_ = nullptr;
  mutable std::mutex mutex_;
  mutable std::map<std::array<int64_t, 4>, std::unique_ptr<Way>> ways_;
};

}  // namespace motley::cuda
