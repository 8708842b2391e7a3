// NVIDIA's matrix products (cuBLASLt) for many rows in bf16 or f16, opened when a GPU is: the plugin loads without
// them, and its own kernels then serve all rows. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <vector>

#include "cuda/memory.hpp"

namespace motley::cuda {

// out[rows][width] = x w^T (+ add) (+ bias). w: [width][cols] and x: [rows][stride], both bf16 or both f16; out and add
// f32, the same or apart, or, of bf16, out in bf16 and neither of the two. `batch` such products of one x, with
// neither: their weights and results are so many elements apart.
struct LibraryCall {
  const void *w, *x;
  const float *bias, *add;  // null: none
  void* out;
  int64_t width, cols, rows, stride;
  int64_t out_stride;
  int64_t batch = 1, w_step = 0, out_step = 0;
  bool out_bf16 = false, f16 = false;

  int64_t out_element() const { return out_bf16 ? 2 : 4; }  // bytes
  std::byte* out_at(int64_t i) const { return static_cast<std::byte*>(out) + i * out_element(); }
};

// Of a product, to the bit. Rounded to bf16, few sums show an order of their own.
constexpr int64_t kLibraryComparedRows = 16, kLibraryComparedInBf16 = 64;
inline int64_t compared_rows(const LibraryCall& call) {
  if (call.add) return call.rows < kLibraryComparedRows ? call.rows : kLibraryComparedRows;  // there is no more to add
  return call.out_bf16 ? kLibraryComparedInBf16 : kLibraryComparedRows;
}

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
  // It knows the shape. A row has the same bits among any others: those of the shape's first algorithm, which splits no
  // sum. Another one serves so many rows if it was the fastest of those whose results were seen to be the same.
  void multiply(const LibraryCall& call, std::byte* workspace, cudaStream_t stream) const;
  // Whether the results for `rows` rows of random numbers are those that `other` writes to the bit:
  // out[rows][out_stride] for each product of the batch. It knows the shape, which is asked about once; then the stream
  // is waited for.
  using Other = std::function<void(const LibraryCall& some)>;
  bool agrees(const LibraryCall& call, int64_t rows, const Other& other, std::byte* workspace,
              cudaStream_t stream) const;
  // Whether `own`, whose results for each of the calls are the same, is faster than `by_library`, which has this
  // multiply them. Seen once for such calls and a number of rows as algorithms have it, outside a record; then the
  // stream is waited for.
  using Calls = std::span<const LibraryCall>;
  using Runs = std::function<void(Calls some)>;
  bool is_outrun(Calls calls, const Runs& by_library, const Runs& own, cudaStream_t stream) const;
  uint64_t version() const;
  // Up to so many rows have an algorithm of their own.
  static std::span<const int64_t> row_counts();
  // False if it was told of before.
  bool add_prepared(const std::vector<int64_t>& key) const;

 private:
  struct Entries;
  struct Way;    // an algorithm
  struct Ways;   // of a shape
  struct Timer;  // of algorithms
  Library(std::unique_ptr<Entries> entries, void* handle);
  Ways& ways_for(const LibraryCall& call) const;
  const Way& way_for(const LibraryCall& call, std::byte* workspace, cudaStream_t stream) const;
  std::vector<Way> find(const LibraryCall& call, int64_t rows) const;
  std::vector<Way> candidates(const LibraryCall& call, int64_t rows) const;
  bool try_run(const LibraryCall& call, const Way& way, std::byte* workspace, cudaStream_t stream) const;
  std::unique_ptr<Way> fastest(const LibraryCall& call, int64_t rows, const Way& first, std::byte* workspace,
                               cudaStream_t stream) const;
  bool same(const LibraryCall& call, int64_t rows, const Other& a, const Other& b, cudaStream_t stream) const;
  std::unique_ptr<Entries> entries_;
  void* handle_;
  mutable std::mutex mutex_;
  mutable std::map<std::array<int64_t, 5>, std::unique_ptr<Ways>> ways_;
  mutable std::map<std::vector<int64_t>, bool> outrun_;
  mutable std::set<std::vector<int64_t>> prepared_;
};

}  // namespace motley::cuda
